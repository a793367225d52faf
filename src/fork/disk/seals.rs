//! The list of images made of a fork, and of its restores: `seals/<uid>`, one line for each, oldest first.
//!
//! ```text
//! sha256:<hex64> <nanoseconds since 1970>
//! sha256:<hex64> <nanoseconds since 1970> found
//! about <nanoseconds since 1970> {"after":"idle","within":"my-agent",…}
//! restored <nanoseconds since 1970> {"of":"0","image":"sha256:…","before":"sha256:…"}
//! ```
//! A line is written before its image, so that none is missing after a crash; a line without an image is ignored.
//! `found` says that the image was the fork's unchanged base when it was sealed: the fork can be restored to it, but
//! did not make it. `about` says more of the seal with the same time. An older program skips the last two.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::files::OpenFiles;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fork::clock::now;
use crate::store::write_whole;

/// Comes after the time of an image that existed before its fork was sealed.
const FOUND: &str = "found";

/// Begin the other lines.
const ABOUT: &str = "about";
const RESTORED: &str = "restored";

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

/// What a seal changed, in files: against the seal before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files that are new.
    pub added: u64,
    /// Files with other content or other attributes.
    pub changed: u64,
    /// Files that are gone.
    pub deleted: u64,
    /// The folder that holds all of these, from the top of the files; nothing if they have none in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// Why a seal was made, and what it changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Why, in words: `idle`, `before restore of docs/`.
    #[serde(default)]
    pub after: String,
    /// The command that ran in the fork then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// What its user said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What it changed; unknown of seals that an older program made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

impl About {
    /// A seal for a reason.
    pub fn after(why: impl Into<String>) -> Self {
        Self { after: why.into(), ..Self::default() }
    }

    /// All that is known of why, in words.
    pub fn words(&self) -> String {
        if let Some(message) = &self.message {
            return message.clone();
        }
        let after = if self.after.is_empty() { "seal" } else { &self.after };
        match &self.within {
            Some(command) => format!("{after}, in {command}"),
            None => after.to_owned(),
        }
    }
}

/// A restore of a fork, or of some of its paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// To what, in words: the number of a seal, or its tag.
    pub of: String,
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// The image that holds the state before.
    pub before: Option<Digest>,
    /// The paths from the top of the files; nothing if all of the fork was restored.
    pub paths: Option<Vec<Vec<u8>>>,
}

/// A [`Restored`] as its line has it. Paths may be any bytes, and are written as base64.
#[derive(Serialize, Deserialize)]
struct RestoredLine {
    of: String,
    image: Option<Digest>,
    before: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<String>>,
}

impl Restored {
    fn line(&self) -> String {
        let encode = |path: &Vec<u8>| BASE64.encode(path);
        let paths = self.paths.as_ref().map(|paths| paths.iter().map(encode).collect());
        let line = RestoredLine { of: self.of.clone(), image: self.image, before: self.before, paths };
        format!("{RESTORED} {} {}", self.at_ns, serde_json::json!(line))
    }

    fn parse(at_ns: i64, rest: &str) -> Option<Self> {
        let RestoredLine { of, image, before, paths } = serde_json::from_str(rest).ok()?;
        let decode = |path: String| BASE64.decode(path.as_bytes()).ok();
        let paths = match paths {
            Some(paths) => Some(paths.into_iter().map(decode).collect::<Option<_>>()?),
            None => None,
        };
        Some(Self { at_ns, of, image, before, paths })
    }
}

/// An entry of a fork's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A seal.
    Sealed(Seal, About),
    /// A restore.
    Restored(Restored),
}

impl Entry {
    /// The seal, of an entry for a seal.
    pub fn seal(&self) -> Option<Seal> {
        if let Self::Sealed(seal, _) = self { Some(*seal) } else { None }
    }
}

/// The list of one fork.
pub(in crate::fork) struct SealList<'a> {
    pub(in crate::fork) forks: &'a Path,
    pub(in crate::fork) files: &'a OpenFiles,
    pub(in crate::fork) uid: &'a str,
}

