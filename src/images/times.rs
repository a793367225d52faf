//! The times of images whose trees record none.
//!
//! Let I0 be an image, I1 its first parent, and so on, as far as the store has readable manifests. A path's
//! time in I0 is `created_at` of the last Ij such that I0 … Ij all have the path with the same kind and
//! content. Layers and pages follow the same rule by their digests. The line ends for everything at an image
//! whose id begins with six zero bits: all descendants agree on it, so neighbours agree on the time of an
//! unchanged path, and a first look reads 64 trees on average in a long line.
//!
//! [`NodeTimes`] has the rule for one step, `kept` the file that stores an image's times.

mod kept;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Mutex;
use chrono::{DateTime, Utc};
use lru::LruCache;

use crate::digest::Digest;
use crate::images::times::kept::Kept;
use crate::store::{LayerFile, MarkerError, Store};
use crate::tree::{NodeTimes, Tree};

/// An image with more ancestors up to the end of its line ends the line itself. No honest line comes near: of
/// a thousand images one ends the line with a probability of all but one in ten million.
const LONGEST: u32 = 1024;

/// Images whose position in their line is kept in memory: about 500 bytes each.
const LINKS: usize = 16_384;

/// Bytes of nodes' times that are kept in memory. The newest entry stays, whatever its size.
const NODES: usize = 16 << 20;

/// Images whose pages' times are kept in memory.
const PAGES: usize = 64;

/// Layers of an image, in the order of [`crate::store::Manifest::blobs`].
const LAYERS: usize = 8;

/// Reads a tree by its digest; nothing if it cannot be read.
pub type ReadTree<'a> = &'a dyn Fn(&Digest) -> Option<Arc<Tree>>;

/// The pages of a cache layer: index, K and V, sorted by index.
pub type PageList = Vec<(u32, Digest, Digest)>;

/// Reads the pages of a cache layer by its digest; nothing if it cannot be read.
pub type ReadPages<'a> = &'a dyn Fn(&Digest) -> Option<PageList>;

/// Whether an image ends every line, for all of its descendants alike.
pub fn is_fixed_point(image: &Digest) -> bool {
    image.as_bytes()[0] >> 2 == 0
}

/// A moment in nanoseconds since 1970. A moment that 64 bits cannot hold becomes the last one that they can.
pub fn nanoseconds(moment: &DateTime<Utc>) -> i64 {
    let cut = if moment.timestamp() < 0 { i64::MIN } else { i64::MAX };
    moment.timestamp_nanos_opt().unwrap_or(cut)
}

/// An image's position in its line.
#[derive(Debug)]
struct Link {
    id: Digest,
    created_ns: i64,
    /// The next image of the line; none at its end.
    parent: Option<Digest>,
    /// The last image of the line.
    end: Digest,
    /// The number of images behind this one.
    behind: u32,
    blobs: [Digest; LAYERS],
    times: [i64; LAYERS],
}

impl Link {
    fn tree(&self) -> &Digest {
        &self.blobs[WORLD]
    }

    fn pages(&self) -> &Digest {
        &self.blobs[CACHE]
    }
}

/// The indices of the world's tree and the page manifest among an image's layers.
const CACHE: usize = 2;
const WORLD: usize = 3;

/// The parts of a manifest that this module needs.
struct Read {
    id: Digest,
    created_ns: i64,
    blobs: [Digest; LAYERS],
}

/// Times of an image's pages: index, K and V, sorted by index.
pub type PageTimes = Vec<(u32, [i64; 2])>;

/// Nodes' times in memory.
struct Nodes {
    lru: LruCache<Digest, Arc<NodeTimes>>,
    bytes: usize,
}

