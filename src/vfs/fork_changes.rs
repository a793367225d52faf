//! Changes of files in forks: checks that the store is in place, calls the engine, and frees space if there is none.

use std::time::Duration;

use super::answer::{Attr, Entry, FOREVER};
use super::attempt::{Attempt, Outcome, Stop, may_wait, of_fork};
use super::caller::Process;
use super::fault;
use super::fork_files::ForkFiles;
use super::key::Ino;
use super::mounted::{Mounted, shown};
use super::node::Node;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{self, Allocate, Fork, NewFile, RenameMode, SetAttr, XattrMode};

/// The longest range in bytes that an event loop allocates. A worker allocates longer ones.
const SHORT: u64 = 4 << 20;

/// The origin of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A program that waits for the answer.
    Call(Process),
    /// The kernel, which writes whole pages that a program changed earlier.
    Pages,
}

/// Returns an error's kind without logging it: a request for too much space says nothing about the disk.
fn refused(error: Error) -> Stop {
    if error.kind() == ErrorKind::NoSpace { ErrorKind::NoSpace.into() } else { of_fork(error) }
}

/// Frees the space of deleted data if a change failed for lack of space. Returns whether any was freed.
fn make_room(fork: &Fork, error: &Error) -> Attempt<bool> {
    if error.kind() != ErrorKind::NoSpace || !fork.has_trash() {
        return Ok(false);
    }
    may_wait()?;
    Ok(fork.reap().is_ok_and(|freed| freed))
}

impl ForkFiles {
    /// Returns the fork of a node and its number there, for a change. Fails if the node is not in a fork.
    pub(super) fn in_fork(&self, node: Node) -> Outcome<(Mounted, fork::Ino)> {
        self.home.check()?;
        self.place_of(node)
    }

    /// Adapts an error in a fork: if the store was moved, the fork's files are not at their paths.
    fn or_moved(&self, stop: Stop) -> Stop {
        if stop != Stop::Failed(ErrorKind::NotFound) {
            return stop;
        }
        // Nothing was changed yet, so a worker may repeat the operation.
        let moved = may_wait().map(|_| self.home.require().err());
        moved.map_or_else(|waits| waits, |moved| moved.map_or(stop, |moved| moved.kind().into()))
    }

    /// Makes a file, folder, symlink or special.
    pub(super) fn create(&self, parent: Node, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        let (mounted, parent) = self.in_fork(parent)?;
        // Before the file is created, since this may have to wait.
        mounted.fork.prepare_to_take_times().map_err(of_fork)?;
        let mut made = mounted.fork.create(parent, name, new).map_err(of_fork)?;
        if let Some(taken) = mounted.fork.take_time_of_empty(&made).map_err(of_fork)? {
            made = taken;
        }
        self.entry(&mounted, &made, self.lifetime(parent, name), || mounted.fork.lookup(parent, name))
    }

    /// Makes a hard link.
    pub(super) fn link(&self, ino: Ino, parent: Node, name: &[u8]) -> Attempt<Entry> {
        let (mounted, parent) = self.in_fork(parent)?;
        let source = self.nodes.get(ino).and_then(|node| self.in_fork(node));
        let (source, ino) = source.map_err(|_| ErrorKind::Posix(Posix::CrossesDevices))?;
        if !source.is_same(&mounted) {
            return Err(ErrorKind::Posix(Posix::CrossesDevices).into());
        }
        let linked = mounted.fork.link(ino, parent, name).map_err(of_fork)?;
        self.entry(&mounted, &linked, self.lifetime(parent, name), || mounted.fork.lookup(parent, name))
    }

    /// Removes a name.
    pub(super) fn unlink(&self, parent: Node, name: &[u8]) -> Attempt<()> {
        let (mounted, parent) = self.in_fork(parent)?;
        mounted.fork.end_making();
        let gone = mounted.fork.unlink(parent, name).map_err(of_fork)?;
        self.nodes.forget_unless_known(&mounted, gone);
        Ok(())
    }

    /// Removes an empty folder.
    pub(super) fn rmdir(&self, parent: Node, name: &[u8]) -> Attempt<()> {
        let (mounted, parent) = self.in_fork(parent)?;
        let gone = mounted.fork.rmdir(parent, name).map_err(of_fork)?;
        self.nodes.forget_unless_known(&mounted, gone);
        Ok(())
    }

    /// Renames a file within its fork.
    pub(super) fn rename(
        &self,
        (mounted, from): (&Mounted, fork::Ino),
        name: &[u8],
        (other, to): (&Mounted, fork::Ino),
        new_name: &[u8],
        mode: RenameMode,
    ) -> Attempt<()> {
        if !mounted.is_same(other) {
            return Err(ErrorKind::Posix(Posix::CrossesDevices).into());
        }
        mounted.fork.end_making();
        let gone = mounted.fork.rename(from, name, to, new_name, mode).map_err(of_fork)?;
        if let Some(gone) = gone {
            self.nodes.forget_unless_known(mounted, gone);
        }
        Ok(())
    }

