//! Operations that change something. Refused ones are logged.

use std::time::Duration;

use super::answer::{Attr, Entry};
use super::attempt::{Attempt, Outcome, Stop, of_fork};
use super::called::{self, At};
use super::caller::Process;
use super::dispatch::Vfs;
use super::fork_changes::Writer;
use super::key::Ino;
use super::metrics::Op;
use super::node::{BuiltinDir, Node, Redaction, UNKNOWN_SIZE};
use crate::error::{ErrorKind, Posix};
use crate::fork::{self, Allocate, CopySource, NewFile, RenameMode, SetAttr, XattrMode};
use crate::layers::world::Kind;

impl Vfs {
    /// Logs a refused call, with the reason.
    fn audited<T>(&self, op: Op, at: At<'_>, outcome: Attempt<T>) -> Attempt<T> {
        if let Err(Stop::Failed(kind)) = &outcome {
            self.audit.refused(op, *kind, || called::path(&self.nodes, &self.images, at));
        }
        outcome
    }

    /// Returns the outcome unchanged. Logs why a name was refused, if another place would accept it.
    fn advised<T>(&self, folder: Ino, name: &[u8], outcome: Attempt<T>) -> Attempt<T> {
        if let Err(Stop::Failed(kind)) = &outcome
            && let Ok(folder) = self.nodes.get(folder)
        {
            self.advice.refused(&folder, name, *kind);
        }
        outcome
    }

    /// Makes a file, folder, symlink or special. Under `forks/`, a folder is a fork; under `tags/`, a symlink is a tag.
    pub fn create(&self, parent: Ino, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        let create = || match self.nodes.get(parent)? {
            Node::Builtin(BuiltinDir::Forks) => self.forks.create(name, new),
            Node::Builtin(BuiltinDir::Tags) => self.tags.create(name, new),
            node => self.files.create(node, name, new),
        };
        self.audited(Op::Create, At::Name(parent, name), self.advised(parent, name, create()))
    }

