//! What the caller has open, and the command gets.
//!
//! A descriptor was opened outside of the view, where the machine's files can be written. From a folder everything else is
//! reached, and what was opened for reading is opened for writing through /proc/self/fd. So folders are not handed on, and
//! files that were opened for reading are opened again, write-protected. What was opened for writing is the command's.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use rustix::fs::Access;

use super::{sys, view};
use crate::error::{Error, ErrorKind, Result};

/// An open descriptor, as /proc tells of it.
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

    /// Whether it is a way to the machine's files that the command must not have, and whether it can be opened again without.
    fn judge(&self) -> io::Result<Verdict> {
        let metadata = fs::metadata(self.path())?;
        let kind = metadata.file_type();
        if self.has(libc::O_PATH) || kind.is_dir() || kind.is_block_device() {
            return Ok(Verdict::Close);
        }
        // What has no name any more is nobody else's.
        if !kind.is_file() || metadata.nlink() == 0 || self.flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Ok(Verdict::Keep);
        }
        // Its owner can let itself write.
        let writable = metadata.uid() == rustix::process::geteuid().as_raw()
            || rustix::fs::access(self.path(), Access::WRITE_OK).is_ok();
        Ok(if writable { Verdict::OpenAgain } else { Verdict::Keep })
    }

    /// Opens the same file through a mount of its own that is write-protected.
    fn open_again(&self) -> Result<()> {
        let name = fs::read_link(self.path()).map_err(|e| Error::io(e, "cannot read a link in /proc"))?;
        let failed = |e: io::Error| Error::io(e, format!("cannot hand on {}", name.display()));
        let tree = view::tree(&name, false)?;
        let (there, here) =
            (rustix::fs::fstat(&tree).map_err(|e| failed(e.into()))?, fs::metadata(self.path()));
        if here.is_ok_and(|here| (here.dev(), here.ino()) != (there.st_dev, there.st_ino)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{} is another file by now", name.display()),
            ));
        }
        view::protect_tree(&tree, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
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

/// Goes through all that programs which are executed from here on would get. To be called where what is hidden is still seen.
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
                    return Err(error.with_hint("give it to the command by a pipe: `cat FILE | pfimg run …`"));
                }
                // Nobody has said that the command should have it.
                Err(_) => sys::keep_from_programs(open.number).map_err(failed)?,
            },
        }
    }
    Ok(())
}
