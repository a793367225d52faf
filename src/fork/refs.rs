//! What the forks of a store refer to, read from disk without a fork being opened: for collecting garbage.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use super::disk::{GenId, Generation};
use super::head::{self, Head, refuse_fork_name};
use super::journal::{frame_at, sound_behind};
use super::record::{self, HEADER, kind};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// So often the forks are listed until two lists in a row agree.
const LOOKS: usize = 20;

/// What forks refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The image that each fork rests on, by the fork's name.
    pub bases: BTreeMap<String, Option<Digest>>,
    /// The image that each fork was made of, by the fork's name, where its head says so.
    pub origins: BTreeMap<String, Digest>,
    /// Forks whose head does not say how they began: an older program made them.
    pub of_unknown_origin: Vec<String>,
    /// Blobs that unsealed changes refer to.
    pub blobs: HashSet<Digest>,
    /// Images that were sealed of each fork, oldest first, by the fork's name. They may be gone from the store.
    pub seals: BTreeMap<String, Vec<Digest>>,
    /// What cannot be read, in words: what that refers to is not known.
    pub problems: Vec<String>,
}

/// Heads by name, and the generations that are there.
type Listing = (BTreeMap<String, std::result::Result<Head, String>>, Vec<GenId>);

/// Reads what the forks of a store refer to. Somebody may write them meanwhile: what they referred to when this was
/// called is found. Every generation counts, also those that no fork names (any more).
pub fn references(store: &Path) -> Result<References> {
    let forks = store.join("forks");
    if forks.join("format.json").exists() {
        head::check_format(&forks, None)?;
    }
    let mut last = None;
    for _ in 0..LOOKS {
        // A fork that is renamed while names are listed may be missed once, but not by two lists that agree.
        let listing = list(&forks)?;
        if last.as_ref() == Some(&listing) {
            return Ok(read(&forks, listing));
        }
        last = Some(listing);
    }
    Err(Error::new(ErrorKind::Busy, format!("forks come and go too fast in {}", forks.display()))
        .with_hint("try again"))
}

fn list(forks: &Path) -> Result<Listing> {
    let names = |folder: &str| -> Result<Vec<String>> {
        let dir = forks.join(folder);
        let failed = |e| Error::io(e, format!("cannot list {}", dir.display()));
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    };
    let mut heads = BTreeMap::new();
    for file in names("heads")? {
        let Some(name) = file.strip_suffix(".json").filter(|name| refuse_fork_name(name).is_none()) else {
            continue;
        };
        let path = head::path(forks, name);
        match Head::read(&path, name) {
            Ok(head) => drop(heads.insert(name.to_owned(), Ok(head))),
            // Discarded or renamed meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // A name that reached the disk before anything else of a new fork.
            Err(_) if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0) => {}
            Err(e) => drop(heads.insert(name.to_owned(), Err(e.to_string()))),
        }
    }
    let generations = names("gen")?.iter().filter_map(|name| GenId::parse(name)).collect();
    Ok((heads, generations))
}

fn read(forks: &Path, (heads, generations): Listing) -> References {
    let mut found = References::default();
    for (name, head) in heads {
        match head {
            Ok(head) => {
                found.seals.insert(name.clone(), seals(&forks.join("seals").join(&head.uid)));
                if let Some(origin) = head.origin {
                    found.origins.insert(name.clone(), origin);
                } else if !head.began_empty {
                    found.of_unknown_origin.push(name.clone());
                }
                found.bases.insert(name, head.base);
            }
            Err(why) => found.problems.push(format!("fork {name:?} is damaged: {why}")),
        }
    }
    for id in generations {
        let path = Generation::dir(forks, id).join("journal");
        match fs::read(&path) {
            Ok(journal) => {
                if let Err(why) = blobs(&journal, id, &mut found.blobs) {
                    found.problems.push(format!("{}: {why}", path.display()));
                }
            }
            // Gone with its fork meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => found.problems.push(format!("cannot read {}: {e}", path.display())),
        }
    }
    found
}

/// Images that a fork's list of seals says were made of it.
fn seals(path: &Path) -> Vec<Digest> {
    let seals = super::seals::parse(&fs::read(path).unwrap_or_default());
    seals.into_iter().filter(|seal| seal.made).map(|seal| seal.image).collect()
}

/// Adds the blobs that a journal refers to.
fn blobs(journal: &[u8], id: GenId, found: &mut HashSet<Digest>) -> std::result::Result<(), String> {
    // A power cut, or a look at the wrong moment, leaves the name of a new journal and nothing of itself.
    if journal.len() < HEADER || (journal.len() == HEADER && journal.iter().all(|b| *b == 0)) {
        return Ok(());
    }
    if let Some(why) = record::refuse_header(journal, id) {
        return Err(why);
    }
    let (mut at, mut seq) = (HEADER, 1);
    while at < journal.len() {
        let Some(frame) = frame_at(journal, id, at).filter(|frame| frame.seq == seq) else {
            // An operation that is being written, or never was to its end; or damage.
            return match sound_behind(journal, id, at, seq) {
                Some(sound) => {
                    Err(format!("record {seq} at byte {at} is damaged, and sound ones follow at {sound}"))
                }
                None => Ok(()),
            };
        };
        if frame.kind == kind::SPLICE {
            let blobs = record::splice_blobs(frame.payload)
                .ok_or_else(|| format!("record {seq} at byte {at} makes no sense"))?;
            found.extend(blobs);
        }
        at = frame.end as usize;
        seq += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn arbitrary_journals_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), sound: bool) {
            let id = GenId(7);
            let mut journal = if sound { record::header(id) } else { Vec::new() };
            journal.extend(bytes);
            let _ = blobs(&journal, id, &mut HashSet::new());
        }

        #[test]
        fn arbitrary_splices_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = record::splice_blobs(&bytes);
        }
    }

    #[test]
    fn a_store_without_forks_refers_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(references(dir.path()).unwrap(), References::default());
    }

    #[test]
    fn a_damaged_head_is_a_problem_and_an_empty_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let heads = dir.path().join("forks/heads");
        fs::create_dir_all(&heads).unwrap();
        fs::write(heads.join("empty.json"), "").unwrap();
        fs::write(heads.join(".tmp-x"), "").unwrap();
        assert_eq!(references(dir.path()).unwrap(), References::default());
        fs::write(heads.join("bad.json"), "{").unwrap();
        let problems = references(dir.path()).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains("\"bad\""), "{problems:?}");
    }
}
