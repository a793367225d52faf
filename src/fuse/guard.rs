//! Keeps an event loop alive.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::vfs::Op;

/// Runs a handler. A panic in it does not end the event loop: the dropped reply answers EIO.
pub(super) fn guarded(op: Op, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("an error in pfimg made a {} request fail; the program got EIO", op.name());
    }
}
