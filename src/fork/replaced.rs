//! Compares a restored fork with the fork that it replaced. A mount keeps the inodes that both have in common.

use std::collections::{HashMap, HashSet};

use super::ino::Ino;
use super::inode::{Body, Inode};
use super::posix::Files;
use super::state::State;
use crate::error::Result;
use crate::layers::world::Kind;

/// A name that changed in a folder that both forks have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedName {
    /// The name.
    pub name: Vec<u8>,
    /// The kind of its file before, if it existed.
    pub before: Option<Kind>,
    /// The kind of its file now, if it exists.
    pub after: Option<Kind>,
}

/// Compares a fork with the one that it replaced, in the states of one moment. Takes no lock.
pub struct Comparison {
    old: State,
    new: State,
    /// Those of `world/fs` and the folders around it that stay.
    frame: HashSet<Ino>,
    /// Results of [`Comparison::folder_stays`].
    folders: HashMap<Ino, bool>,
    all_times: bool,
}

impl std::fmt::Debug for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparison").finish_non_exhaustive()
    }
}

impl Comparison {
    /// Compares the files of a fork with those of the fork that it replaced. With `all_times`, a file with another change time
    /// counts as changed.
    pub(super) fn of(new: &Files, old: &Files, all_times: bool) -> Self {
        // The kernel may take a folder that was shown again for a removed one.
        let stays = |ino: &Ino| old.shown_again(*ino) == 0 && has_folder(old, *ino) && has_folder(new, *ino);
        let all =
            [Ino::TOP, Ino::MODEL, Ino::CACHE, Ino::PAGES, Ino::WORLD, Ino::FS, Ino::EFFECTS, Ino::TRACE];
        Self {
            frame: all.into_iter().filter(stays).collect(),
            old: old.core.live.read().state.clone(),
            new: new.core.live.read().state.clone(),
            folders: HashMap::new(),
            all_times,
        }
    }

    /// Lists the names in a folder of both forks that lead to a different file than in the fork that was replaced.
    pub(super) fn changed_names(
        &mut self,
        new: &Files,
        old: &Files,
        folder: Ino,
    ) -> Result<Vec<ChangedName>> {
        let (was, mut is) = (old.listed(folder)?, new.listed(folder)?);
        let mut changed = Vec::new();
        for (name, (ino, kind)) in was {
            let after = is.remove(&name);
            if after.is_some_and(|(now, _)| now == ino) && self.stays(ino) {
                continue;
            }
            let after = after.map(|(_, kind)| kind);
            changed.push(ChangedName { name: name.to_vec(), before: Some(kind), after });
        }
        changed.extend(is.into_iter().map(|(name, (_, kind))| ChangedName {
            name: name.to_vec(),
            before: None,
            after: Some(kind),
        }));
        Ok(changed)
    }

    /// Whether a number means the same as before: a folder at the same path, or an unchanged file.
    pub fn stays(&mut self, ino: Ino) -> bool {
        if ino.is_frame() || ino == Ino::FS {
            return self.frame.contains(&ino);
        }
        let kinds = (self.old.kind(ino), self.new.kind(ino));
        if kinds.0 == Some(Kind::Dir) {
            return self.folder_stays(ino);
        }
        kinds.0.is_some() && self.is_in_place(ino) && kinds.0 == self.new.kind(ino) && self.is_unchanged(ino)
    }

    /// Whether both forks have the folder at the same path.
    pub fn folder_stays(&mut self, ino: Ino) -> bool {
        if ino.is_frame() || ino == Ino::FS {
            return self.frame.contains(&ino);
        }
        if let Some(stays) = self.folders.get(&ino) {
            return *stays;
        }
        let stays = self.old.kind(ino) == Some(Kind::Dir)
            && self.is_in_place(ino)
            && self.new.kind(ino) == Some(Kind::Dir);
        self.folders.insert(ino, stays);
        stays
    }

    /// Whether the file's path leads to the same number in both forks. For layers' files it never does.
    fn is_in_place(&mut self, ino: Ino) -> bool {
        let Some((folder, name)) = self.old.place(ino) else { return false };
        !folder.is_frame() && self.folder_stays(folder) && self.new.child(folder, &name) == Some(ino)
    }

    fn is_unchanged(&self, ino: Ino) -> bool {
        let (Some(a), Some(b)) = (self.old.inode(ino), self.new.inode(ino)) else { return false };
        let attributes = |state: &State, inode: &Inode| {
            let attr = state.attr(ino, inode);
            let ctime = if self.all_times { attr.ctime } else { 0 };
            (attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size, attr.mtime, ctime)
        };
        same_body(&a, &b) && a.xattrs == b.xattrs && attributes(&self.old, &a) == attributes(&self.new, &b)
    }
}

/// Whether a fork has this one of the fixed folders.
fn has_folder(files: &Files, ino: Ino) -> bool {
    files.path(ino).is_some_and(|path| files.resolve(&path) == Some(ino))
}

fn same_body(a: &Inode, b: &Inode) -> bool {
    match (&a.body, &b.body) {
        (Body::File(a), Body::File(b)) => a.digest().is_some_and(|a| b.digest() == Some(a)),
        (Body::Symlink(a), Body::Symlink(b)) => a == b,
        (Body::Special(a), Body::Special(b)) => a == b,
        _ => false,
    }
}
