//! Observes a freeze: counts operations that were still running, and gaps in the frozen journals.

use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::disk::Generation;
use super::freeze::Frozen;
use super::journal::FRAME;
use super::live::Fork;
use super::record::HEADER;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{RwLock, RwLockReadGuard, wait};

/// How long a freeze waits for operations of several steps. It counts the operations that still run then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of a journal that are looked at together.
const WINDOW: usize = 64 << 10;

/// The running operations of several steps. A freeze between two steps would catch half an operation.
#[derive(Default)]
pub(super) struct Operations {
    turn: RwLock<()>,
    pending: AtomicU32,
}

/// An operation of several steps that has begun and not ended. A freeze waits for it, but not forever.
pub struct Operation<'a> {
    operations: &'a Operations,
    _turn: RwLockReadGuard<'a, ()>,
}

impl Operations {
    /// Waits for the running operations and hands `freeze` the number of those that do not end. No operation begins until
    /// `freeze` returns.
    pub(super) fn pause<T>(&self, freeze: impl FnOnce(u32) -> T) -> T {
        let _turn = self.turn.try_write_for(PATIENCE);
        freeze(self.pending.load(Ordering::Acquire))
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.operations.pending.fetch_sub(1, Ordering::Release);
    }
}

impl Fork {
    /// Like [`Fork::operation`], on any thread. A freeze waits for the disk, so an event loop gets
    /// [`ErrorKind::Waits`] while one runs.
    pub(super) fn operation_or_wait(&self) -> Result<Operation<'_>> {
        if wait::is_allowed() {
            return Ok(self.operation());
        }
        let turn = self.operations.turn.try_read();
        let turn = turn.ok_or_else(|| Error::new(ErrorKind::Waits, "the fork is being frozen"))?;
        self.operations.pending.fetch_add(1, Ordering::Acquire);
        Ok(Operation { operations: &self.operations, _turn: turn })
    }

    /// Begins an operation of several steps, which ends when the guard is dropped. Operations must not nest.
    pub fn operation(&self) -> Operation<'_> {
        let turn = self.operations.turn.read();
        self.operations.pending.fetch_add(1, Ordering::Acquire);
        Operation { operations: &self.operations, _turn: turn }
    }
}

impl Frozen {
    /// Counts the operations of several steps that were still running at the freeze.
    pub fn pending_operations(&self) -> u32 {
        self.pending
    }

    /// Counts record numbers that are missing or out of order in the journals on disk. The cost grows with the changes.
    ///
    /// Fails if a journal cannot be read.
    pub fn journal_gaps(&self) -> Result<u32> {
        self.generations.iter().try_fold(0_u32, |gaps, generation| {
            let found = gaps_of(generation)
                .map_err(|e| Error::io(e, format!("cannot read {}", generation.journal_path().display())))?;
            Ok(gaps.saturating_add(found))
        })
    }
}

fn gaps_of(generation: &Generation) -> io::Result<u32> {
    let journal = generation.journal()?;
    let mut window = vec![0; WINDOW];
    let (mut start, mut filled) = (0, 0);
    let (mut at, mut next, mut gaps) = (HEADER as u64, 1_u64, 0_u64);
    let written = generation.written();
    loop {
        if written.is_some_and(|(_, end)| at >= end) {
            break;
        }
        if at < start || at + FRAME as u64 > start + filled as u64 {
            (start, filled) = (at, read_full(&journal, &mut window, at)?);
        }
        let Some(frame) = window[..filled].get((at - start) as usize..).and_then(|rest| rest.get(..FRAME))
        else {
            break;
        };
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]))
        };
        let seq = word(8) | word(12) << 32;
        if seq != next {
            // Each skipped number counts as one gap; a repeated number also counts as one.
            gaps += seq.checked_sub(next).map_or(1, |missing| missing.max(1));
        }
        next = seq.saturating_add(1);
        at += FRAME as u64 + word(4);
    }
    if let Some((seq, _)) = written {
        gaps += seq.abs_diff(next);
    }
    Ok(u32::try_from(gaps).unwrap_or(u32::MAX))
}

fn read_full(file: &std::fs::File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
