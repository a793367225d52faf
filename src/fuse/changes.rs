//! Answers changes after which the daemon notifies the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, ReplyEmpty, ReplyWrite};

use super::adapter::Adapter;
use super::convert::errno;
use super::guard::guarded;
use super::invalidate::invalidate;
use super::reply::answer_empty;
use crate::vfs::{Attempt, Op, RenameMode, Vfs, Writer};

impl Adapter {
    /// Removes a folder; notifies the kernel if it is a fork.
    pub(super) fn removed_folder(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(Op::Rmdir, || {
            let attempt = self.vfs.rmdir(parent.0, name.as_bytes());
            let again = || {
                let name = name.as_bytes().to_vec();
                move |vfs: &Vfs| vfs.rmdir(parent.0, &name)
            };
            if parent.0 != Vfs::FORKS {
                return self.finish(Op::Rmdir, reply, attempt, again, answer_empty);
            }
            let teller = self.teller();
            self.finish(Op::Rmdir, reply, attempt, again, move |reply, removed| {
                answer_empty(reply, removed);
                teller.forks_changed();
            });
        });
    }

    /// Renames; notifies the kernel of forks.
    pub(super) fn renamed(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (newparent, newname): (INodeNo, &OsStr),
        mode: RenameMode,
        reply: ReplyEmpty,
    ) {
        guarded(Op::Rename, || {
            let attempt = self.vfs.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), mode);
            let again = || {
                let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
                move |vfs: &Vfs| vfs.rename(parent.0, &name, newparent.0, &newname, mode)
            };
            if parent.0 != Vfs::FORKS {
                return self.finish(Op::Rename, reply, attempt, again, answer_empty);
            }
            let (teller, discarded) = (self.teller(), newparent.0 == Vfs::CONTROL);
            let newname = newname.as_bytes().to_vec();
            self.finish(Op::Rename, reply, attempt, again, move |reply, renamed| {
                answer_empty(reply, renamed);
                if renamed.is_ok() && discarded {
                    teller.fork_discarded(newname);
                }
                teller.forks_changed();
            });
        });
    }

    /// Answers a write that an event loop could not do at once; notifies the kernel of a failure.
    pub(super) fn write_unfinished(
        &self,
        attempt: Attempt<usize>,
        (ino, offset, data, by): (INodeNo, u64, &[u8], Writer),
        reply: ReplyWrite,
    ) {
        let again = || {
            let (data, left) = (data.to_vec(), self.vfs.cached_writes().leave_write());
            move |vfs: &Vfs| {
                let _until_written = left;
                vfs.write(ino.0, offset, &data, by)
            }
        };
        let (teller, writeback) = (self.teller(), self.writeback);
        self.finish(Op::Write, reply, attempt, again, move |reply, written| match written {
            Ok(written) => reply.written(written as u32),
            Err(kind) => {
                reply.error(errno(kind));
                // The kernel may now have pages that differ from the daemon's. Without OPEN it did not ask whether the file
                // can be written at all. A kernel that writes back also has another length. It forgets that length once no
                // program has the file open and no name leads to it.
                let names = if writeback { teller.vfs.names_of(ino.0) } else { Vec::new() };
                teller.notify(move |notifier| {
                    let _ = notifier.inval_inode(ino, 0, 0);
                    invalidate(notifier, &names);
                });
            }
        });
    }
}
