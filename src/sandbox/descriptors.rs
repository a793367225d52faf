//! Decides which of the caller's open descriptors the command gets.
//!
//! A descriptor was opened outside of the view, where the machine's files can be written. An open folder leads to all other
//! files. A file that is open for reading can be opened for writing through /proc/self/fd. So the command gets no folders, and
//! files that are open for reading are opened again, write-protected. Files that the caller opened for writing are passed on.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use rustix::fs::Access;

use super::{mounts, sys};
use crate::error::{Error, ErrorKind, Result};

/// An open descriptor, as /proc describes it.
struct Open {
    number: RawFd,
    flags: i32,
    position: u64,
}

impl Open {
    fn of(number: RawFd) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Some(Self {
            number,
            flags: i32::from_str_radix(field("flags")?.trim(), 8).ok()?,
            position: field("pos")?.trim().parse().ok()?,
        })
    }

    fn has(&self, flag: i32) -> bool {
        self.flags & flag == flag
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.number).into()
    }

    /// Decides whether the command may get the descriptor: as it is, opened again with write protection, or not at all.
    fn judge(&self) -> io::Result<Verdict> {
        let metadata = fs::metadata(self.path())?;
        let kind = metadata.file_type();
        if self.has(libc::O_PATH) || kind.is_dir() || kind.is_block_device() {
            return Ok(Verdict::Close);
        }
        // A file without a name belongs to no other program.
        if !kind.is_file() || metadata.nlink() == 0 || self.flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Ok(Verdict::Keep);
        }
        // A file's owner can change its mode to write it.
        let writable = metadata.uid() == rustix::process::geteuid().as_raw()
            || rustix::fs::access(self.path(), Access::WRITE_OK).is_ok();
        Ok(if writable { Verdict::OpenAgain } else { Verdict::Keep })
    }

    /// Opens the same file through a separate, write-protected mount.
    fn open_again(&self) -> Result<()> {
        let name = fs::read_link(self.path()).map_err(|e| Error::io(e, "cannot read a link in /proc"))?;
        let failed = |e: io::Error| Error::io(e, format!("cannot pass {} to the command", name.display()));
        let tree = mounts::tree(&name, false)?;
        let (there, here) =
            (rustix::fs::fstat(&tree).map_err(|e| failed(e.into()))?, fs::metadata(self.path()));
        if here.is_ok_and(|here| (here.dev(), here.ino()) != (there.st_dev, there.st_ino)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{} was replaced after it was opened", name.display()),
            ));
        }
        mounts::protect_tree(&tree, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&tree);
        let mut file = File::open(format!("/proc/self/fd/{number}")).map_err(failed)?;
        file.seek(SeekFrom::Start(self.position)).map_err(failed)?;
        sys::put_in_place(&file, self.number).map_err(failed)
    }
}

enum Verdict {
    Keep,
    Close,
    OpenAgain,
}

/// Checks all descriptors that executed programs would get. Must be called before files are hidden.
pub(super) fn close_ways_out() -> Result<()> {
    let failed = |e| Error::io(e, "cannot look through the descriptors of the caller");
    let entries: Vec<_> = fs::read_dir("/proc/self/fd").map_err(failed)?.flatten().collect();
    let numbers = entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for open in numbers.filter_map(Open::of).filter(|open| !open.has(libc::O_CLOEXEC)) {
        match open.judge().unwrap_or(Verdict::Close) {
            Verdict::Keep => {}
            Verdict::Close => sys::keep_from_programs(open.number).map_err(failed)?,
            Verdict::OpenAgain => match open.open_again() {
                Ok(()) => {}
                Err(error) if open.number < 3 => {
                    return Err(error.with_hint("use a pipe: `cat FILE | pfimg run …`"));
                }
                // The caller did not ask for the command to get this one.
                Err(_) => sys::keep_from_programs(open.number).map_err(failed)?,
            },
        }
    }
    Ok(())
}
