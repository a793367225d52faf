//! Locks between programs that use a store at the same time: `refs/.<name>`, with flock(2), and pins.
//!
//! `pf` takes no locks. These locks are between pfimg programs, and each is held for a short time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::handle::Store;
use super::tags::check_new_tag;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Held shared while a program makes an image from blobs that it found, exclusively while blobs are deleted.
const COMMITS: &str = "commits.lock";

/// Held exclusively while a project gets its name.
const PROJECTS: &str = "projects.lock";

/// A pin without a program that holds it counts this long: it may only just be made.
const PIN_GRACE: Duration = Duration::from_mins(1);

/// Keeps collectors away from images until it is dropped. It dies with its program.
#[derive(Debug)]
pub struct Pin(Option<(PathBuf, File)>);

impl Pin {
    /// Releases the pin. Returns whether it could not be removed.
    pub fn is_left(self) -> bool {
        let path = self.0.as_ref().map(|(path, _)| path.clone());
        drop(self);
        path.is_some_and(|path| path.exists())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            let _ = fs::remove_file(path);
            // Reading leaves nothing behind; another program's pin keeps the folder.
            let _ = path.parent().map(fs::remove_dir);
        }
    }
}

impl Store {
    fn lock_file(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.root().join("refs").join(format!(".{name}"));
        let open = || self.sharing().open_or_create(File::options().write(true), &path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Makes the folder that the first tag needs, too: a copy of a tag should cost one line.
                self.sharing().create_dir_below(self.root(), self.tags().dir()).and_then(|()| open())
            }
            other => other,
        };
        let file = file.map_err(|e| Error::io(e, format!("cannot open {}", path.display())))?;
        Ok((path, file))
    }

    fn lock(&self, name: &str, how: FlockOperation) -> Result<Option<File>> {
        let (path, file) = self.lock_file(name)?;
        loop {
            return match rustix::fs::flock(&file, how) {
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Ok(None),
                // On a filesystem without locks, only the grace period protects young blobs.
                Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => Ok(Some(file)),
                Err(e) => Err(Error::io(e.into(), format!("cannot lock {}", path.display()))),
            };
        }
    }

    /// Takes a lock that one program at a time may hold. Returns nothing if another program holds it. Held
    /// until the file is dropped.
    pub fn try_lock(&self, name: &str) -> Result<Option<File>> {
        self.lock(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until no other program gives a project a name, and keeps others from it until the file is dropped.
    pub fn lock_projects(&self) -> Result<Option<File>> {
        self.lock(PROJECTS, FlockOperation::LockExclusive)
    }

    /// Waits until no other program imports the project of this name, and keeps others from it until the file is dropped.
    pub fn lock_project(&self, name: &str) -> Result<Option<File>> {
        check_new_tag(name)?;
        // A tag's name may be as long as a file's; the lock has more.
        self.lock(
            &format!("project.{}.lock", &Digest::of(name.as_bytes()).hex()[..16]),
            FlockOperation::LockExclusive,
        )
    }

    /// Makes commits of images wait until the file is dropped.
    pub fn lock_commits(&self) -> Result<Option<File>> {
        self.lock(COMMITS, FlockOperation::LockExclusive)
    }

    /// Keeps existing blobs in the store until the file is dropped.
    pub(super) fn hold_blobs(&self) -> Result<Option<File>> {
        self.lock(COMMITS, FlockOperation::LockShared)
    }

    /// Keeps collectors away from images. A store that cannot be written to has no pfimg collectors either.
    pub fn pin(&self, images: &[Digest]) -> Pin {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let dir = self.root().join("refs").join("pins");
        let name = format!("{}.{}", std::process::id(), NUMBERS.fetch_add(1, Ordering::Relaxed));
        let path = dir.join(name);
        let make = || {
            let mut attempts = 0;
            let mut file = loop {
                self.sharing().create_dir_below(self.root(), &dir)?;
                attempts += 1;
                match self.sharing().open_or_create(File::options().write(true).truncate(true), &path) {
                    // Another program's last pin removed the folder.
                    Err(e) if e.kind() == io::ErrorKind::NotFound && attempts < 10 => {}
                    other => break other?,
                }
            };
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            for image in images {
                writeln!(file, "{image}")?;
            }
            Ok::<_, io::Error>(file)
        };
        match make() {
            Ok(file) => Pin(Some((path, file))),
            Err(e) => {
                tracing::debug!("cannot pin images in {}: {e}", dir.display());
                Pin(None)
            }
        }
    }

    /// Lists the images that running programs need, each with its pin.
    pub fn pins(&self) -> Result<Vec<(Digest, String)>> {
        let dir = self.root().join("refs").join("pins");
        let failed = |e| Error::io(e, format!("cannot list {}", dir.display()));
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut pins = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let Ok(file) = File::open(&path) else { continue };
            let held = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err();
            let age = file.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = age.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            if !held && age > PIN_GRACE {
                // Its program was killed.
                let _ = fs::remove_file(&path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let holder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pins.extend(text.lines().filter_map(|line| Some((line.parse().ok()?, holder.clone()))));
        }
        Ok(pins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn one_holds_a_lock_at_a_time() {
        let (_dir, store) = store();
        let held = store.try_lock("gc.lock").unwrap();
        assert!(held.is_some() && store.try_lock("gc.lock").unwrap().is_none());
        assert!(store.try_lock("other.lock").unwrap().is_some());
        drop(held);
        assert!(store.try_lock("gc.lock").unwrap().is_some());
    }

    #[test]
    fn a_pin_counts_until_it_is_dropped_or_its_program_is_dead() {
        let (dir, store) = store();
        let image = Digest::of(b"image");
        assert_eq!(store.pins().unwrap(), []);
        let pin = store.pin(&[image]);
        assert_eq!(store.pins().unwrap()[0].0, image);
        drop(pin);
        assert_eq!(store.pins().unwrap(), []);
        let left = dir.path().join("refs/pins/7.7");
        assert!(!left.with_file_name("").exists(), "nothing is left behind");
        fs::create_dir_all(left.with_file_name("")).unwrap();
        fs::write(&left, format!("{image}\n")).unwrap();
        assert_eq!(store.pins().unwrap().len(), 1, "it may only just be made");
        File::options().write(true).open(&left).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(store.pins().unwrap(), []);
        assert!(!left.exists());
    }
}
