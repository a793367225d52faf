//! `.pfimg/`: the files by which the daemon describes itself.
//!
//! Each reading gets a new version under a new inode, so that neither the kernel's cached pages nor its cached size can be
//! outdated. A program that first looks and then opens, as `cp` does, gets the version that it looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::answer::Entry;
use super::attempt::{Attempt, may_wait};
use super::documents::Documents;
use super::node::Node;
use super::nodes::Nodes;
use super::readdir::{Emit, list_changing};
use crate::error::ErrorKind;
use crate::layers::world::Kind;
use crate::sync::Mutex;
use crate::sync::wait::MayWait;

/// A file in `.pfimg/`.
struct ControlFile {
    name: &'static str,
    /// Makes the bytes. It may wait for the disk, so an event loop leaves the lookup to a worker.
    make: fn(&Documents, MayWait) -> Attempt<Vec<u8>>,
}

/// The files in `.pfimg/`.
const CONTROL_FILES: [ControlFile; 4] = [
    ControlFile { name: "audit.json", make: Documents::audit },
    ControlFile { name: "events.jsonl", make: Documents::events },
    ControlFile { name: "metrics", make: Documents::metrics },
    ControlFile { name: "status.json", make: Documents::status },
];

/// How long an unread version stays the one of its name.
const UNREAD: Duration = Duration::from_millis(100);

/// The newest versions that no program has read yet, by name.
#[derive(Default)]
struct UnreadVersions(Mutex<HashMap<String, (Instant, Node)>>);

impl UnreadVersions {
    /// Returns the unread version of a name, if it is new enough.
    fn of(&self, name: &str) -> Option<Node> {
        let mut all = self.0.lock();
        all.retain(|_, (made, _)| made.elapsed() < UNREAD);
        all.get(name).map(|(_, node)| node.clone())
    }

    fn add(&self, name: &str, node: &Node) {
        self.0.lock().insert(name.to_owned(), (Instant::now(), node.clone()));
    }

    fn was_read(&self, version: u64) {
        self.0.lock().retain(|_, (_, node)| !matches!(node, Node::Doc { key, .. } if *key == version));
    }
}

/// The folder of the daemon's documents.
pub(super) struct ControlDir {
    nodes: Arc<Nodes>,
    documents: Documents,
    unread: UnreadVersions,
    versions: AtomicU64,
}

impl ControlDir {
    pub(super) fn new(nodes: Arc<Nodes>, documents: Documents) -> Self {
        let (unread, versions) = (UnreadVersions::default(), AtomicU64::new(1));
        Self { nodes, documents, unread, versions }
    }

    /// Finds a file, and makes a new version of it.
    pub(super) fn lookup(&self, name: &str) -> Attempt<Entry> {
        if let Some(node) = self.unread.of(name) {
            return self.nodes.own_entry(self.nodes.keyed(node), Duration::ZERO);
        }
        let file = CONTROL_FILES.iter().find(|file| file.name == name).ok_or(ErrorKind::NotFound)?;
        let bytes = (file.make)(&self.documents, may_wait()?)?.into();
        let mtime_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let key = self.versions.fetch_add(1, Ordering::Relaxed);
        let node = Node::Doc { bytes, mtime_ns, key };
        self.unread.add(name, &node);
        self.nodes.own_entry(self.nodes.keyed(node), Duration::ZERO)
    }

    /// Lists the folder.
    pub(super) fn list(&self, cookie: u64, emit: Emit<'_>) {
        let names = CONTROL_FILES.iter().map(|file| (file.name, Kind::File));
        list_changing(names, cookie, self.nodes.is_narrow(), emit);
    }

    /// Notes that a version was read: from now on its name stands for a new version.
    pub(super) fn was_read(&self, version: u64) {
        self.unread.was_read(version);
    }
}
