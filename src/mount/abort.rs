//! Ends a connection to the kernel whose mount programs still use.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where the kernel's filesystem of connections is usually mounted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Ends the connection of the mount with this device, `major:minor`. Programs that have its files open get ENOTCONN.
///
/// An ordinary user needs the filesystem of connections (fusectl), which most systems mount at boot.
pub(crate) fn connection(device: &str) -> io::Result<()> {
    let number = device.rsplit(':').next().unwrap_or(device);
    let name = format!("{number}/abort");
    let mut file = match File::options().write(true).open(Path::new(CONNECTIONS).join(&name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => unmounted(&name)?,
        Err(error) => return Err(error),
    };
    file.write_all(b"1")
}

/// Opens a file of that filesystem where it is not mounted, which only root can do.
fn unmounted(name: &str) -> io::Result<File> {
    let system = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&system)?;
    let top = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(openat(&top, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}
