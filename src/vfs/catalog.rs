//! Lists the present images and tags. Reads names only; reads manifests when the order of creation is needed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};

use super::key::{Ino, hash_bytes, mix};
use super::node::{BuiltinDir, Node};
use super::nodes::Nodes;
use crate::digest::Digest;
use crate::error::Result;
use crate::images::times::nanoseconds;
use crate::store::{Home, MarkerError, Store};
use crate::sync::{Mutex, RwLock};

/// A folder that changed less than this before it was listed may change again without a new time.
const SETTLED: Duration = Duration::from_millis(100);

/// The longest name of an agent's folder, in bytes.
const MAX_AGENT: usize = 200;

/// A folder's modification time in seconds and nanoseconds; none if it cannot be read.
type Stamp = Option<(i64, i64)>;

struct Listing {
    stamp: Stamp,
    settled: bool,
    ids: Arc<[Digest]>,
    /// Hash of `ids`.
    hash: u64,
    /// Counts changes of `ids`: an image that was added and removed again leaves the same list.
    changes: u64,
}

/// When an image was made, which agent's folder shows it, and whether it may be `latest`. None if its manifest cannot be read.
type Made = Option<(DateTime<Utc>, Arc<str>, bool)>;

/// The times and agents of images, from their manifests.
#[derive(Default)]
struct Index {
    /// The list it was made from.
    ids: Arc<[Digest]>,
    hash: u64,
    known: HashMap<Digest, Made>,
    latest: Option<Digest>,
    agents: BTreeMap<Arc<str>, BTreeMap<String, Digest>>,
    /// When the newest image of each agent was made.
    newest: HashMap<Arc<str>, DateTime<Utc>>,
}

/// The images of the mounted store.
pub(super) struct Catalog {
    store: Arc<Store>,
    listing: Mutex<Listing>,
    /// The last list, for callers that do not wait for a newer one.
    listed: RwLock<Arc<[Digest]>>,
    index: RwLock<Arc<Index>>,
    /// Held while an index is made.
    indexing: Mutex<()>,
    home: Arc<Home>,
}

/// Changes in the store since the watcher last looked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Whether the list of images has changed, even if it is the same again.
    pub(crate) images: bool,
    pub(crate) removed: Vec<Digest>,
    pub(crate) added: Vec<Digest>,
    pub(crate) tags: bool,
}

/// What the watcher saw last.
#[derive(Debug)]
pub(crate) struct Watched {
    ids: Arc<[Digest]>,
    changes: u64,
    tags: Stamp,
}

impl Watched {
    /// Number of images at that time.
    pub(super) fn images(&self) -> usize {
        self.ids.len()
    }
}

impl Catalog {
    pub(super) fn new(store: Arc<Store>, home: Arc<Home>) -> Self {
        let listing =
            Mutex::new(Listing { stamp: None, settled: false, ids: Arc::new([]), changes: 0, hash: 0 });
        let (index, indexing) = Default::default();
        Self { store, listing, listed: RwLock::new(Arc::new([])), index, indexing, home }
    }

    /// Returns the ids of all images, sorted. Lists the folder only if it has changed.
    pub(super) fn ids(&self) -> Result<Arc<[Digest]>> {
        self.ids_hashed().map(|(ids, _)| ids)
    }

    /// Like [`Catalog::ids`], with a hash of the list, which stays the same after a remount.
    pub(super) fn ids_hashed(&self) -> Result<(Arc<[Digest]>, u64)> {
        let mut listing = self.listing.lock();
        let stamp = self.store.images().changed_at();
        if stamp.is_none() {
            self.home.require()?;
        }
        if !listing.settled || listing.stamp != stamp {
            let ids = self.store.images().ids(&mut |odd| {
                tracing::debug!("{} is not an image marker", odd.display());
            })?;
            if *listing.ids != *ids {
                listing.hash = ids.iter().fold(1, |hash, id| mix(hash, hash_bytes(id.as_bytes())));
                listing.ids = ids.into();
                *self.listed.write() = Arc::clone(&listing.ids);
                listing.changes += 1;
            }
            listing.stamp = stamp;
            listing.settled = is_settled(stamp);
        }
        Ok((Arc::clone(&listing.ids), listing.hash))
    }

    /// Whether an image existed when the folder was last listed. Does not read the disk.
    pub(super) fn listed(&self, id: &Digest) -> bool {
        self.listed.read().binary_search(id).is_ok()
    }

