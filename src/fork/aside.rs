//! Reserves space for fallocate(2), so that later writes into a range cannot fail for lack of it.
//!
//! Space is reserved in the file's own data file, which takes all later writes into the range, and in the journal for the
//! records of those writes. Both belong to the generation that is being written. A seal, a branch or a remount ends the
//! promise: it begins a generation, or reads one back, in which the file keeps its length but has no reserved space.

use std::sync::Arc;

use super::content::failed;
use super::disk::DataFile;
use super::ino::Ino;
use super::live::Live;
use super::node::{Body, Content, Inode};
use crate::error::{Error, ErrorKind, Result};

/// A byte of journal for this many bytes of content: a write of a page has a record of about 60 bytes.
const CONTENT_OF_A_RECORD_BYTE: u64 = 64;

impl Live {
    /// Sets space aside for writes into a range of a file. Fails with `ENOSPC` where the disk lacks it, and with `EOPNOTSUPP` where the
    /// filesystem cannot promise space; the C library then writes zeros.
    pub(super) fn set_aside(
        &mut self,
        inode: &Inode,
        content: &Content,
        ino: Ino,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let known = content.own_of(&self.writer.generation);
        // Some filesystems fill the whole disk before they find out that it is too small.
        let free = self.writer.generation.free_bytes().map_err(failed)?;
        let has = known.as_ref().map_or(Ok(0), |own| own.allocated()).map_err(failed)?;
        if len.saturating_sub(has) > free {
            return Err(Error::new(ErrorKind::NoSpace, "the disk has too little free space for the range"));
        }
        let own = match known {
            Some(own) => own,
            None => DataFile::create(&self.writer.generation).map_err(failed)?,
        };
        own.set_aside(offset.saturating_sub(inode.floor()), len).map_err(failed)?;
        self.writer.promise(len / CONTENT_OF_A_RECORD_BYTE).map_err(failed)?;
        self.give_own(ino, own);
        Ok(())
    }

    /// Directs a file's next writes to its own data file.
    fn give_own(&mut self, ino: Ino, own: Arc<DataFile>) {
        let inode = match self.orphans.get_mut(&ino) {
            Some(inode) => Some(Arc::make_mut(inode)),
            None => self.state.edit(ino),
        };
        if let Some(Body::File(content)) = inode.map(|inode| &mut inode.body) {
            content.settle();
            content.own = Some(own);
        }
    }
}
