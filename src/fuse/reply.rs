//! Converts between the types of the filesystem and those of the FUSE library.

use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyXattr, Request, TimeOrNow,
};

use super::{errno, file_attr, nanoseconds};
use crate::vfs::{Attr, Data, Entry, Outcome, Process, Vfs};
use crate::vfs::{Kind, SetTime};

pub(super) fn answer_entry(reply: ReplyEntry, outcome: Outcome<Entry>) {
    match outcome {
        Ok(entry) => {
            let attr = file_attr(&entry.attr);
            reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &attr, Generation(0));
        }
        Err(kind) => reply.error(errno(kind)),
    }
}

pub(super) fn answer_attr(reply: ReplyAttr, outcome: Outcome<(Attr, Duration)>) {
    match outcome {
        Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
        Err(kind) => reply.error(errno(kind)),
    }
}

pub(super) fn answer_data(reply: ReplyData, outcome: Outcome<Data>) {
    match outcome {
        Ok(data) => {
            reply.data(data.bytes());
            data.sent();
        }
        Err(kind) => reply.error(errno(kind)),
    }
}

pub(super) fn answer_empty(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(kind) => reply.error(errno(kind)),
    }
}

/// Answers with an attribute's value, or with its length if the caller's buffer has size 0.
pub(super) fn answer_xattr(reply: ReplyXattr, size: u32, outcome: Outcome<Vec<u8>>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(kind) => reply.error(errno(kind)),
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

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(nanoseconds(time)),
    }
}

pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The process that waits for an answer.
pub(super) fn process(req: &Request) -> Process {
    Process { pid: req.pid(), gid: req.gid() }
}

/// Returns how the kernel has to treat a file that it opens. NOFLUSH is not set, since writes through a mapping must come when
/// the file is closed.
pub(super) fn opened(vfs: &Vfs, writeback: bool, ino: u64, writes: bool) -> FopenFlags {
    // A kernel that writes back uses only its own length of a file. If a seal has made the file longer, the kernel would show
    // too little and append in the middle. Nor does it clear a set-group-id bit without group execution, and a late write does
    // not say which program wrote it.
    let by_name = |ino| writes && vfs.goes_by_the_writers_group(ino);
    if writeback && (vfs.is_resized_by_seals(ino) || by_name(ino)) {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::FOPEN_KEEP_CACHE
    }
}

/// Answers with a file that was created and is open.
pub(super) fn answer_created(reply: ReplyCreate, entry: &Entry, flags: FopenFlags) {
    let attr = file_attr(&entry.attr);
    reply.created(&entry.entry_ttl, &attr, Generation(0), FileHandle(0), flags);
}
