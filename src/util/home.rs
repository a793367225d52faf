//! Checks whether a store is still at the path by which a long-running program reaches it.
//!
//! A mount, and the thread that writes its log, reach the store by a path. Another program may move the
//! store, or put another one at that path. Then open files still belong to the store, and files opened by
//! path do not. So the folder is held open, and compared.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Posix, Result};

/// The folder of a store in use.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    /// The folder itself, even after it was moved. [`None`] if it could not be opened: then the path is trusted.
    folder: Option<File>,
    /// Whether it was elsewhere at the last check.
    moved: AtomicBool,
    /// Whether the log says so.
    told: AtomicBool,
}

impl Home {
    pub(crate) fn new(path: &Path) -> Self {
        // Without a right to read, and without preventing a lazy unmount of the filesystem.
        let open = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path);
        Self {
            path: path.to_owned(),
            folder: open.ok(),
            moved: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// Checks on the disk whether the store is at its path.
    fn look(&self) -> bool {
        let Some(Ok(own)) = self.folder.as_ref().map(File::metadata) else { return true };
        let is_there = match std::fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) == (own.dev(), own.ino()),
            Err(e) => !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        };
        self.moved.store(!is_there, Ordering::Release);
        is_there
    }

    /// Returns the store's present path, as far as the kernel knows it. [`None`] if the store was not moved.
    pub(crate) fn moved_to(&self) -> Option<String> {
        if self.look() {
            return None;
        }
        let folder = self.folder.as_ref()?;
        if folder.metadata().is_ok_and(|folder| folder.nlink() == 0) {
            return Some("nowhere: it was removed".into());
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()?;
        Some(path.to_string_lossy().into_owned())
    }

    fn error(&self) -> Error {
        let path = self.path.display();
        let to = self
            .folder
            .as_ref()
            .and_then(|folder| std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok());
        let to = to.map_or_else(String::new, |to| format!(" to {}", to.display()));
        let what = format!("the store {path} was moved{to} while it is in use");
        Error::new(ErrorKind::Posix(Posix::Stale), what)
            .with_path(&self.path)
            .with_hint("move it back, or unmount it and mount it from its new place")
    }

    /// Fails if the store is elsewhere, by a check on the disk.
    pub(crate) fn require(&self) -> Result<()> {
        if self.look() { Ok(()) } else { Err(self.error()) }
    }

    /// Fails if the store was elsewhere at the last check: costs nothing.
    pub(crate) fn check(&self) -> Result<(), ErrorKind> {
        if self.moved.load(Ordering::Relaxed) { Err(ErrorKind::Posix(Posix::Stale)) } else { Ok(()) }
    }

    /// Checks, and logs each change. One thread calls this now and then.
    pub(crate) fn watch(&self) {
        let is_there = self.look();
        if self.told.swap(!is_there, Ordering::AcqRel) != is_there {
            return;
        }
        if is_there {
            tracing::info!("the store is at {} again: its forks can be written again", self.path.display());
        } else {
            tracing::error!("{}", self.error());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_store_that_is_moved_replaced_and_moved_back_is_known_by_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
        fs::create_dir(&old).unwrap();
        let home = Home::new(&old);
        assert!(home.require().is_ok() && home.check().is_ok() && home.moved_to().is_none());
        fs::rename(&old, &new).unwrap();
        let said = home.require().unwrap_err();
        assert_eq!(said.errno(), libc::ESTALE);
        assert!(said.to_string().contains(&format!("moved to {}", new.display())), "{said}");
        assert_eq!(home.moved_to().as_deref(), new.to_str());
        // A new folder at the path is a different store.
        fs::create_dir(&old).unwrap();
        assert!(home.require().is_err() && home.check().is_err());
        fs::remove_dir(&old).unwrap();
        fs::rename(&new, &old).unwrap();
        assert!(home.require().is_ok() && home.check().is_ok());
        fs::remove_dir(&old).unwrap();
        assert_eq!(home.moved_to().as_deref(), Some("nowhere: it was removed"));
    }
}