    /// Sets attributes.
    pub(super) fn setattr(&self, ino: Ino, set: &SetAttr, by: Process) -> Attempt<(Attr, Duration)> {
        self.home.check()?;
        let (mounted, in_fork) = self.place_of(self.nodes.get(ino)?)?;
        if set.mtime.is_some() || set.size.is_some_and(|size| size > 0) {
            mounted.fork.end_making();
        }
        if set.size.is_some() {
            self.cached_writes.held_back();
        }
        let attr = mounted.fork.setattr_by(in_fork, set, by).map_err(of_fork)?;
        Ok((Attr { ino, ..shown(&attr) }, FOREVER))
    }

    /// Fails if a file cannot be opened for writing. A kernel that caches writes accepts them as soon as the file is open.
    pub(super) fn open_for_writing(&self, node: Node) -> Outcome<()> {
        let (mounted, ino) = self.in_fork(node)?;
        mounted.fork.may_be_written(ino).map_err(|error| error.kind())
    }

    /// Writes to a file of a fork.
    pub(super) fn write(&self, ino: Ino, offset: u64, bytes: &[u8], by: Writer) -> Attempt<usize> {
        // Pages were acknowledged to a program before the store was moved: open files still accept them.
        if by != Writer::Pages {
            self.home.check()?;
        }
        let (mounted, in_fork) = self.place_of(self.nodes.get(ino)?)?;
        let fork = &mounted.fork;
        fork.end_making();
        let write = || match by {
            Writer::Call(by) => self.write_by(&mounted, (ino, in_fork), offset, bytes, by),
            Writer::Pages => fork.write_pages(in_fork, offset, bytes),
        };
        let written = match fault::write(fork, by == Writer::Pages).and_then(|()| write()) {
            // The space of deleted data may not have been freed yet.
            Err(error) => match make_room(fork, &error) {
                Ok(true) => write().map_err(of_fork),
                Ok(false) => Err(of_fork(error)),
                Err(waits) => Err(waits),
            },
            Ok(written) => Ok(written),
        };
        let written = written.map_err(|stop| self.or_moved(stop));
        if by == Writer::Pages && !matches!(written, Err(Stop::Waits)) {
            self.cached_writes.was_handed_in(fork, in_fork, written.as_ref().err().map(|stop| stop.kind()));
        }
        written
    }

    /// Writes bytes of a program that waits. If the kernel caches writes, it did not cache these. Then a write at the end of a
    /// ledger that the kernel knows goes to the real end.
    fn write_by(
        &self,
        mounted: &Mounted,
        (ino, in_fork): (Ino, fork::Ino),
        offset: u64,
        bytes: &[u8],
        by: Process,
    ) -> Result<usize> {
        let fork = &mounted.fork;
        let Some(ends) = self.nodes.ledger_ends().filter(|ends| ends.is_end(ino, offset)) else {
            return fork.write(in_fork, offset, bytes, by);
        };
        let written = fork.append(in_fork, bytes, by)?;
        ends.set(ino, offset + written as u64);
        if self.nodes.known(self.nodes.key_in_fork(mounted, in_fork)) != Some(ino) {
            // The newest inode of the ledger does not show this write, so the ledger needs another one.
            fork.resize();
        }
        Ok(written)
    }

    /// Allocates, punches or zeroes a range.
    pub(super) fn fallocate(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        what: Allocate,
        by: Process,
    ) -> Attempt<()> {
        if len > SHORT {
            // The disk may have to look for the space.
            may_wait()?;
        }
        let (mounted, ino) = self.in_fork(self.nodes.get(ino)?)?;
        let fork = &mounted.fork;
        fork.end_making();
        match fork.fallocate(ino, offset, len, what, by) {
            // The space of deleted data may not have been freed yet.
            Err(error) if make_room(fork, &error)? => {
                fork.fallocate(ino, offset, len, what, by).map_err(refused)
            }
            done => done.map_err(refused),
        }
    }

    /// Makes a fork durable.
    pub(super) fn fsync(&self, fork: &Fork) -> Attempt<()> {
        may_wait()?;
        self.cached_writes.held_back();
        fork.fsync().map_err(of_fork).map_err(|stop| self.or_moved(stop))
    }

    /// Sets an extended attribute.
    pub(super) fn setxattr(
        &self,
        node: Node,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        by: Process,
    ) -> Attempt<()> {
        let (mounted, ino) = self.in_fork(node)?;
        mounted.fork.setxattr_by(ino, name, value, mode, by).map_err(of_fork)
    }

    /// Removes an extended attribute.
    pub(super) fn removexattr(&self, node: Node, name: &[u8]) -> Attempt<()> {
        let (mounted, ino) = self.in_fork(node)?;
        mounted.fork.removexattr(ino, name).map_err(of_fork)
    }
}
