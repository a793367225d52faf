//! Lists folders. A folder that can change is listed in the order of its cookies. So an entry that exists throughout is listed
//! exactly once, even if others are added and removed between two calls.

use super::answer::Entry;
use super::attempt::{Attempt, Stop};
use super::key::{Ino, hash_bytes};
use super::nodes::Nodes;
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::layers::world::Kind;

/// Cookies 1 and 2 are those of `.` and `..`.
pub(super) const FIRST_COOKIE: u64 = 3;

/// One name in a folder.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Inode; never 0. It is the one that a lookup returns, if the name can be looked up.
    pub ino: Ino,
    /// Where the listing continues after this entry.
    pub cookie: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes, if the caller asked for them. They count as looked up.
    pub entry: Option<Entry>,
}

/// Takes an entry; returns false if there is no room for it. An entry that was not taken was not looked up.
pub type Emit<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> bool;

/// Emits `.` and `..`; the kernel counts no lookup for them. Returns false if there is no room left.
pub(super) fn list_dots(
    ino: Ino,
    parent: impl FnOnce() -> Attempt<Ino>,
    cookie: u64,
    emit: Emit<'_>,
) -> Attempt<bool> {
    let mut dots = |ino, at, name| emit(DirEntry { ino, cookie: at, kind: Kind::Dir, name, entry: None });
    if cookie < 1 && !dots(ino, 1, b".") {
        return Ok(false);
    }
    Ok(cookie >= 2 || dots(parent()?, 2, b".."))
}

/// Lists names with `list`, and looks each one up to get its number. The kernel counts the lookup only if the entry has
/// attributes. Names whose lookup fails are listed too if `lenient`. Otherwise the listing leaves them out, and the second
/// result is the last such failure.
pub(super) fn list_looked_up(
    nodes: &Nodes,
    (plus, lenient): (bool, bool),
    emit: Emit<'_>,
    lookup: impl Fn(&[u8]) -> Attempt<Entry>,
    list: impl FnOnce(Emit<'_>) -> Attempt<()>,
) -> (Attempt<()>, Option<Stop>) {
    let mut failed = None;
    let listed = list(&mut |mut entry: DirEntry<'_>| {
        match lookup(entry.name) {
            Ok(found) => {
                entry.ino = found.attr.ino;
                if plus {
                    entry.entry = Some(found);
                } else {
                    nodes.take_back(found.attr.ino);
                }
            }
            // The file was removed, or is damaged and was logged.
            Err(Stop::Failed(ErrorKind::NotFound)) => return true,
            Err(_) if lenient => {}
            Err(stop) => {
                failed = Some(stop);
                return true;
            }
        }
        let (ino, counted) = (entry.ino, entry.entry.is_some());
        let taken = emit(entry);
        if !taken && counted {
            nodes.take_back(ino);
        }
        taken
    });
    (listed, failed)
}

/// Lists what never changes: the cookie is the position.
pub(super) fn list_fixed_order<'a>(
    names: impl Iterator<Item = (&'a str, Kind)>,
    cookie: u64,
    emit: Emit<'_>,
) {
    let skip = usize::try_from(cookie.saturating_sub(FIRST_COOKIE - 1)).unwrap_or(usize::MAX);
    for (at, (name, kind)) in names.enumerate().skip(skip) {
        let ino = name_cookie(name);
        if !emit(DirEntry { ino, cookie: at as u64 + FIRST_COOKIE, kind, name: name.as_bytes(), entry: None })
        {
            break;
        }
    }
}

/// Lists names that can change between two calls. The cookie is a hash of the name, and the names are in its order.
pub(super) fn list_changing<'a>(
    names: impl Iterator<Item = (&'a str, Kind)>,
    cookie: u64,
    narrow: bool,
    emit: Emit<'_>,
) {
    let mut ordered: Vec<_> = names.map(|(name, kind)| (name_cookie(name), name, kind)).collect();
    ordered.sort_unstable_by_key(|(cookie, name, _)| (*cookie, *name));
    let cookies = cookies(ordered.iter().map(|(hash, ..)| *hash), narrow);
    for (at, (_, name, kind)) in cookies.zip(&ordered).filter(|(at, _)| *at > cookie) {
        let kind = *kind;
        if !emit(DirEntry { ino: at, cookie: at, kind, name: name.as_bytes(), entry: None }) {
            break;
        }
    }
}

/// Makes unequal cookies in the order of hashes of 62 bits. Narrow ones have 31 bits.
pub(super) fn cookies(hashes: impl Iterator<Item = u64>, narrow: bool) -> impl Iterator<Item = u64> {
    hashes.scan(FIRST_COOKIE - 1, move |last, hash| {
        *last = (if narrow { hash >> 31 } else { hash }).max(*last + 1);
        Some(*last)
    })
}

fn name_cookie(name: &str) -> u64 {
    (hash_bytes(name.as_bytes()) >> 2).max(FIRST_COOKIE)
}

/// Returns the first 62 bits of an id. They have the same order as the ids.
pub(super) fn id_cookie(id: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 2).max(FIRST_COOKIE)
}
