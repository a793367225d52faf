//! Faults that a test requests. Only debug builds have them.
//!
//! `PFIMG_TEST_WRITES` lists them, separated by commas. `delay=MS` delays each write by this many milliseconds. `fail=FORK`
//! fails each write into that fork that the kernel had cached.

use crate::error::Result;
use crate::fork::Fork;

#[cfg(debug_assertions)]
pub(super) fn write(fork: &Fork, pages: bool) -> Result<()> {
    use std::sync::LazyLock;
    use std::time::Duration;

    use crate::error::{Error, ErrorKind};

    #[derive(Default)]
    struct Faults {
        delay: Option<Duration>,
        fail: Option<String>,
    }
    static FAULTS: LazyLock<Faults> = LazyLock::new(|| {
        let mut faults = Faults::default();
        for word in std::env::var("PFIMG_TEST_WRITES").unwrap_or_default().split(',') {
            match word.split_once('=') {
                Some(("delay", ms)) => faults.delay = ms.parse().ok().map(Duration::from_millis),
                Some(("fail", fork)) => faults.fail = Some(fork.to_owned()),
                _ => {}
            }
        }
        faults
    });
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
