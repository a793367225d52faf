//! Fills the cache ahead of programs that read a tree file by file, as the kernel reads ahead in a file.
//!
//! A stream begins when a program reads two files that are neighbours in the tree, and the first was not in the cache. Separate
//! threads then fill the blobs of the next files, folder after folder. A stream grows while its files are read in order. It
//! ends with the first read elsewhere. Reading a single file costs nothing extra.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_channel::{Sender, bounded};

use crate::cache::Cache;
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::sync::Mutex;
use crate::tree::{NodeId, Tree};

/// Number of streams that are remembered, and so of readers that can be followed at once.
const STREAMS: usize = 8;

/// Files that a stream fills ahead: at first, and at most.
const FIRST: usize = 8;
const MOST: usize = 256;

/// The largest file in bytes that is filled ahead. A larger one is filled when it is read, and until then no file after it is.
const LARGEST: u64 = 1 << 20;

/// The most bytes that all streams together fill ahead; less if the cache is small.
const BYTES: u64 = 16 << 20;

/// Nodes to search in order to find whether a file follows another. Folders, links and cached files may lie between them.
const NEAR: usize = 24;

/// One blob to fill.
struct Job {
    digest: Digest,
    size: u64,
}

/// A reader that goes through a tree.
struct Stream {
    /// The tree that is read. The stream does not keep it in memory.
    tree: Weak<Tree>,
    /// The last file that was read.
    last: NodeId,
    /// The last node that was filled ahead or skipped.
    issued: NodeId,
    /// Files that were filled ahead and not yet read, in the order of filling.
    waiting: HashMap<NodeId, u64>,
    count: u64,
    window: usize,
    /// When it was used last.
    used: u64,
}

#[derive(Default)]
struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

impl Streams {
    /// Notes that a file was read. Returns the nodes to fill next.
    fn read(&mut self, tree: &Arc<Tree>, node: NodeId, cached: bool) -> Vec<NodeId> {
        self.clock += 1;
        let clock = self.clock;
        let of = |stream: &&mut Stream| stream.tree.as_ptr() == Arc::as_ptr(tree);
        if let Some(stream) = self.streams.iter_mut().filter(of).find(|s| s.waiting.contains_key(&node)) {
            stream.used = clock;
            stream.last = node;
            let at = stream.waiting.remove(&node).unwrap_or(0);
            // A file that the reader has skipped will hardly be read later.
            stream.waiting.retain(|_, order| *order > at);
            stream.window = (stream.window * 2).min(MOST);
            return if stream.waiting.len() < stream.window / 2 { stream.go_on(tree) } else { Vec::new() };
        }
        if cached {
            return Vec::new();
        }
        if let Some(stream) = self.streams.iter_mut().filter(of).find(|s| follows(tree, s.last, node)) {
            stream.used = clock;
            (stream.last, stream.issued, stream.window) = (node, node, FIRST.max(stream.window));
            stream.waiting.clear();
            return stream.go_on(tree);
        }
        let new = Stream {
            tree: Arc::downgrade(tree),
            last: node,
            issued: node,
            waiting: HashMap::new(),
            count: 0,
            window: 0,
            used: clock,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(new);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = new;
        }
        Vec::new()
    }
}

impl Stream {
    /// Returns the next files to fill, as many as the window allows.
    fn go_on(&mut self, tree: &Tree) -> Vec<NodeId> {
        let mut found = Vec::new();
        while self.waiting.len() < self.window {
            let Some(next) = after(tree, self.issued) else { break };
            self.issued = next;
            let size = tree.size(next);
            if tree.kind(next) == Kind::File && size > 0 && size < LARGEST {
                self.count += 1;
                self.waiting.insert(next, self.count);
                found.push(next);
            }
        }
        found
    }
}

/// Returns the next node in the order of `tar`, `grep -r` and `find`: a folder, then the files in it, then its neighbours.
fn after(tree: &Tree, node: NodeId) -> Option<NodeId> {
    let children = tree.children(node);
    if !children.is_empty() {
        return Some(NodeId(children.start));
    }
    let mut node = node;
    while node != NodeId::ROOT {
        let parent = tree.parent(node);
        if node.0 + 1 < tree.children(parent).end {
            return Some(NodeId(node.0 + 1));
        }
        node = parent;
    }
    None
}

/// Whether `node` comes soon after `last`.
fn follows(tree: &Tree, last: NodeId, node: NodeId) -> bool {
    std::iter::successors(after(tree, last), |at| after(tree, *at)).take(NEAR).any(|at| at == node)
}

/// Fills ahead.
pub(super) struct Readahead {
    cache: Arc<Cache>,
    streams: Mutex<Streams>,
    /// Bytes that were requested and not yet filled, and their limit.
    pending: Arc<AtomicU64>,
    budget: u64,
    /// The threads' queue. The threads start with the first stream.
    jobs: OnceLock<Option<Sender<Job>>>,
    asked: AtomicU64,
}

