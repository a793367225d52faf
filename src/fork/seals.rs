//! The list of images made of a fork: `seals/<uid>`, one line for each, oldest first.
//!
//! ```text
//! sha256:<hex64> <nanoseconds since 1970>
//! sha256:<hex64> <nanoseconds since 1970> found
//! ```
//! A line is written before its image, so that none is missing after a crash; a line without an image is ignored.
//! `found` says that the image was the fork's unchanged base when it was sealed: the fork can be restored to it, but
//! did not make it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::head::{self, Head, refuse_fork_name};
use super::live::{Fork, now};
use super::registry::no_fork;
use super::stats::ForkInfo;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::write_whole;

/// Comes after the time of an image that existed before its fork was sealed.
const FOUND: &str = "found";

/// A seal of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The image.
    pub image: Digest,
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Whether it was made of the fork. Otherwise the fork was unchanged when it was sealed.
    pub made: bool,
}

impl Fork {
    fn seals_path(&self) -> std::path::PathBuf {
        self.shared.forks.join("seals").join(&self.uid)
    }

    /// Records that an image is about to be made of the fork.
    pub(crate) fn note_seal(&self, image: &Digest) -> Result<()> {
        self.note(&format!("{image} {}", now()))
    }

    /// Adds the unchanged base image to the fork's seals, unless it is in the list.
    pub(crate) fn note_found(&self, image: &Digest) -> Result<()> {
        if self.seals()?.iter().any(|seal| seal.image == *image) {
            return Ok(());
        }
        self.note(&format!("{image} {} {FOUND}", now()))
    }

    fn note(&self, line: &str) -> Result<()> {
        let path = self.seals_path();
        // A fork that is discarded at the same time leaves no list behind.
        let _held = self.head.lock();
        self.may_write()?;
        let write = || {
            if let Some(dir) = path.parent() {
                let store = self.shared.forks.parent().unwrap_or(&self.shared.forks);
                self.shared.files.io.create_dir_below(store, dir, self.shared.files.sharing)?;
            }
            let sharing = self.shared.files.sharing;
            let file = sharing.open_or_create(File::options().append(true), &path)?;
            // A newline at the beginning too, so that this line does not join a truncated one.
            let line = format!("\n{line}\n");
            let end = file.metadata()?.len();
            let mut done = 0;
            while done < line.len() {
                match self.shared.files.io.write_at(&file, &line.as_bytes()[done..], end + done as u64)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => done += n,
                }
            }
            Ok(())
        };
        write().map_err(|e| Error::io(e, format!("cannot write {}", path.display())))
    }

    /// The fork's seals, oldest first. The images may be gone from the store.
    pub fn seals(&self) -> Result<Vec<Seal>> {
        sealed_as(self.shared.forks.parent().unwrap_or(&self.shared.forks), &self.uid)
    }

    /// Gives another fork the same list, durably: after a restore the new fork finds its earlier seals in it.
    pub(super) fn inherit_seals(&self, to: &str) -> Result<()> {
        let path = self.seals_path();
        let seals = self.shared.forks.join("seals");
        let failed = |e| Error::io(e, "cannot keep the list of seals");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        // A copy, not a second name: not every filesystem has hard links.
        let io = &*self.shared.files.io;
        write_whole(io, self.shared.files.sharing, &seals.join(to), &text, false, true).map_err(failed)?;
        io.sync_dir(&seals).map_err(failed)
    }

    /// Removes the list of a fork that no longer exists, and its project.
    pub(super) fn forget_seals(forks: &std::path::Path, uid: &str) {
        let _ = fs::remove_file(forks.join("seals").join(uid));
        super::beside::forget_project(forks, uid);
    }
}

/// Lists the images that a fork was sealed as, by its `uid`, oldest first. Reads only the list.
pub fn sealed_as(store: &Path, uid: &str) -> Result<Vec<Seal>> {
    let path = store.join("forks/seals").join(uid);
    match fs::read(&path) {
        Ok(text) => Ok(parse(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(e, format!("cannot read {}", path.display()))),
    }
}

/// Reads what the disk records of a fork, and its seals. Reads only its head and its list of seals.
pub fn on_disk(store: &Path, name: &str) -> Result<(ForkInfo, Vec<Seal>)> {
    let read = || match refuse_fork_name(name) {
        Some(_) => Err(no_fork(name)),
        None => Head::read(&head::path(&store.join("forks"), name), name),
    };
    let head = read().map_err(|e| if e.kind() == ErrorKind::NotFound { no_fork(name) } else { e })?;
    let seals = sealed_as(store, &head.uid)?;
    Ok((ForkInfo::of(&head, None), seals))
}

/// The images of a list, oldest first. Invalid lines are skipped.
pub(super) fn parse(text: &[u8]) -> Vec<Seal> {
    let seal = |line: &str| {
        let mut words = line.split(' ');
        let (image, at_ns) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let made = match (words.next(), words.next()) {
            (None, _) => true,
            (Some(FOUND), None) => false,
            _ => return None,
        };
        Some(Seal { image, at_ns, made })
    };
    String::from_utf8_lossy(text).lines().filter_map(seal).collect()
}
