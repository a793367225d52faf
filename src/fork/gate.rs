//! Lets operations of several steps end before a freeze.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{RwLock, RwLockReadGuard, wait};

/// How long a freeze waits for operations of several steps. It counts the operations that still run then.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running operations of several steps. A freeze between two steps would catch half an operation.
#[derive(Default)]
pub(super) struct Gate {
    turn: RwLock<()>,
    pending: AtomicU32,
}

/// An operation of several steps that has begun and not ended. A freeze waits for it, but not forever.
pub struct Operation<'a> {
    gate: &'a Gate,
    _turn: RwLockReadGuard<'a, ()>,
}

impl Gate {
    /// Waits for the running operations and hands `freeze` the number of those that do not end. No operation begins until
    /// `freeze` returns.
    pub(super) fn pause<T>(&self, freeze: impl FnOnce(u32) -> T) -> T {
        let _turn = self.turn.try_write_for(PATIENCE);
        freeze(self.pending.load(Ordering::Acquire))
    }

    /// Like [`Gate::enter`], on any thread. A freeze waits for the disk, so an event loop gets
    /// [`ErrorKind::Waits`] while one runs.
    pub(super) fn enter_or_wait(&self) -> Result<Operation<'_>> {
        if wait::is_allowed() {
            return Ok(self.enter());
        }
        let turn = self.turn.try_read();
        let turn = turn.ok_or_else(|| Error::new(ErrorKind::Waits, "the fork is being frozen"))?;
        self.pending.fetch_add(1, Ordering::Acquire);
        Ok(Operation { gate: self, _turn: turn })
    }

    /// Begins an operation of several steps, which ends when the guard is dropped. Operations must not nest.
    pub(super) fn enter(&self) -> Operation<'_> {
        let turn = self.turn.read();
        self.pending.fetch_add(1, Ordering::Acquire);
        Operation { gate: self, _turn: turn }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.gate.pending.fetch_sub(1, Ordering::Release);
    }
}
