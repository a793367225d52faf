//! Small blobs on the heap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;

use crate::digest::Digest;
use crate::sync::Mutex;

/// Independent parts, so that readers of different blobs rarely contend.
const SHARDS: usize = 8;

/// The memory of a blob apart from its bytes: its place in the list and the map, and the allocator's share.
const OVERHEAD: u64 = 160;

#[derive(Debug)]
struct Shard {
    blobs: LruCache<Digest, Arc<[u8]>>,
    bytes: u64,
}

/// Small blobs under a budget; the least recently used is evicted first.
#[derive(Debug)]
pub(super) struct Heap {
    shards: Vec<Mutex<Shard>>,
    budget: u64,
    evictions: AtomicU64,
}

impl Heap {
    pub(super) fn new(budget: u64) -> Self {
        let shard = || Mutex::new(Shard { blobs: LruCache::unbounded(), bytes: 0 });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            budget: budget / SHARDS as u64,
            evictions: AtomicU64::new(0),
        }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        &self.shards[usize::from(digest.as_bytes()[31]) % SHARDS]
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget * SHARDS as u64
    }

    /// Bytes of the largest blob that it keeps.
    pub(super) fn largest(&self) -> u64 {
        self.budget.saturating_sub(OVERHEAD)
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.shard(digest).lock().blobs.contains(digest)
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        self.shard(digest).lock().blobs.get(digest).cloned()
    }

    pub(super) fn insert(&self, digest: Digest, bytes: Arc<[u8]>) {
        let cost = bytes.len() as u64 + OVERHEAD;
        // A blob that would evict everything else is not worth keeping: the kernel has its pages now.
        if cost > self.budget {
            return;
        }
        // Freed after the lock is released.
        let mut freed = Vec::new();
        let mut shard = self.shard(&digest).lock();
        shard.bytes += cost;
        if let Some(old) = shard.blobs.put(digest, bytes) {
            shard.bytes -= old.len() as u64 + OVERHEAD;
            freed.push(old);
        }
        while shard.bytes > self.budget {
            let Some((_, old)) = shard.blobs.pop_lru() else { break };
            shard.bytes -= old.len() as u64 + OVERHEAD;
            self.evictions.fetch_add(1, Ordering::Relaxed);
            freed.push(old);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}
