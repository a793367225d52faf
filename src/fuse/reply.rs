//! Answers requests with outcomes.

use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyXattr,
};

use super::convert::{errno, file_attr};
use crate::vfs::{Attr, Data, Entry, Outcome, Vfs};

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

/// Returns how the kernel has to treat a file that it opens. NOFLUSH is not set, since writes through a mapping must come when
/// the file is closed.
pub(super) fn opened(vfs: &Vfs, writeback: bool, ino: u64, writes: bool) -> FopenFlags {
    if writeback && vfs.bypasses_kernel_cache(ino, writes) {
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
