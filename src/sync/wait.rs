//! Which threads may wait for the disk.
//!
//! An event loop answers requests of every program, so it never waits: it marks itself, and from then on has no [`MayWait`]. Code that
//! reaches the disk takes one, or calls [`required`] first, which fails with [`ErrorKind::Waits`] on an event loop. The request is
//! then done by a worker, from its beginning. So whatever fails that way must not have changed anything.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::error::{Error, ErrorKind, Result};

thread_local! {
    static NEVER_WAITS: Cell<bool> = const { Cell::new(false) };
}

/// Marks the calling thread as an event loop.
pub(crate) fn never() {
    NEVER_WAITS.set(true);
}

/// Whether the calling thread may wait for the disk.
pub(crate) fn is_allowed() -> bool {
    !NEVER_WAITS.get()
}

/// Proves that the thread that has it may wait for the disk. It stays in its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayWait(PhantomData<*const ()>);

impl MayWait {
    /// That of the calling thread; an event loop has none.
    pub(crate) fn here() -> Option<Self> {
        is_allowed().then_some(Self(PhantomData))
    }
}

/// Fails on an event loop.
pub(crate) fn required() -> Result<MayWait> {
    MayWait::here().ok_or_else(|| Error::new(ErrorKind::Waits, "this takes waiting for the disk"))
}

/// To be called where the disk is waited for. A debug build panics here on an event loop, which answers the request with EIO.
///
/// A test can hold a debug build here: where the folder that `PFIMG_TEST_HOLDS` names has a FIFO called `what`, this makes the file
/// `what-N` there, and waits until the FIFO was opened for writing and closed.
#[cfg(debug_assertions)]
pub(crate) fn disk(what: &str) {
    use std::io::Read;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static HOLDS: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("PFIMG_TEST_HOLDS").map(PathBuf::from));
    static ARRIVED: AtomicU64 = AtomicU64::new(0);
    assert!(is_allowed(), "an event loop waits for the disk: {what}");
    let Some(holds) = &*HOLDS else { return };
    let fifo = holds.join(what);
    if fifo.exists() {
        let _ = std::fs::write(holds.join(format!("{what}-{}", ARRIVED.fetch_add(1, Ordering::Relaxed))), "");
        let _ = std::fs::File::open(fifo).and_then(|mut fifo| fifo.read(&mut [0]));
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn disk(_: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_loop_has_no_leave_to_wait_and_other_threads_have() {
        assert!(MayWait::here().is_some() && required().is_ok());
        let on_a_loop = std::thread::spawn(|| {
            never();
            let kind = required().err().map(|error| error.kind());
            (MayWait::here().is_none(), kind, std::panic::catch_unwind(|| disk("a test")).is_err())
        });
        assert_eq!(on_a_loop.join().unwrap(), (true, Some(ErrorKind::Waits), cfg!(debug_assertions)));
    }
}