/// The known times of a store's images. An answer stays the same for the life of this value, as long as
/// memory or the cache's folder keeps it or the store still has the line.
pub struct Times {
    store: Arc<Store>,
    kept: Option<Kept>,
    links: Mutex<LruCache<Digest, Arc<Link>>>,
    nodes: Mutex<Nodes>,
    pages: Mutex<LruCache<Digest, Arc<PageTimes>>>,
    /// One thread derives the times of an image; others wait for it.
    turns: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    trees_read: AtomicU64,
}

impl std::fmt::Debug for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Times").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

fn at_most<V>(number: usize) -> Mutex<LruCache<Digest, V>> {
    Mutex::new(LruCache::new(NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)))
}

impl Times {
    /// Makes one for a store. `cache_dir` is a folder that keeps times between runs; without it the answers
    /// are the same.
    pub fn new(store: Arc<Store>, cache_dir: Option<PathBuf>) -> Self {
        Self {
            store,
            kept: cache_dir.map(|dir| Kept::new(&dir)),
            links: at_most(LINKS),
            nodes: Mutex::new(Nodes { lru: LruCache::unbounded(), bytes: 0 }),
            pages: at_most(PAGES),
            turns: Mutex::default(),
            trees_read: AtomicU64::new(0),
        }
    }

    /// Trees that were read to derive times.
    pub fn trees_read(&self) -> u64 {
        self.trees_read.load(Ordering::Relaxed)
    }

    /// When an image was made, in nanoseconds since 1970.
    pub fn created(&self, image: &Digest) -> Result<i64, MarkerError> {
        self.link(image).map(|link| link.created_ns)
    }

    /// The same if it is known already.
    pub fn created_known(&self, image: &Digest) -> Option<i64> {
        self.links.lock().get(image).map(|link| link.created_ns)
    }

    /// The number of images behind one in its line; 0 if that cannot be found out.
    pub fn behind(&self, image: &Digest) -> u32 {
        self.link(image).map_or(0, |link| link.behind)
    }

    /// The digest of an image's tree if its position in its line is known already.
    pub fn tree_known(&self, image: &Digest) -> Option<Digest> {
        self.links.lock().get(image).map(|link| *link.tree())
    }

    /// The time of a layer's file.
    pub fn layer(&self, image: &Digest, file: LayerFile) -> Result<i64, MarkerError> {
        let link = self.link(image)?;
        Ok(match file {
            LayerFile::ModelBase => link.times[0],
            LayerFile::ModelDiff => link.times[1],
            LayerFile::CacheManifest => link.times[CACHE],
            LayerFile::WorldFs => link.times[WORLD],
            LayerFile::WorldEnv => link.times[4],
            LayerFile::WorldProcs => link.times[5],
            LayerFile::EffectsLedger => link.times[6],
            LayerFile::TraceMessages => link.times[7],
        })
    }

    /// An image's position in its line. Reads the manifests that were not read yet.
    fn link(&self, image: &Digest) -> Result<Arc<Link>, MarkerError> {
        let mut read: Vec<Read> = Vec::new();
        let mut at = *image;
        let mut older = loop {
            if let Some(link) = self.links.lock().get(&at) {
                break Some(Arc::clone(link));
            }
            let manifest = match self.store.image(&at) {
                Ok(found) => found.manifest,
                Err(error) if read.is_empty() => return Err(error),
                // A parent that is gone or cannot be read ends the line.
                Err(_) => break None,
            };
            let blobs = manifest.blobs().map(|(_, digest)| digest);
            read.push(Read { id: at, created_ns: nanoseconds(&manifest.created_at), blobs });
            match manifest.parents.first() {
                Some(parent) if !is_fixed_point(&at) => at = *parent,
                _ => break None,
            }
            if read.len() > LONGEST as usize {
                // The length of the rest is unknown: this image ends the line itself.
                read.truncate(1);
                let link = Self::linked(&read[0], None, LONGEST);
                return Ok(self.keep(link));
            }
        };
        for read in read.into_iter().rev() {
            let behind = older.as_ref().map_or(0, |older| older.behind.saturating_add(1));
            let link = Self::linked(&read, older.as_deref(), behind);
            older = Some(self.keep(link));
        }
        older.ok_or(MarkerError::Absent(*image))
    }

