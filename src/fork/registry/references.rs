//! Reads what the forks of a store refer to, for the garbage collection. Opens no fork.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::disk::{GenId, Generation, Head, check_format, head_path, parse_seals, refuse_fork_name};
use crate::fork::journal::{HEADER, frame_at, refuse_header, sound_behind};
use crate::fork::record::{self, kind};

/// How often the forks are listed at most, until two lists in a row agree.
const LOOKS: usize = 20;

/// The images and blobs that forks refer to.
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
    /// Images that were sealed from each fork, oldest first, by the fork's name. The store may no longer have them.
    pub seals: BTreeMap<String, Vec<Digest>>,
    /// Descriptions of heads and journals that cannot be read, so that their references are unknown.
    pub problems: Vec<String>,
}

/// Heads by name, and the generations on disk.
type Listing = (BTreeMap<String, std::result::Result<Head, String>>, Vec<GenId>);

/// Reads what the forks of a store refer to. Finds at least what they referred to at the time of the call, even if another
/// program writes them. Includes generations that no fork names.
///
/// Fails with [`ErrorKind::Busy`] if the list of forks keeps changing.
pub fn references(store: &Path) -> Result<References> {
    let forks = store.join("forks");
    if forks.join("format.json").exists() {
        check_format(&forks, None)?;
    }
    let mut last = None;
    for _ in 0..LOOKS {
        // A fork that is renamed during a listing may be missed once, but not by two lists that agree.
        let listing = list(&forks)?;
        if last.as_ref() == Some(&listing) {
            return Ok(read(&forks, listing));
        }
        last = Some(listing);
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("the list of forks kept changing while reading {}", forks.display()),
    )
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
        let path = head_path(forks, name);
        match Head::read(&path, name) {
            Ok(head) => drop(heads.insert(name.to_owned(), Ok(head))),
            // The fork was discarded or renamed after the listing.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // A power cut came before the content of a new head reached the disk.
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
            // The generation was removed with its fork after the listing.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => found.problems.push(format!("cannot read {}: {e}", path.display())),
        }
    }
    found
}

/// Images that were made of a fork, by its list of seals.
fn seals(path: &Path) -> Vec<Digest> {
    let seals = parse_seals(&fs::read(path).unwrap_or_default());
    seals.into_iter().filter(|seal| seal.made).map(|seal| seal.image).collect()
}

/// Adds the blobs that a journal refers to.
fn blobs(journal: &[u8], id: GenId, found: &mut HashSet<Digest>) -> std::result::Result<(), String> {
    // A new journal has no content yet, or lost it in a power cut.
    if journal.len() < HEADER || (journal.len() == HEADER && journal.iter().all(|b| *b == 0)) {
        return Ok(());
    }
    if let Some(why) = refuse_header(journal, id) {
        // The text comes from `refuse_header`.
        return Err(why);
    }
    let (mut at, mut seq) = (HEADER, 1);
    while at < journal.len() {
        let Some(frame) = frame_at(journal, id, at).filter(|frame| frame.seq == seq) else {
            // An operation is being written or was never finished, or the journal is damaged.
            return match sound_behind(journal, id, at, seq) {
                Some(sound) => Err(format!(
                    "record {seq} at byte {at} is damaged, and sound records follow at byte {sound}"
                )),
                None => Ok(()),
            };
        };
        if frame.kind == kind::SPLICE {
            let blobs = record::splice_blobs(frame.payload)
                .ok_or_else(|| format!("record {seq} at byte {at} is invalid"))?;
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
            let mut journal = if sound { crate::fork::journal::header(id) } else { Vec::new() };
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
    fn a_damaged_head_is_a_problem_and_an_empty_one_is_not() {
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
