//! Crash packs on disk: written into folders, kept below a store, and listed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags};

use super::pack::{Crashpack, REPLAY};
use super::quote::seed_env_suffix;
use super::replay;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::util::sharing::Sharing;

/// The prefix of temporary folders.
const TEMPORARY: &str = ".tmp-";

impl Crashpack {
    /// Writes the pack into a new folder, durably. Only its user can read it.
    pub fn write_to(&self, dir: &Path) -> Result<()> {
        self.write_shared(dir, Sharing::Private)
    }

    fn write_shared(&self, dir: &Path, sharing: Sharing) -> Result<()> {
        let files = self.files()?;
        let failed = |e: io::Error| Error::io(e, format!("cannot write crash pack {}", dir.display()));
        sharing.create_dir_all(dir).map_err(failed)?;
        for (name, bytes) in files {
            let made = sharing.open_or_create(File::options().write(true).truncate(true), &dir.join(name));
            let mut file = made.map_err(failed)?;
            file.write_all(&bytes).map_err(failed)?;
            if name == REPLAY {
                sharing.make_runnable(&file).map_err(failed)?;
            }
            file.sync_all().map_err(failed)?;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Keeps the pack below `parent` in a folder named after its content, and returns the folder. A whole pack of that
    /// name is left alone, a damaged one replaced.
    pub fn keep_in(&self, parent: &Path) -> Result<PathBuf> {
        let failed = |e: io::Error| Error::io(e, format!("cannot create {}", parent.display()));
        Sharing::Private.create_dir_all(parent).map_err(failed)?;
        self.keep_shared(parent, Sharing::Private)
    }

    /// Does the same in an existing folder of a store that is shared.
    pub(crate) fn keep_shared(&self, parent: &Path, sharing: Sharing) -> Result<PathBuf> {
        let failed = |e: io::Error| Error::io(e, format!("cannot keep a crash pack in {}", parent.display()));
        let dir = parent.join(self.folder_name()?);
        if replay::replay(&dir, &[]).is_ok() {
            return Ok(dir);
        }
        let closed = Sharing::Private.folder_permissions();
        let temp = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(closed)
            .tempdir_in(parent)
            .map_err(failed)?;
        self.write_shared(temp.path(), sharing)?;
        sharing.grant_dir(temp.path()).map_err(failed)?;
        put_in_place(temp, &dir).map_err(failed)?;
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(dir)
    }

    fn folder_name(&self) -> Result<String> {
        let files = self.files()?;
        let digest = Digest::of(files.get("manifest").map_or(&[][..], Vec::as_slice)).hex();
        let kind =
            self.results().first().map_or_else(|| "pack".to_owned(), |r| seed_env_suffix(&r.oracle_name));
        Ok(format!("{}-{}", kind.to_ascii_lowercase(), &digest[..16]))
    }
}

/// Renames a folder to its name. A damaged pack, or any other file, of that name is removed.
fn put_in_place(temp: tempfile::TempDir, dir: &Path) -> io::Result<()> {
    let from = temp.path();
    loop {
        match rustix::fs::renameat_with(CWD, from, CWD, dir, RenameFlags::NOREPLACE) {
            Ok(()) => {
                let _ = temp.keep();
                return Ok(());
            }
            // A filesystem without the flag.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !exists(dir) => {
                fs::rename(from, dir)?;
                let _ = temp.keep();
                return Ok(());
            }
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
        match rustix::fs::renameat_with(CWD, from, CWD, dir, RenameFlags::EXCHANGE) {
            // The pack is in place, and lists leave out temporary folders.
            Ok(()) => {
                let _ = remove(&temp.keep());
                return Ok(());
            }
            // Another program removed it in between.
            Err(rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => remove(dir)?,
            Err(e) => return Err(e.into()),
        }
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// A folder among a store's crash packs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The folder's name.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// The time at which it was kept.
    pub at: SystemTime,
}

/// Lists the crash packs below `parent`, newest first. Does not read them.
pub fn kept(parent: &Path) -> Result<Vec<Kept>> {
    let failed = |e: io::Error| Error::io(e, format!("cannot list crash packs in {}", parent.display()));
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut packs = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // A pack that is being written, or was removed just now.
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() && !name.starts_with(TEMPORARY) {
            packs.push(Kept { name, path, at: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH) });
        }
    }
    packs.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.name.cmp(&b.name)));
    Ok(packs)
}
