//! Forks that were restored or discarded, and the inodes of them that the kernel still knows.
//!
//! A restored fork is a new fork. Its unchanged files, and folders at the same path, keep their inodes, so a shell in such a
//! folder sees the restored files. All other inodes that the kernel knows stay with the old fork: open files can be read to
//! their end, and folders answer ESTALE. The new fork uses other numbers for these files.
//!
//! Then the kernel drops names that lead to other files now, and forgets inodes that no program uses. Those that it does not
//! forget are open, watched, or some program's working directory. They are announced by name (see `departures.rs`): as removed,
//! and as created.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use super::fork_table::ForkTable;
use super::invalidation::Invalidation;
use super::key::{Ino, Key, Slot};
use super::mounted::Mounted;
use super::node::{BuiltinDir, Node};
use super::nodes::Nodes;
use crate::fork::{self, Fork};
use crate::sync::Mutex;

/// A removed fork, and the fork that replaced it.
#[derive(Debug)]
pub struct Replaced {
    pub(super) old: Mounted,
    pub(super) new: Option<Mounted>,
    /// Folders that the new fork has too.
    pub(super) kept: HashSet<fork::Ino>,
    /// The place of its top folder in the mount. Without one, none of its files can be reached.
    pub(super) place: Option<(BuiltinDir, Vec<u8>)>,
    /// Its inodes that the kernel still knows, by their numbers in the fork.
    pub(super) known: OnceLock<HashMap<fork::Ino, Ino>>,
    /// Folders of the old fork that the kernel had forgotten, by the numbers that stand for them now.
    pub(super) pending: Mutex<HashMap<Ino, fork::Ino>>,
}

impl Replaced {
    /// Describes a discarded fork whose folder the kernel has at `place`.
    pub(super) fn discarded(old: Mounted, place: Option<(BuiltinDir, Vec<u8>)>) -> Arc<Self> {
        let (new, kept, known, pending) = Default::default();
        Arc::new(Self { old, new, kept, place, known, pending })
    }

    /// The path of one of its folders in the mount.
    pub(super) fn path_of(&self, folder: &[u8]) -> Option<Vec<u8>> {
        let (parent, name) = self.place.as_ref()?;
        let parts = [parent.path(), name, folder];
        Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/'))
    }

    /// Hands the inodes of a fork to the restored fork that replaces it.
    pub(super) fn hand_over(
        nodes: &Nodes,
        table: &ForkTable,
        old: &Mounted,
        new: &Arc<Fork>,
    ) -> Option<Self> {
        let all_times = nodes.ledger_ends().is_some();
        let known = nodes.known_of(&old.fork);
        let mut compared = new.compare_with(&old.fork, all_times);
        let (mut given, mut barred): (HashMap<fork::Ino, Slot>, HashSet<fork::Ino>) = Default::default();
        let (mut kept, mut folders) = (HashSet::new(), HashSet::new());
        for (number, ino) in known {
            let is_its_number = nodes.known(old.key(ino)) == Some(number);
            if is_its_number && compared.stays(ino) {
                kept.insert(ino);
                if old.key(ino).slot() != old.slot {
                    given.insert(ino, old.key(ino).slot());
                }
                if compared.folder_stays(ino) {
                    folders.insert(ino);
                }
            } else {
                barred.insert(ino);
            }
        }
        // Files of forks that were replaced before.
        let is_known = |ino: &fork::Ino| nodes.in_kernel_by(Key::of_fork(old.slot, *ino)).is_some();
        let before = old.aside.iter().flat_map(|aside| aside.keys());
        barred.extend(before.filter(|ino| !kept.contains(ino) && is_known(ino)));
        let mounted = table.hand_over(old, new, given, &barred)?;
        nodes.hand_over(&old.fork, &mounted, |ino| kept.contains(&ino));
        let place = Some((BuiltinDir::Forks, new.name().into_bytes()));
        let (known, pending) = Default::default();
        Some(Self { old: old.clone(), new: Some(mounted), kept: folders, place, known, pending })
    }

    /// Lists what the kernel has to drop first after a fork was replaced.
    pub(super) fn outdated(&self, nodes: &Nodes) -> Vec<Invalidation> {
        let old = &self.old;
        let Some(new) = &self.new else {
            let name = self.place.iter().map(|(folder, name)| Invalidation::Name(folder.ino(), name.clone()));
            return name.collect();
        };
        let mut stale = Vec::new();
        let frame = self.kept.iter().filter(|ino| ino.is_frame() || **ino == fork::Ino::FS);
        for folder in frame {
            let Some(number) = nodes.known(new.key(*folder)) else { continue };
            stale.push(Invalidation::Inode(number));
            let (Ok(was), Ok(is)) = (old.fork.listed(*folder), new.fork.listed(*folder)) else { continue };
            let is_kept =
                |ino: fork::Ino| (ino.is_frame() || ino == fork::Ino::FS) && self.kept.contains(&ino);
            let gone =
                was.iter().filter(|(_, (ino, _))| nodes.in_kernel(old, *ino).is_some() && !is_kept(*ino));
            // The kernel may have cached that these names do not exist.
            let come = is.iter().filter(|(name, _)| !was.contains_key(*name));
            stale.extend(gone.chain(come).map(|(name, _)| Invalidation::Name(number, name.to_vec())));
        }
        stale
    }

    /// Returns the number of a folder in the old fork, for the thread that announces.
    pub(super) fn past_folder(&self, nodes: &Nodes, folder: Ino) -> Option<fork::Ino> {
        if let Some(ino) = self.pending.lock().get(&folder) {
            return Some(*ino);
        }
        match nodes.get(folder).ok()? {
            Node::Forked { mounted, ino } => {
                let of_it =
                    mounted.is_same(&self.old) || self.new.as_ref().is_some_and(|new| mounted.is_same(new));
                of_it.then_some(ino)
            }
            _ => None,
        }
    }
}
