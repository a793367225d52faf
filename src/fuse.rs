//! The thin adapter between the kernel and the [`Vfs`](crate::vfs::Vfs): decode, call, reply. No meaning lives here, and no type of
//! the FUSE library leaves this module.

mod adapter;
mod announce;
mod barrier;
mod changes;
mod own;
mod pool;
mod reply;
mod requests;
mod session;
mod spin;
mod wanted;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};

pub use session::{SessionConfig, serve};

use crate::error::ErrorKind;
use crate::vfs::Kind;
use crate::vfs::{Attr, Op};

fn errno(kind: ErrorKind) -> Errno {
    Errno::from_i32(kind.errno())
}

/// Runs a handler. A panic must not end the event loop: the reply it dropped answers EIO.
fn guarded(op: Op, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!(
            "a {} request failed by a fault of this program; it was answered with EIO",
            op.name()
        );
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Chardev => FileType::CharDevice,
        Kind::Blockdev => FileType::BlockDevice,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        // cp looks for holes where this is less than the size.
        blocks: attr.size.div_ceil(512),
        atime: system_time(attr.atime_ns),
        mtime: system_time(attr.mtime_ns),
        ctime: system_time(attr.ctime_ns),
        crtime: system_time(attr.ctime_ns),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// Nanoseconds since 1970 of a time that the kernel sent; what does not fit is cut to what does.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            // The kernel counts nanoseconds forward from a negative second; fuser 0.18.0 takes them off it.
            let (seconds, nanos) = (before.duration().as_secs(), before.duration().subsec_nanos());
            let ns = i128::from(nanos) - i128::from(seconds) * 1_000_000_000;
            i64::try_from(ns).unwrap_or(i64::MIN)
        }
    }
}
