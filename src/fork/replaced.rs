//! What a fork that was put back has in common with the fork that it replaced. A mount keeps those inodes for the kernel.

use std::collections::BTreeMap;

use super::diff::digest;
use super::ino::Ino;
use super::live::Fork;
use super::node::{Body, Inode, Name};
use crate::error::Result;
use crate::layers::world::Kind;

/// A name in a folder that is there before and after, and that stands for something else now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedName {
    /// The name.
    pub name: Vec<u8>,
    /// What it stood for.
    pub before: Option<Kind>,
    /// What it stands for.
    pub after: Option<Kind>,
}

impl Fork {
    /// Whether a number stands for the same thing in this fork as in the fork that it replaced: a folder at the same path, or a
    /// file that did not change. With `all_times` the change time counts too.
    pub fn continues(&self, old: &Self, ino: Ino, all_times: bool) -> bool {
        if ino.is_frame() || ino == Ino::FS {
            // The kernel may take a folder for removed that was shown again.
            return old.shown_again(ino) == 0 && old.resolve_folder(ino) && self.resolve_folder(ino);
        }
        let Some(path) = old.path(ino).filter(|path| path.starts_with(b"world/fs/")) else { return false };
        if self.resolve(&path) != Some(ino) {
            return false;
        }
        let seen = |fork: &Self| {
            let live = fork.live.read();
            live.state.inode(ino).map(|inode| (live.state.attr(ino, &inode), inode))
        };
        let (Some((was, a)), Some((is, b))) = (seen(old), seen(self)) else { return false };
        if a.is_dir() || b.is_dir() {
            return a.is_dir() && b.is_dir();
        }
        let attributes = |attr: &super::Attr| {
            let ctime = if all_times { attr.ctime } else { 0 };
            (attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size, attr.mtime, ctime)
        };
        attributes(&was) == attributes(&is) && a.xattrs == b.xattrs && same_body(&a, &b)
    }

    /// Whether one of the folders that every fork can have is there.
    fn resolve_folder(&self, ino: Ino) -> bool {
        self.path(ino).is_some_and(|path| self.resolve(&path) == Some(ino))
    }

    /// Names in a folder of both forks that mean something else in this fork than in the one that it replaced.
    pub fn changed_names(&self, old: &Self, folder: Ino, all_times: bool) -> Result<Vec<ChangedName>> {
        let (was, mut is) = (old.listed(folder)?, self.listed(folder)?);
        let mut changed = Vec::new();
        for (name, (ino, kind)) in was {
            let after = is.remove(&name);
            if after.is_some_and(|(now, _)| now == ino) && self.continues(old, ino, all_times) {
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

    /// What is in a folder, by name.
    pub fn listed(&self, folder: Ino) -> Result<BTreeMap<Name, (Ino, Kind)>> {
        let mut listed = BTreeMap::new();
        self.readdir(folder, 0, &mut |entry| {
            listed.insert(entry.name, (entry.ino, entry.kind));
            true
        })?;
        Ok(listed)
    }

    /// What the kernel's numbers for files of this fork begin with: the same after the fork was put back.
    pub fn numbered_by(&self) -> String {
        let head = self.head.lock();
        head.numbered_by.clone().unwrap_or_else(|| head.uid.clone())
    }
}

fn same_body(a: &Inode, b: &Inode) -> bool {
    match (&a.body, &b.body) {
        (Body::File(a), Body::File(b)) => digest(a).is_some_and(|a| digest(b) == Some(a)),
        (Body::Symlink(a), Body::Symlink(b)) => a == b,
        (Body::Special(a), Body::Special(b)) => a == b,
        _ => false,
    }
}