    /// Returns the newest image, and the hash of the list of images. Reads manifests that were not read before.
    pub(super) fn latest(&self) -> Result<Option<(Digest, u64)>> {
        self.with_index(|index| index.latest.map(|id| (id, index.hash)))
    }

    /// Names of the agents' folders.
    pub(super) fn agents(&self) -> Result<Vec<Arc<str>>> {
        self.with_index(|index| index.agents.keys().cloned().collect())
    }

    /// An agent's images by name of link.
    pub(super) fn agent(&self, name: &str) -> Result<Option<BTreeMap<String, Digest>>> {
        self.with_index(|index| index.agents.get(name).cloned())
    }

    /// When an agent's newest image was made, in nanoseconds since 1970, from the present index. Does not read the disk.
    pub(super) fn newest_of(&self, agent: &str) -> Option<i64> {
        self.index.read().newest.get(agent).map(nanoseconds)
    }

    /// One of an agent's images.
    pub(super) fn agent_image(&self, agent: &str, name: &str) -> Result<Option<Digest>> {
        self.with_index(|index| index.agents.get(agent)?.get(name).copied())
    }

    /// Whether an agent has a folder; its name as stored.
    pub(super) fn agent_name(&self, name: &str) -> Result<Option<Arc<str>>> {
        self.with_index(|index| index.agents.get_key_value(name).map(|(name, _)| Arc::clone(name)))
    }

    /// Lists the folders whose cached listings are outdated after images were added or removed.
    pub(super) fn listings(&self, nodes: &Nodes) -> Vec<Ino> {
        let mut listings = vec![BuiltinDir::Images.ino(), BuiltinDir::Agents.ino()];
        let agents: Vec<_> = self.index.read().agents.keys().cloned().collect();
        let known = |name| nodes.known(nodes.keyed(Node::Agent(name)).key);
        listings.extend(agents.into_iter().filter_map(known));
        listings
    }

    fn with_index<T>(&self, f: impl FnOnce(&Index) -> T) -> Result<T> {
        let (ids, hash) = self.ids_hashed()?;
        let of_these = |index: &Index| Arc::ptr_eq(&index.ids, &ids);
        let mut index = Arc::clone(&self.index.read());
        if !of_these(&index) {
            // Other threads can use the old index while this one is built.
            let _turn = self.indexing.lock();
            index = Arc::clone(&self.index.read());
            if !of_these(&index) {
                index = Arc::new(self.reindex(&index, ids, hash));
                *self.index.write() = Arc::clone(&index);
            }
        }
        Ok(f(&index))
    }

    /// Builds the index of a list of ids. Reads only manifests that the index before it lacks.
    fn reindex(&self, before: &Index, ids: Arc<[Digest]>, hash: u64) -> Index {
        let mut index = Index { hash, ..Index::default() };
        let mut known = HashMap::with_capacity(ids.len());
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        let mut newest = None;
        for id in &*ids {
            let entry = match before.known.get(id) {
                Some(entry) => entry.clone(),
                None => match self.store.image(id) {
                    Ok(image) => {
                        let folder = agent_folder(&image.manifest.agent.kind);
                        let name = names.entry(folder).or_insert_with_key(|name| name.as_str().into());
                        let counts = image.manifest.may_be_latest();
                        Some((image.manifest.created_at, Arc::clone(name), counts))
                    }
                    Err(MarkerError::Absent(_)) => None,
                    Err(error) => {
                        tracing::warn!("{error}; latest and agents/ leave the image out");
                        None
                    }
                },
            };
            if let Some((created, agent, counts)) = &entry {
                if *counts {
                    newest = newest.max(Some((*created, *id)));
                }
                let of_agent = index.newest.entry(Arc::clone(agent)).or_insert(*created);
                *of_agent = (*of_agent).max(*created);
                let name = format!("{}-{}", created.format("%Y%m%dT%H%M%SZ"), &id.hex()[..12]);
                index.agents.entry(Arc::clone(agent)).or_default().insert(name, *id);
            }
            known.insert(*id, entry);
        }
        index.latest = newest.map(|(_, id)| id);
        index.known = known;
        index.ids = ids;
        index
    }

    /// Returns the state that a new watcher compares with.
    pub(super) fn watch(&self) -> Watched {
        let ids = self.ids().unwrap_or_default();
        Watched { ids, changes: self.listing.lock().changes, tags: stamp(self.store.tags().dir()) }
    }