    fn linked(read: &Read, older: Option<&Link>, behind: u32) -> Link {
        let older = older.filter(|_| behind < LONGEST && !is_fixed_point(&read.id));
        let mut times = [read.created_ns; LAYERS];
        if let Some(older) = older {
            for ((time, blob), (then, was)) in
                times.iter_mut().zip(&read.blobs).zip(older.times.iter().zip(&older.blobs))
            {
                if blob == was {
                    *time = *then;
                }
            }
        }
        Link {
            id: read.id,
            created_ns: read.created_ns,
            parent: older.map(|older| older.id),
            end: older.map_or(read.id, |older| older.end),
            behind: if older.is_none() && behind < LONGEST { 0 } else { behind },
            blobs: read.blobs,
            times,
        }
    }

    /// Keeps an image's position, unless another thread was faster: an answer never changes.
    fn keep(&self, link: Link) -> Arc<Link> {
        Arc::clone(self.links.lock().get_or_insert(link.id, || Arc::new(link)))
    }

    /// The times of an image's nodes if they are in memory.
    pub fn nodes_known(&self, image: &Digest) -> Option<Arc<NodeTimes>> {
        self.nodes.lock().lru.get(image).cloned()
    }

    /// The times of an image's nodes; `tree` is its tree. May read up to 1,024 trees, 64 on average in a long
    /// line: for a thread that may wait.
    pub fn nodes(
        &self,
        image: &Digest,
        tree: &Arc<Tree>,
        read_tree: ReadTree<'_>,
    ) -> Result<Arc<NodeTimes>, MarkerError> {
        if let Some(known) = self.nodes_known(image) {
            return Ok(known);
        }
        let turn = Arc::clone(self.turns.lock().entry(*image).or_default());
        let guard = turn.lock();
        let found = match self.nodes_known(image) {
            Some(known) => Ok(known),
            None => self.line_of(image).map(|line| {
                let times = self
                    .derive(&line, tree, read_tree, true)
                    .or_else(|| self.derive(&line, tree, read_tree, false))
                    .unwrap_or_else(|| Arc::new(NodeTimes::all(line[0].created_ns)));
                self.keep_nodes(image, times)
            }),
        };
        drop(guard);
        self.turns.lock().remove(image);
        found
    }

    fn keep_nodes(&self, image: &Digest, times: Arc<NodeTimes>) -> Arc<NodeTimes> {
        let mut freed = Vec::new();
        let mut nodes = self.nodes.lock();
        nodes.bytes += times.heap_bytes();
        if let Some(old) = nodes.lru.put(*image, Arc::clone(&times)) {
            nodes.bytes -= old.heap_bytes();
        }
        while nodes.bytes > NODES && nodes.lru.len() > 1 {
            let Some((_, old)) = nodes.lru.pop_lru() else { break };
            nodes.bytes -= old.heap_bytes();
            freed.push(old);
        }
        times
    }

    /// The image and all that are behind it, up to the end of its line.
    fn line_of(&self, image: &Digest) -> Result<Vec<Arc<Link>>, MarkerError> {
        let mut line = vec![self.link(image)?];
        while let Some(parent) = line.last().and_then(|link| link.parent) {
            // Known a moment ago; missing only if the store lost it since.
            let Ok(link) = self.link(&parent) else { break };
            line.push(link);
        }
        Ok(line)
    }

