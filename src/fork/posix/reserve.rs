//! Reserves space for fallocate(2), so that later writes into a range cannot fail for lack of it.
//!
//! Space is reserved in the file's own data file, which takes all later writes into the range, and in the journal for the
//! records of those writes. Both belong to the generation that is being written. A seal, a branch or a remount ends the
//! promise: it begins a generation, or reads one back, in which the file keeps its length but has no reserved space.

use std::sync::Arc;

use super::store::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::disk::DataFile;
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Content, Inode};
use crate::fork::live::Live;

/// A byte of journal for this many bytes of content: a write of a page has a record of about 60 bytes.
const CONTENT_OF_A_RECORD_BYTE: u64 = 64;

/// Sets space aside for writes into a range of a file. Fails with `ENOSPC` where the disk lacks it, and with `EOPNOTSUPP` where the
/// filesystem cannot promise space; the C library then writes zeros.
pub(super) fn set_aside(
    live: &mut Live,
    inode: &Inode,
    content: &Content,
    ino: Ino,
    offset: u64,
    len: u64,
) -> Result<()> {
    let known = content.own_of(&live.writer.generation);
    // Some filesystems fill the whole disk before they find out that it is too small.
    let free = live.writer.generation.free_bytes().map_err(failed)?;
    let has = known.as_ref().map_or(Ok(0), |own| own.allocated()).map_err(failed)?;
    if len.saturating_sub(has) > free {
        return Err(Error::new(ErrorKind::NoSpace, "the disk has too little free space for the range"));
    }
    let own = match known {
        Some(own) => own,
        None => DataFile::create(&live.writer.generation).map_err(failed)?,
    };
    own.set_aside(offset.saturating_sub(inode.sealed_len()), len).map_err(failed)?;
    live.writer.promise(len / CONTENT_OF_A_RECORD_BYTE).map_err(failed)?;
    give_own(live, ino, own);
    Ok(())
}

/// Directs a file's next writes to its own data file.
fn give_own(live: &mut Live, ino: Ino, own: Arc<DataFile>) {
    let inode = match live.orphans.get_mut(&ino) {
        Some(inode) => Some(Arc::make_mut(inode)),
        None => live.state.edit(ino),
    };
    if let Some(Body::File(content)) = inode.map(|inode| &mut inode.body) {
        content.settle();
        content.own = Some(own);
    }
}