impl Readahead {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        let budget = BYTES.min(cache.heap_budget() / 4);
        Self {
            cache,
            streams: Mutex::default(),
            pending: Arc::default(),
            budget,
            jobs: OnceLock::new(),
            asked: AtomicU64::new(0),
        }
    }

    /// Counts the blobs that were requested ahead of their readers.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Notes that a file was read, and whether its blob was in the cache.
    pub(super) fn was_read(&self, tree: &Arc<Tree>, node: NodeId, cached: bool) {
        // If another reader holds the lock, this read is not noted: no correctness depends on it.
        let Some(mut streams) = self.streams.try_lock() else { return };
        let wanted = streams.read(tree, node, cached);
        drop(streams);
        if wanted.is_empty() {
            return;
        }
        let Some(jobs) = self.jobs.get_or_init(|| self.start()) else { return };
        for node in wanted {
            let (Some(digest), size) = (tree.blob(node), tree.size(node)) else { continue };
            if self.cache.contains(digest) || self.pending.load(Ordering::Relaxed) + size > self.budget {
                continue;
            }
            self.pending.fetch_add(size, Ordering::Relaxed);
            if jobs.try_send(Job { digest: *digest, size }).is_err() {
                self.pending.fetch_sub(size, Ordering::Relaxed);
                return;
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn start(&self) -> Option<Sender<Job>> {
        let (jobs, queue) = bounded::<Job>(STREAMS * MOST);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let mut started = 0;
        for i in 0..threads {
            let (queue, cache, pending) = (queue.clone(), Arc::clone(&self.cache), Arc::clone(&self.pending));
            let spawned = std::thread::Builder::new().name(format!("pfimg-ahead-{i}")).spawn(move || {
                for job in queue {
                    // An error here occurs again when the file is read, and is logged then.
                    let _ = cache.get(&job.digest, Some(job.size));
                    pending.fetch_sub(job.size, Ordering::Relaxed);
                }
            });
            started += usize::from(spawned.is_ok());
        }
        (started > 0).then_some(jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of folders with `files` files each.
    fn tree(folders: usize, files: usize) -> Arc<Tree> {
        let mut entries = Vec::new();
        for folder in 0..folders {
            for file in 0..files {
                let digest = Digest::of(format!("{folder} {file}").as_bytes());
                entries.push(serde_json::json!({
                    "path": format!("d{folder:03}/f{file:03}"), "mode": "0644", "kind": "file",
                    "blob": digest.to_string(), "size": 100,
                }));
            }
        }
        let text = serde_json::json!({"kind": "fs.tree.v1", "entries": entries}).to_string();
        Arc::new(Tree::parse(text.as_bytes()).unwrap())
    }

    fn files(tree: &Tree) -> Vec<NodeId> {
        let all = std::iter::successors(Some(NodeId::ROOT), |at| after(tree, *at));
        all.filter(|node| tree.kind(*node) == Kind::File).collect()
    }

    #[test]
    fn the_order_is_that_of_programs_that_go_through_a_tree_and_visits_all() {
        let tree = tree(7, 5);
        let all: Vec<_> = std::iter::successors(Some(NodeId::ROOT), |at| after(&tree, *at)).collect();
        assert_eq!(all.len(), tree.len());
        let paths: Vec<_> = all.iter().map(|node| tree.path(*node)).collect();
        assert!(paths.is_sorted(), "{paths:?}");
    }

    #[test]
    fn reading_all_in_turn_fills_each_once_and_nearly_all_ahead() {
        let tree = tree(40, 25);
        let mut streams = Streams::default();
        let mut filled = std::collections::HashSet::new();
        let mut ahead = 0;
        for node in files(&tree) {
            ahead += usize::from(filled.contains(&node));
            for node in streams.read(&tree, node, filled.contains(&node)) {
                assert!(filled.insert(node), "filled twice");
            }
        }
        assert!(ahead > 990, "{ahead} of 1000 were filled ahead");
    }

    #[test]
    fn reading_here_and_there_fills_nothing() {
        let tree = tree(40, 25);
        let mut streams = Streams::default();
        let all = files(&tree);
        for n in 0..200 {
            assert_eq!(streams.read(&tree, all[(n * 389) % all.len()], false), []);
        }
    }

    #[test]
    fn readers_in_different_parts_have_a_stream_each() {
        let tree = tree(40, 25);
        let mut streams = Streams::default();
        let all = files(&tree);
        let mut filled = std::collections::HashSet::new();
        let mut missed = 0;
        for n in 0..200 {
            for reader in 0..4 {
                let node = all[reader * 250 + n];
                missed += usize::from(!filled.contains(&node));
                filled.extend(streams.read(&tree, node, filled.contains(&node)));
            }
        }
        assert!(missed <= 8, "{missed} were not filled ahead");
    }

    #[test]
    fn a_reader_that_leaves_out_some_is_followed() {
        let tree = tree(40, 25);
        let mut streams = Streams::default();
        let mut filled = std::collections::HashSet::new();
        let mut missed = 0;
        for node in files(&tree).into_iter().step_by(3) {
            missed += usize::from(!filled.contains(&node));
            filled.extend(streams.read(&tree, node, filled.contains(&node)));
        }
        assert!(missed < 10, "{missed} of 334 were not filled ahead");
    }
}
