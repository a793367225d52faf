//! Faults that a test requests. Only debug builds have them.
//!
//! `PFIMG_TEST_WRITES` lists them, separated by commas. `delay=MS` delays each write by this many milliseconds. `fail=FORK`
//! fails each write into that fork that the kernel had cached. `leave` makes each write wait for the disk, so that event loops
//! leave it to workers; a test can hold it at `write`.

use crate::error::Result;
use crate::fork::Fork;

#[cfg(debug_assertions)]
pub(super) fn write(fork: &Fork, pages: bool) -> Result<()> {
    use std::sync::LazyLock;
    use std::time::Duration;

    use crate::error::{Error, ErrorKind};
    use crate::sync::wait;

    #[derive(Default)]
    struct Faults {
        delay: Option<Duration>,
        fail: Option<String>,
        leave: bool,
    }
    static FAULTS: LazyLock<Faults> = LazyLock::new(|| {
        let mut faults = Faults::default();
        for word in std::env::var("PFIMG_TEST_WRITES").unwrap_or_default().split(',') {
            match word.split_once('=') {
                Some(("delay", ms)) => faults.delay = ms.parse().ok().map(Duration::from_millis),
                Some(("fail", fork)) => faults.fail = Some(fork.to_owned()),
                None if word == "leave" => faults.leave = true,
                _ => {}
            }
        }
        faults
    });
    if FAULTS.leave {
        wait::required()?;
        wait::disk("write");
    }
    if let Some(delay) = FAULTS.delay {
        std::thread::sleep(delay);
    }
    if pages && FAULTS.fail.as_ref().is_some_and(|name| *name == fork.name()) {
        return Err(Error::new(ErrorKind::Io(Some(libc::EIO)), "a test requested this failure"));
    }
    Ok(())
}

#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps)]
pub(super) fn write(_: &Fork, _: bool) -> Result<()> {
    Ok(())
}
