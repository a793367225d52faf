//! Converts between the types of the filesystem and those of the FUSE library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::error::ErrorKind;
use crate::vfs::{Attr, Kind, Process, SetTime};

/// The errno of a kind of error.
pub(super) fn errno(kind: ErrorKind) -> Errno {
    Errno::from_i32(kind.errno())
}

/// The type of a kind of file.
pub(super) fn file_type(kind: Kind) -> FileType {
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

/// A time in nanoseconds since 1970.
fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// The attributes of a file.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
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
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
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

/// Returns attributes for an entry of a listing. The length is one that no file can have, so the kernel uses only name, number
/// and kind: it lists the entry without making an inode, and forgets the number again.
pub(super) fn name_only(ino: u64, kind: Kind) -> FileAttr {
    file_attr(&Attr { ino, kind, size: u64::MAX, ..Attr::default() })
}

/// Returns the kind of file in a mode's type bits.
pub(super) fn kind_of(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Kind::File,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::Chardev,
        libc::S_IFBLK => Kind::Blockdev,
        _ => return None,
    })
}

/// The time that a program sets.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(nanoseconds(time)),
    }
}

/// The permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The process that waits for an answer.
pub(super) fn process(req: &Request) -> Process {
    Process { pid: req.pid(), gid: req.gid() }
}
