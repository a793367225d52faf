//! Parsed file trees, by the digest of their blob, within a budget.

use std::collections::HashMap;
use std::sync::Arc;

use lru::LruCache;

use crate::digest::Digest;
use crate::sync::Mutex;
use crate::tree::Tree;

struct Kept {
    trees: LruCache<Digest, Arc<Tree>>,
    bytes: u64,
}

/// Recently used trees. Images with the same files share one.
pub(super) struct Trees {
    kept: Mutex<Kept>,
    /// Locks so that only one thread builds a tree at a time.
    building: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    budget: u64,
}

impl Trees {
    pub(super) fn new(budget: u64) -> Self {
        let kept = Mutex::new(Kept { trees: LruCache::unbounded(), bytes: 0 });
        Self { kept, building: Mutex::default(), budget }
    }

    /// Returns a tree that is in memory.
    pub(super) fn peek(&self, digest: &Digest) -> Option<Arc<Tree>> {
        self.kept.lock().trees.get(digest).cloned()
    }

    pub(super) fn get<E>(
        &self,
        digest: &Digest,
        build: impl FnOnce() -> Result<Tree, E>,
    ) -> Result<Arc<Tree>, E> {
        let find = || self.kept.lock().trees.get(digest).cloned();
        if let Some(tree) = find() {
            return Ok(tree);
        }
        let turn = Arc::clone(self.building.lock().entry(*digest).or_default());
        let guard = turn.lock();
        let result = match find() {
            Some(tree) => Ok(tree),
            None => build().map(|tree| self.keep(*digest, tree)),
        };
        drop(guard);
        self.building.lock().remove(digest);
        result
    }

    fn keep(&self, digest: Digest, tree: Tree) -> Arc<Tree> {
        let tree = Arc::new(tree);
        let mut freed = Vec::new();
        let mut kept = self.kept.lock();
        kept.bytes += tree.heap_bytes() as u64;
        if let Some(old) = kept.trees.put(digest, Arc::clone(&tree)) {
            kept.bytes -= old.heap_bytes() as u64;
        }
        // The newest tree stays even if it exceeds the budget. Otherwise each lookup would parse it again.
        while kept.bytes > self.budget && kept.trees.len() > 1 {
            let Some((_, old)) = kept.trees.pop_lru() else { break };
            kept.bytes -= old.heap_bytes() as u64;
            freed.push(old);
        }
        tree
    }

    /// Bytes of the trees in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.kept.lock().bytes
    }
}
