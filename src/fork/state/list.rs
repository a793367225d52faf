//! Listing a folder while it changes.

use super::tree::{At, State};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Name, Slot};
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// One line of a folder's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Where a listing continues after this entry.
    pub cookie: u64,
    /// Its name; `.` and `..` are not listed.
    pub name: Name,
    /// The file.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
}

/// The first cookie of a folder's own entries. Base entries have lower ones: a tree of at most 1 GiB of text has far fewer
/// entries. 32-bit programs accept only cookies below 2^31.
const OWN_COOKIES: u64 = 1 << 30;

impl State {
    /// Returns where a listing that begins now ends: at the entry that was added last.
    pub(in crate::fork) fn end_of_list(&self, ino: Ino) -> u64 {
        self.nodes.get(&ino).and_then(|inode| inode.dir()).map_or(0, |dir| dir.next)
    }

    /// Lists a folder from after `cookie` on (0: from the start) until `each` returns false.
    ///
    /// An entry that exists throughout is listed exactly once, even if others are added and removed between two calls.
    /// Returns [`None`] if `ino` is not a folder.
    pub(in crate::fork) fn list(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Option<()> {
        self.list_to(ino, cookie, None, each)
    }

    /// Like [`State::list`], without files that were added after `end` ([`State::end_of_list`]). Files of the base are listed
    /// even after it: they were renamed, and the listing may not have shown their old name.
    pub(in crate::fork) fn list_to(
        &self,
        ino: Ino,
        cookie: u64,
        end: Option<u64>,
        each: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Option<()> {
        let own = match self.at(ino)? {
            At::Own(inode) => match &inode.body {
                Body::Dir(dir) => Some(dir),
                _ => return None,
            },
            At::Base(node) if self.base.tree.kind(node) == Kind::Dir => None,
            At::Base(_) => return None,
        };
        let base = match (own, self.at(ino)) {
            (Some(dir), _) => dir.base,
            (None, Some(At::Base(node))) => Some(node),
            _ => None,
        };
        let tree = &self.base.tree;
        if let Some(base) = base {
            let children = tree.children(base);
            let skip = u32::try_from(cookie).unwrap_or(u32::MAX);
            for (i, child) in children.clone().enumerate().skip(skip as usize) {
                let node = NodeId(child);
                let (ino, kind) = match own.and_then(|dir| dir.names.get(tree.name(node))) {
                    None => (self.ino_in(ino, node), tree.kind(node)),
                    Some(Slot::Here { ino, seq: 0 }) => (*ino, self.kind(*ino)?),
                    Some(_) => continue,
                };
                if !each(DirEntry { cookie: i as u64 + 1, name: tree.name(node).into(), ino, kind }) {
                    return Some(());
                }
            }
        }
        let Some(dir) = own else { return Some(()) };
        let first = cookie.saturating_sub(OWN_COOKIES) + 1;
        for (seq, name) in dir.order.range(first..) {
            let Some(Slot::Here { ino, .. }) = dir.names.get(name) else { continue };
            let is_new = || self.nodes.get(ino).is_some_and(|inode| inode.birth > 0);
            if end.is_some_and(|end| *seq > end) && is_new() {
                continue;
            }
            let entry =
                DirEntry { cookie: OWN_COOKIES + seq, name: name.clone(), ino: *ino, kind: self.kind(*ino)? };
            if !each(entry) {
                break;
            }
        }
        Some(())
    }
}