    /// Makes a hard link.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Attempt<Entry> {
        let link = || self.files.link(ino, self.nodes.get(parent)?, name);
        self.audited(Op::Link, At::Name(parent, name), self.advised(parent, name, link()))
    }

    /// Removes a name.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        let unlink = || match self.nodes.get(parent)? {
            Node::Builtin(BuiltinDir::Tags) => self.tags.remove(name),
            node => self.files.unlink(node, name),
        };
        self.audited(Op::Unlink, At::Name(parent, name), self.advised(parent, name, unlink()))
    }

    /// Removes an empty folder. Under `forks/`, an empty fork is discarded.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Attempt<()> {
        let rmdir = || match self.nodes.get(parent)? {
            Node::Builtin(BuiltinDir::Forks) => self.forks.rmdir(name),
            node => self.files.rmdir(node, name),
        };
        self.audited(Op::Rmdir, At::Name(parent, name), rmdir())
    }

    /// Renames a file. Forks are renamed under `forks/`, tags under `tags/`. A fork that is moved into `.pfimg/` is discarded,
    /// even if it holds files.
    pub fn rename(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        let rename = || {
            self.home.check()?;
            match (self.nodes.get(from)?, self.nodes.get(to)?) {
                (Node::Builtin(BuiltinDir::Forks), Node::Builtin(BuiltinDir::Forks)) => {
                    self.forks.rename(name, new_name, mode)
                }
                (Node::Builtin(BuiltinDir::Forks), Node::Builtin(BuiltinDir::Control)) => {
                    self.forks.discard_moved(name, new_name)
                }
                (Node::Builtin(BuiltinDir::Tags), Node::Builtin(BuiltinDir::Tags)) => {
                    self.tags.rename(name, new_name, mode)
                }
                (Node::Forked { mounted, ino: from }, Node::Forked { mounted: other, ino: to }) => {
                    self.files.rename((&mounted, from), name, (&other, to), new_name, mode)
                }
                (Node::Forked { .. }, _) | (_, Node::Forked { .. }) => {
                    Err(ErrorKind::Posix(Posix::CrossesDevices).into())
                }
                (_, work @ Node::Builtin(BuiltinDir::Work)) | (work @ Node::Builtin(BuiltinDir::Work), _) => {
                    Err(self.files.outside_forks(&work).into())
                }
                _ => Err(ErrorKind::ReadOnly.into()),
            }
        };
        self.audited(Op::Rename, At::Name(from, name), self.advised(to, new_name, rename()))
    }

    /// Sets attributes.
    pub fn setattr(&self, ino: Ino, set: &SetAttr, by: Process) -> Attempt<(Attr, Duration)> {
        self.audited(Op::Setattr, At::File(ino), self.files.setattr(ino, set, by))
    }

    /// Fails if a file cannot be opened. For writing, that is any file outside of forks.
    pub fn open(&self, ino: Ino, writes: bool) -> Outcome<()> {
        let open = || match self.nodes.get(ino)? {
            node if writes => self.files.open_for_writing(node),
            _ => Ok(()),
        };
        self.audited(Op::Open, At::File(ino), open().map_err(Stop::from)).map_err(Stop::kind)
    }

    /// Fails if root may not use a file. Root may do everything but write a file that cannot be changed, or run a file that
    /// no user may run.
    pub fn access_by_root(&self, ino: Ino, runs: bool, writes: bool) -> Attempt<()> {
        if writes {
            match self.nodes.get(ino)? {
                Node::Forked { mounted, ino } => {
                    mounted.fork.may_be_written(ino).map_err(|error| error.kind())?;
                }
                // Programs make forks, seals and tags in these folders, and move forks there to discard them.
                Node::Builtin(BuiltinDir::Forks | BuiltinDir::Tags | BuiltinDir::Control)
                | Node::Snap { .. } => {}
                _ => return Err(ErrorKind::ReadOnly.into()),
            }
        }
        if !runs {
            return Ok(self.nodes.get(ino).map(|_| ())?);
        }
        let (attr, _) = self.getattr(ino)?;
        if attr.kind != Kind::Dir && attr.mode & 0o111 == 0 {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }

    /// Writes to a file of a fork.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: Writer) -> Attempt<usize> {
        self.audited(Op::Write, At::File(ino), self.files.write(ino, offset, bytes, by))
    }

    /// Allocates, punches or zeroes a range.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Allocate, by: Process) -> Attempt<()> {
        self.audited(Op::Fallocate, At::File(ino), self.files.fallocate(ino, offset, len, what, by))
    }

    /// Copies a range into a file of a fork, and shares data if possible. Returns the number of bytes, maybe fewer than asked.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        offset: u64,
        len: u64,
        by: Process,
    ) -> Attempt<u64> {
        let copied = self.copy_from(from, from_offset, to, offset, len, by);
        self.audited(Op::CopyFileRange, At::File(to), copied)
    }

    fn copy_from(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        offset: u64,
        len: u64,
        by: Process,
    ) -> Attempt<u64> {
        let (target, ino) = self.files.in_fork(self.nodes.get(to)?)?;
        let path;
        let from_node = self.nodes.get(from)?;
        let source = match &from_node {
            Node::Forked { mounted, ino: source } => CopySource::Fork(&mounted.fork, *source),
            Node::File { digest, size, redaction: Redaction::Raw, recorded, origin, .. }
                if *size != UNKNOWN_SIZE =>
            {
                path = if target.fork.is_being_made() {
                    self.images.tree(origin.image)?;
                    self.images.path_of(*origin)
                } else {
                    Vec::new()
                };
                CopySource::Image {
                    blob: fork::BlobRef { digest: *digest, size: *size },
                    image: self.nodes.image_id(origin.image),
                    path: &path,
                    mtime: recorded.mtime_ns,
                }
            }
            // Other files do not show a blob of known length as it is, so their bytes are copied.
            _ => {
                let size = u32::try_from(len).unwrap_or(u32::MAX).min(1 << 20);
                let data = self.read(from, from_offset, size)?;
                if data.bytes().is_empty() {
                    return Ok(0);
                }
                // Unlike `ForkFiles::write`, a copy does not end the making of a fork.
                return target.fork.write(ino, offset, data.bytes(), by).map(|n| n as u64).map_err(of_fork);
            }
        };
        target.fork.copy_range(&source, from_offset, ino, offset, len, by).map_err(of_fork)
    }

    /// Makes the inode's whole fork durable. Files outside of forks are durable already.
    pub fn fsync(&self, ino: Ino) -> Attempt<()> {
        match self.nodes.get(ino)? {
            Node::Forked { mounted, .. } => self.files.fsync(&mounted.fork),
            _ => Ok(()),
        }
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, by: Process) -> Attempt<()> {
        self.files.setxattr(self.nodes.get(ino)?, name, value, mode, by)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Attempt<()> {
        self.files.removexattr(self.nodes.get(ino)?, name)
    }
}
