//! Names to announce to programs that watch folders (inotify(7)).
//!
//! The kernel raises events for what programs do through the mount. It has no call by which a daemon could raise them. So a
//! thread of the daemon creates or removes names through the mount that appeared or disappeared without the kernel
//! ([`crate::fuse`]). The daemon recognizes the requests of that thread, changes nothing, and answers with the present
//! state ([`super::announcer`]). To the kernel, the name was created or removed at that moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::announcement::{Announcement, What};
use super::attempt::OnDisk;
use super::node::BuiltinDir;
use super::replaced::Replaced;
use crate::digest::Digest;
use crate::layers::world::Kind;
use crate::sync::Mutex;

/// Names that are still to be announced.
#[derive(Default)]
pub(super) struct Announcements {
    pending: Mutex<Vec<Announcement>>,
    departed: Mutex<Vec<Arc<Replaced>>>,
    /// The tags that watchers know of.
    tags: Mutex<BTreeMap<String, Digest>>,
}

impl Announcements {
    /// Notes a change by a request that the kernel does not know.
    pub(super) fn add(&self, what: Announcement) {
        self.pending.lock().push(what);
    }

    /// Notes a fork that was discarded or replaced.
    pub(super) fn depart(&self, replaced: Arc<Replaced>) {
        self.departed.lock().push(replaced);
    }

    /// Notes a change of tags that came through the kernel.
    pub(super) fn knows_tag(&self, name: &str, image: Option<Digest>) {
        let mut tags = self.tags.lock();
        match image {
            Some(image) => drop(tags.insert(name.to_owned(), image)),
            None => drop(tags.remove(name)),
        }
    }

    /// Takes the changes by requests since the last call that the kernel does not know.
    pub(super) fn take_pending(&self) -> Vec<Announcement> {
        std::mem::take(&mut self.pending.lock())
    }

    /// Takes the forks that were discarded since the last call.
    pub(super) fn take_departed(&self) -> Vec<Arc<Replaced>> {
        std::mem::take(&mut self.departed.lock())
    }

    /// Returns announcements for tags that were added, removed or moved since the last call.
    pub(super) fn of_tags(&self, store: &OnDisk) -> Vec<Announcement> {
        let Ok(store) = store.here() else { return Vec::new() };
        let Ok(names) = store.tags().names() else { return Vec::new() };
        let now: BTreeMap<_, _> = names
            .into_iter()
            .filter_map(|name| store.tags().get(&name).ok().map(|image| (name, image)))
            .collect();
        let before = std::mem::replace(&mut *self.tags.lock(), now.clone());
        let tag = |name: &String, what| Announcement::of(BuiltinDir::Tags, name.as_str(), what);
        let mut all: Vec<_> = before
            .iter()
            .filter(|(name, image)| now.get(*name) != Some(image))
            .map(|(name, _)| tag(name, What::Gone(Kind::Symlink)))
            .collect();
        let made = now.iter().filter(|(name, image)| before.get(*name) != Some(image));
        all.extend(made.map(|(name, _)| tag(name, What::Made(Kind::Symlink))));
        all
    }
}