    /// Returns the changes since `watched`, and updates it.
    pub(super) fn changes(&self, watched: &mut Watched) -> Changes {
        let mut changes = Changes::default();
        self.home.watch();
        if self.home.check().is_err() {
            // The store was moved; no image was added or removed.
            return changes;
        }
        if self.ids().is_ok() {
            let (ids, count) = {
                let listing = self.listing.lock();
                (Arc::clone(&listing.ids), listing.changes)
            };
            if count != watched.changes {
                changes.images = true;
                changes.removed =
                    watched.ids.iter().filter(|id| ids.binary_search(id).is_err()).copied().collect();
                changes.added =
                    ids.iter().filter(|id| watched.ids.binary_search(id).is_err()).copied().collect();
                (watched.ids, watched.changes) = (ids, count);
            }
        }
        let tags = stamp(self.store.tags().dir());
        // An unsettled stamp counts as a change again, so that the last change of a burst is not missed.
        changes.tags = tags != watched.tags || !is_settled(tags);
        watched.tags = tags;
        changes
    }
}

fn stamp(dir: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir).ok().map(|m| (m.mtime(), m.mtime_nsec()))
}

fn is_settled(stamp: Stamp) -> bool {
    let Some((seconds, nanoseconds)) = stamp else { return true };
    let changed = UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds as u32);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED)
}

/// Returns the name of the folder that shows an agent's images. A kind is any text, so characters that a name cannot have are
/// escaped.
fn agent_folder(kind: &str) -> String {
    let mut name = String::with_capacity(kind.len());
    for c in kind.chars() {
        if name.len() >= MAX_AGENT {
            break;
        }
        let dot_first = c == '.' && name.is_empty();
        if c == '/' || c == '%' || c.is_control() || dot_first {
            let _ = write!(name, "%{:02x}", c as u32);
        } else {
            name.push(c);
        }
    }
    if name.is_empty() { "%".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    fn image(store: &Store, second: i64, kind: &str) -> Digest {
        let mut manifest = sample();
        manifest.created_at += chrono::Duration::seconds(second);
        manifest.agent.kind = kind.into();
        store.put_manifest(&manifest).unwrap()
    }

    fn catalog(store: &Arc<Store>) -> Catalog {
        Catalog::new(Arc::clone(store), Arc::new(Home::new(store.root())))
    }

    #[test]
    fn added_and_removed_images_are_noticed_and_latest_follows() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(dir.path()).unwrap());
        let catalog = catalog(&store);
        let mut watched = catalog.watch();
        assert_eq!(catalog.latest().unwrap(), None);
        let a = image(&store, 1, "x");
        let b = image(&store, 2, "x");
        let changes = catalog.changes(&mut watched);
        assert!(changes.images && changes.removed.is_empty());
        let latest = |catalog: &Catalog| catalog.latest().unwrap().map(|(id, _)| id);
        assert_eq!(latest(&catalog), Some(b));
        std::fs::remove_file(store.images().marker(&b)).unwrap();
        assert_eq!(catalog.changes(&mut watched).removed, [b]);
        assert_eq!(latest(&catalog), Some(a));
        assert!(!catalog.changes(&mut watched).images);
        // A program may list the folder between two looks, so the change counts even if the list is the same again.
        let c = image(&store, 3, "x");
        assert_eq!(catalog.ids().unwrap().len(), 2);
        std::fs::remove_file(store.images().marker(&c)).unwrap();
        assert!(catalog.changes(&mut watched).images);
    }

    #[test]
    fn a_change_of_tags_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(dir.path()).unwrap());
        let catalog = catalog(&store);
        let mut watched = catalog.watch();
        assert!(!catalog.changes(&mut watched).tags);
        store.tags().set("t", &Digest::of(b""), false).unwrap();
        assert!(catalog.changes(&mut watched).tags);
    }

    #[test]
    fn agents_are_folders_whatever_their_kind_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(dir.path()).unwrap());
        let catalog = catalog(&store);
        for kind in ["claude-code", "../../etc", "", ".hidden", "a\nb", &"x".repeat(1000)] {
            image(&store, 0, kind);
        }
        let names = catalog.agents().unwrap();
        assert_eq!(names.len(), 6);
        for name in &names {
            assert!(
                name.len() < 255 && !name.starts_with('.') && !name.contains(['/', '\0', '\n']),
                "{name}"
            );
            assert_eq!(catalog.agent(name).unwrap().unwrap().len(), 1);
        }
    }
}
