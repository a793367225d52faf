//! Decides which names a fork accepts outside of `world/fs`, and which operations on them.

use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::errors::posix;
use crate::fork::frame::{fixed_ino, is_record};
use crate::fork::ino::Ino;
use crate::fork::inode::{Inode, Protection};
use crate::layers::world::{Kind, MAX_NAME};

/// Whether a folder belongs to the fork's frame, where only layers' names are accepted. `world/fs` does not.
pub(super) fn is_frame(folder: Ino) -> bool {
    folder.0 <= Ino::TRACE.0 && folder != Ino::FS
}

fn is_page(name: &[u8]) -> bool {
    name.len() == 10 && name[..8].iter().all(u8::is_ascii_digit) && matches!(&name[8..], b".k" | b".v")
}

/// Whether a file can be called `name` in `folder`: outside of `world/fs` there are only layers' names.
pub fn can_be_there(folder: Ino, name: &[u8]) -> bool {
    [Kind::File, Kind::Dir].into_iter().any(|kind| is_admitted(folder, name, kind))
}

fn is_admitted(folder: Ino, name: &[u8], kind: Kind) -> bool {
    match (folder, kind) {
        _ if !is_frame(folder) => true,
        // A copy of an image includes its folder of links to its parents.
        (Ino::TOP, Kind::Dir) if name == b"parents" => true,
        (_, Kind::Dir) => fixed_ino(folder, name).is_some(),
        (Ino::TOP | Ino::CACHE, Kind::File) => name == b"manifest.json",
        (Ino::MODEL, Kind::File) => matches!(name, b"base" | b"diff.json"),
        (Ino::PAGES, Kind::File) => is_page(name),
        (Ino::WORLD, Kind::File) => matches!(name, b"env.json" | b"procs.json"),
        (Ino::EFFECTS, Kind::File) => name == b"ledger.jsonl",
        (Ino::TRACE, Kind::File) => name == b"messages.jsonl",
        _ => false,
    }
}

/// Refuses a name in `folder` that a file of this kind must not have.
pub(super) fn admit(folder: Ino, name: &[u8], kind: Kind) -> Result<()> {
    if is_admitted(folder, name, kind) {
        return Ok(());
    }
    tracing::info!(name = %name.escape_ascii(), "refused: outside of world/fs a fork accepts only the names of layers");
    Err(posix(Posix::NotPermitted, "outside of world/fs a fork accepts only the names of layers"))
}

/// Refuses bytes that cannot be a name.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(posix(Posix::NameTooLong, "the name is longer than 255 bytes"));
    }
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a file's name cannot be empty, \".\" or \"..\", and cannot contain a slash or NUL",
        ));
    }
    Ok(())
}

/// Refuses to remove a name if that would change sealed content or remove a folder of the frame.
pub(super) fn may_unlink(ino: Ino, inode: &Inode) -> Result<()> {
    if ino.0 <= Ino::TRACE.0 {
        return Err(posix(
            Posix::NotPermitted,
            "the directories of a fork around world/fs cannot be moved or removed",
        ));
    }
    match inode.guard {
        Protection::None => Ok(()),
        Protection::Fixed => Err(posix(Posix::NotPermitted, "a fork's manifest cannot be changed")),
        Protection::Append(_) => Err(recorded()),
    }
}

/// Refuses to move the ledger, the trace or a fork's frame, or another file into their place.
pub(super) fn may_move(from: (Ino, &[u8]), to: (Ino, &[u8]), moved: [Option<Ino>; 2]) -> Result<()> {
    if is_record(from.0, from.1) || is_record(to.0, to.1) {
        return Err(recorded());
    }
    if moved.into_iter().flatten().any(|ino| ino.0 <= Ino::TRACE.0) {
        return Err(posix(
            Posix::NotPermitted,
            "the directories of a fork around world/fs cannot be moved or removed",
        ));
    }
    Ok(())
}

/// The error for a change of the content of the ledger or the trace.
pub(super) fn recorded() -> Error {
    posix(Posix::NotPermitted, "the ledger and the trace can only be appended to")
}

/// Refuses to change a file's bytes from `offset` on if an image may contain them.
pub(super) fn may_change(inode: &Inode, offset: u64) -> Result<()> {
    match inode.guard {
        Protection::None => Ok(()),
        Protection::Fixed => Err(posix(Posix::NotPermitted, "a fork's manifest cannot be changed")),
        Protection::Append(_) if offset >= inode.sealed_len() => Ok(()),
        Protection::Append(_) => Err(recorded()),
    }
}

/// Refuses to clear a range of an append-only file, unless nothing was ever written there.
pub(super) fn may_clear(inode: &Inode, from: u64, to: u64) -> Result<()> {
    may_change(inode, from)?;
    let (Protection::Append(_), Some(content)) = (inode.guard, inode.content()) else { return Ok(()) };
    let content = content.settled();
    if from < content.size && !content.pieces.range(from, to.min(content.size)).is_empty() {
        return Err(recorded());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_world_fs_only_layers_names_are_taken() {
        let file = |folder, name: &str| admit(folder, name.as_bytes(), Kind::File).is_ok();
        let dir = |folder, name: &str| admit(folder, name.as_bytes(), Kind::Dir).is_ok();
        assert!(file(Ino::TOP, "manifest.json") && !file(Ino::TOP, "notes") && !file(Ino::TOP, "model"));
        assert!(dir(Ino::TOP, "model") && !dir(Ino::TOP, "manifest.json") && !dir(Ino::TOP, "new"));
        assert!(file(Ino::PAGES, "00000012.k") && file(Ino::PAGES, "00000012.v"));
        for bad in ["0000012.k", "000000012.k", "00000012.x", "0000001a.k", "00000012.k~"] {
            assert!(!file(Ino::PAGES, bad), "{bad}");
        }
        assert!(dir(Ino::WORLD, "fs") && !dir(Ino::MODEL, "fs") && dir(Ino::FS, "anything"));
        assert!(admit(Ino::MODEL, b"base", Kind::Symlink).is_err());
        assert!(can_be_there(Ino::TOP, b"model") && can_be_there(Ino::TOP, b"parents"));
        assert!(!can_be_there(Ino::TOP, b"Cargo.toml") && can_be_there(Ino::FS, b"Cargo.toml"));
    }
}