    /// Derives the times of the first image of a line. Nothing if a file that was `believed` does not fit its
    /// tree.
    fn derive(
        &self,
        line: &[Arc<Link>],
        tree: &Arc<Tree>,
        read_tree: ReadTree<'_>,
        believed: bool,
    ) -> Option<Arc<NodeTimes>> {
        let allowed = |moment: i64| line.iter().any(|link| link.created_ns == moment);
        let remembered = |at: usize| {
            if let Some(known) = self.nodes_known(&line[at].id) {
                return Some(known);
            }
            let kept = self.kept.as_ref().filter(|_| believed && at + 1 < line.len())?;
            kept.read(&line[at].id, &line[at].end, &allowed).map(Arc::new)
        };
        let last = line.len() - 1;
        let (start, mut times) = (0..last)
            .find_map(|at| Some((at, remembered(at)?)))
            .unwrap_or_else(|| (last, Arc::new(NodeTimes::all(line[last].created_ns))));
        let read = |at: usize| {
            if at == 0 || line[at].tree() == line[0].tree() {
                return Some(Arc::clone(tree));
            }
            self.trees_read.fetch_add(1, Ordering::Relaxed);
            read_tree(line[at].tree())
        };
        let (mut whole, mut derived) = (line[last].id == line[0].end, false);
        let mut older: Option<Arc<Tree>> = None;
        for at in (0..start).rev() {
            if line[at].tree() == line[at + 1].tree() {
                continue;
            }
            let Some(before) = older.take().or_else(|| read(at + 1)) else {
                // A tree that cannot be read ends the line.
                whole = false;
                times = Arc::new(NodeTimes::all(line[at].created_ns));
                continue;
            };
            if !times.fit(&before) {
                return None;
            }
            let Some(tree) = read(at) else { continue };
            times = Arc::new(times.after(&before, &tree, line[at].created_ns));
            derived = true;
            older = Some(tree);
        }
        if !times.fit(tree) {
            return None;
        }
        if derived
            && whole
            && let Some(kept) = &self.kept
        {
            kept.write(&line[0].id, &line[0].end, &times);
        }
        Some(times)
    }

    /// The times of an image's pages if they are in memory.
    pub fn pages_known(&self, image: &Digest) -> Option<Arc<PageTimes>> {
        self.pages.lock().get(image).cloned()
    }

    /// The times of an image's pages. Reads the page manifests of its line until no page is left: for a
    /// thread that may wait.
    pub fn pages(&self, image: &Digest, read_pages: ReadPages<'_>) -> Result<Arc<PageTimes>, MarkerError> {
        if let Some(known) = self.pages_known(image) {
            return Ok(known);
        }
        let line = self.line_of(image)?;
        let pages = read_pages(line[0].pages()).unwrap_or_default();
        let mut times: PageTimes = pages.iter().map(|(ix, ..)| (*ix, [line[0].created_ns; 2])).collect();
        let mut open: Vec<[bool; 2]> = vec![[true; 2]; pages.len()];
        for (newer, older) in line.iter().zip(line.iter().skip(1)) {
            if newer.pages() != older.pages() {
                let Some(before) = read_pages(older.pages()) else { break };
                for ((ix, k, v), open) in pages.iter().zip(&mut open) {
                    let was = before.binary_search_by_key(ix, |(ix, ..)| *ix).ok().map(|at| &before[at]);
                    open[0] &= was.is_some_and(|(_, was, _)| was == k);
                    open[1] &= was.is_some_and(|(_, _, was)| was == v);
                }
            }
            for ((_, times), open) in times.iter_mut().zip(&open) {
                for (time, open) in times.iter_mut().zip(open) {
                    if *open {
                        *time = older.created_ns;
                    }
                }
            }
            if open.iter().all(|open| *open == [false; 2]) {
                break;
            }
        }
        Ok(Arc::clone(self.pages.lock().get_or_insert(*image, || Arc::new(times))))
    }
}

/// A page's time among those of its image.
pub fn page_time(times: &PageTimes, ix: u32, key: bool) -> Option<i64> {
    let at = times.binary_search_by_key(&ix, |(ix, _)| *ix).ok()?;
    Some(times[at].1[usize::from(!key)])
}

#[cfg(test)]
mod tests;