impl SealList<'_> {
    fn path(&self) -> PathBuf {
        self.forks.join("seals").join(self.uid)
    }

    fn store(&self) -> &Path {
        self.forks.parent().unwrap_or(self.forks)
    }

    /// Records that an image is about to be made of the fork.
    pub(in crate::fork) fn note_seal(&self, image: &Digest, about: &About) -> Result<()> {
        let at = now();
        self.note(&format!("{image} {at}\n{ABOUT} {at} {}", serde_json::json!(about)))
    }

    /// Adds the unchanged base image to the fork's seals.
    pub(in crate::fork) fn note_found(&self, image: &Digest, about: &About) -> Result<()> {
        let at = now();
        self.note(&format!("{image} {at} {FOUND}\n{ABOUT} {at} {}", serde_json::json!(about)))
    }

    /// Records that paths of the fork were restored.
    pub(in crate::fork) fn note_restored(&self, restored: &Restored) -> Result<()> {
        self.note(&restored.line())
    }

    fn note(&self, line: &str) -> Result<()> {
        let (path, sharing) = (self.path(), self.files.sharing);
        let write = || {
            if let Some(dir) = path.parent() {
                self.files.io.create_dir_below(self.store(), dir, sharing)?;
            }
            let file = sharing.open_or_create(File::options().append(true), &path)?;
            // A newline at the beginning too, so that this line does not join a truncated one.
            let line = format!("\n{line}\n");
            let end = file.metadata()?.len();
            let mut done = 0;
            while done < line.len() {
                match self.files.io.write_at(&file, &line.as_bytes()[done..], end + done as u64)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => done += n,
                }
            }
            Ok(())
        };
        write().map_err(|e| Error::io(e, format!("cannot write {}", path.display())))
    }

    /// The fork's seals and restores, oldest first. The images may be gone from the store.
    pub(in crate::fork) fn entries(&self) -> Result<Vec<Entry>> {
        history_of(self.store(), self.uid)
    }

    /// Gives another fork the same list and `restored`, durably: after a restore the new fork finds its earlier seals in it.
    pub(in crate::fork) fn inherit(&self, to: &str, restored: Option<&Restored>) -> Result<()> {
        let seals = self.forks.join("seals");
        let failed = |e| Error::io(e, "cannot keep the list of seals");
        let mut text = match fs::read(self.path()) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && restored.is_none() => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed(e)),
        };
        if let Some(restored) = restored {
            text.extend_from_slice(format!("\n{}\n", restored.line()).as_bytes());
        }
        // A copy, not a second name: not every filesystem has hard links.
        let (io, sharing) = (&*self.files.io, self.files.sharing);
        io.create_dir_below(self.store(), &seals, sharing).map_err(failed)?;
        write_whole(io, sharing, &seals.join(to), &text, false, true).map_err(failed)?;
        io.sync_dir(&seals).map_err(failed)
    }
}

/// Removes the list of a fork that no longer exists.
pub(in crate::fork) fn forget(forks: &Path, uid: &str) {
    let _ = fs::remove_file(forks.join("seals").join(uid));
}

/// Lists the seals and restores of a fork, by its `uid`, oldest first. Reads only the list.
pub fn history_of(store: &Path, uid: &str) -> Result<Vec<Entry>> {
    let path = store.join("forks/seals").join(uid);
    match fs::read(&path) {
        Ok(text) => Ok(entries(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(e, format!("cannot read {}", path.display()))),
    }
}

/// Lists the images that a fork was sealed as, by its `uid`, oldest first.
pub fn sealed_as(store: &Path, uid: &str) -> Result<Vec<Seal>> {
    Ok(history_of(store, uid)?.iter().filter_map(Entry::seal).collect())
}

/// The images of a list, oldest first. Invalid lines are skipped.
pub(in crate::fork) fn parse(text: &[u8]) -> Vec<Seal> {
    entries(text).iter().filter_map(Entry::seal).collect()
}

/// A list, oldest first. Invalid lines are skipped.
fn entries(text: &[u8]) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for line in String::from_utf8_lossy(text).lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(first), Some(Ok(at_ns))) = (words.next(), words.next().map(str::parse::<i64>)) else {
            continue;
        };
        let rest = words.next();
        match (first, rest) {
            (ABOUT, Some(rest)) => {
                let mut sealed = all.iter_mut().rev().filter_map(|entry| match entry {
                    Entry::Sealed(seal, about) if seal.at_ns == at_ns => Some(about),
                    _ => None,
                });
                if let (Some(about), Ok(read)) = (sealed.next(), serde_json::from_str(rest)) {
                    *about = read;
                }
            }
            (RESTORED, Some(rest)) => all.extend(Restored::parse(at_ns, rest).map(Entry::Restored)),
            (image, None | Some(FOUND)) => {
                let Ok(image) = image.parse() else { continue };
                all.push(Entry::Sealed(Seal { image, at_ns, made: rest.is_none() }, About::default()));
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_invalid_lines_are_skipped() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let about = About { message: Some("said\nso".into()), ..About::after("idle") };
        let restored = Restored {
            at_ns: 7,
            of: "0".into(),
            image: None,
            before: Some(one),
            paths: Some(vec![b"a b\n\xff".to_vec(), Vec::new()]),
        };
        let text = format!(
            "\n{one} 5\nabout 5 {}\n{two} 6 found\nsha256:12\n{two} x\nabout 9 {{}}\n{}\n{two} 8 other\n{two} 8",
            serde_json::json!(about),
            restored.line()
        );
        let seal = |image, at_ns, made| Seal { image, at_ns, made };
        let expected = [
            Entry::Sealed(seal(one, 5, true), about),
            Entry::Sealed(seal(two, 6, false), About::default()),
            Entry::Restored(restored),
            Entry::Sealed(seal(two, 8, true), About::default()),
        ];
        assert_eq!(entries(text.as_bytes()), expected);
        // An older program reads the same seals.
        assert_eq!(parse(text.as_bytes()).len(), 3);
    }
}
