//! The thin adapter between the kernel and the [`Vfs`](crate::vfs::Vfs): it decodes, calls and replies. It decides nothing
//! about the meaning of a request, and no type of the FUSE library leaves this module.

mod adapter;
mod announce;
mod barrier;
mod changes;
mod kernel;
mod pool;
mod reply;
mod requests;
mod session;
mod spin;
mod wanted;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};

pub use kernel::Kernel;
pub use session::{OpenRoot, Prepared, Session, SessionConfig};

use crate::error::ErrorKind;
use crate::vfs::Kind;
use crate::vfs::{Attr, Op};

fn errno(kind: ErrorKind) -> Errno {
    Errno::from_i32(kind.errno())
}

/// Runs a handler. A panic in it does not end the event loop: the dropped reply answers EIO.
fn guarded(op: Op, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("an error in pfimg made a {} request fail; the program got EIO", op.name());
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

/// Converts a time from the kernel to nanoseconds since 1970. A time out of range becomes the nearest one in range.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            // The kernel adds nanoseconds to a negative second; fuser 0.18.0 subtracts them.
            let (seconds, nanos) = (before.duration().as_secs(), before.duration().subsec_nanos());
            let ns = i128::from(nanos) - i128::from(seconds) * 1_000_000_000;
            i64::try_from(ns).unwrap_or(i64::MIN)
        }
    }
}
