//! Makes calls on a mount of this process.
//!
//! A process that is killed while one of its threads waits for its own mount would hold its own connection to the kernel open,
//! and wait for ever. So each of these calls runs on a thread with a separate table of descriptors, which has no connection.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::thread;

use crate::error::{Error, ErrorKind, Result};
use crate::mount::own::prepare_thread;

/// Runs `work` on a thread that holds no connection, and waits for it. `work` must not take descriptors along or return any.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("pfimg-own".into())
            .spawn_scoped(scope, || {
                prepare_thread();
                work()
            })
            .map_err(|e| Error::io(e, "cannot start a thread"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Looks at a new mount once. The kernel then knows which requests it need not send (OPEN, OPENDIR, FLUSH, GETXATTR) before
/// programs use the mount, and the caller knows that the mount answers.
pub(super) fn requests(mountpoint: &Path) -> Result<()> {
    let failed = |e| Error::io(e, format!("{} does not answer", mountpoint.display()));
    let status = mountpoint.join(".pfimg/status.json");
    let mut file = File::open(&status).map_err(failed)?;
    if file.read(&mut [0]).map_err(failed)? == 0 {
        return Err(Error::new(ErrorKind::Io(None), format!("{} is empty", status.display())));
    }
    drop(file);
    let _ = fs::read_dir(mountpoint).map_err(failed)?.next();
    let _ = rustix::fs::getxattr(mountpoint, "user.pfimg", &mut [0u8; 1]);
    Ok(())
}
