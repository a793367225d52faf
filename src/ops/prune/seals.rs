//! Removes the seals of discarded forks.

use std::collections::{HashMap, HashSet};

use super::needed::{forget_discarded, needed, remove};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fork;
use crate::store::{MarkerError, Store};

/// The result of removing seals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealsRemoved {
    /// The images that were removed.
    pub removed: Vec<Digest>,
    /// Number of images that stay because a tag, a fork, another image or a running program needs them.
    pub kept: u64,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Removes the images that discarded forks were sealed as, except those that a tag, another fork, another image or a running
/// program needs. `lineage` are images that forks descend from, apart from their bases.
pub fn remove_seals(store: &Store, seals: &[Digest], lineage: &[Digest]) -> Result<SealsRemoved> {
    let there: HashSet<Digest> =
        seals.iter().filter(|image| store.images().contains(image)).copied().collect();
    let mut notes = Vec::new();
    let mut doomed = there.clone();
    for id in needed(store)?.into_keys().chain(lineage.iter().copied()) {
        doomed.remove(&id);
    }
    for id in fork::references(store.root())?.seals.into_values().flatten() {
        doomed.remove(&id);
    }
    match parents(store)? {
        Ok(parents) => keep_parents(&mut doomed, &parents),
        Err(unreadable) => {
            if !doomed.is_empty() {
                notes
                    .push(format!("no seal is removed, since an unreadable image may need it: {unreadable}"));
            }
            doomed.clear();
        }
    }
    let mut doomed: Vec<Digest> = doomed.into_iter().collect();
    doomed.sort_unstable();
    let (mut removed, _) = if doomed.is_empty() { Default::default() } else { remove(store, &doomed)? };
    removed.sort_unstable();
    let kept = (there.len() - removed.len()) as u64;
    forget_discarded(store)?;
    Ok(SealsRemoved { removed, kept, notes })
}

/// Returns the parents of each image, or the error of the first image that cannot be read.
fn parents(store: &Store) -> Result<std::result::Result<HashMap<Digest, Vec<Digest>>, Error>> {
    let mut parents = HashMap::new();
    for id in store.images().ids(&mut |_| {})? {
        match store.image(&id) {
            Ok(image) => drop(parents.insert(id, image.manifest.parents)),
            // Another program removed the image after the listing.
            Err(MarkerError::Absent(_)) => {}
            Err(error) => return Ok(Err(error.into())),
        }
    }
    Ok(Ok(parents))
}

/// Keeps the parents of each image that stays.
fn keep_parents(doomed: &mut HashSet<Digest>, parents: &HashMap<Digest, Vec<Digest>>) {
    let mut stays: Vec<Digest> = parents.keys().filter(|id| !doomed.contains(id)).copied().collect();
    while let Some(id) = stays.pop() {
        for parent in parents.get(&id).into_iter().flatten() {
            if doomed.remove(parent) {
                stays.push(*parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    /// Makes a store with images, each with the listed earlier ones as parents.
    fn family(images: &[&[usize]]) -> (tempfile::TempDir, Store, Vec<Digest>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let mut ids: Vec<Digest> = Vec::new();
        for (at, parents) in images.iter().enumerate() {
            let mut manifest = sample();
            manifest.created_at += chrono::Duration::seconds(at as i64);
            manifest.parents = parents.iter().map(|parent| ids[*parent]).collect();
            ids.push(store.put_manifest(&manifest).unwrap());
        }
        (dir, store, ids)
    }

    #[test]
    fn seals_go_unless_a_tag_or_an_image_that_stays_needs_them() {
        // 0 is the base; 1, 2, 3 are the seals; 4 is an image that another program made of 1.
        let line: &[&[usize]] = &[&[], &[0], &[1], &[2], &[1]];
        for (tagged, other, gone) in [
            (None, false, &[1, 2, 3][..]),
            (Some(3), false, &[]),
            (Some(2), false, &[3]),
            (None, true, &[2, 3]),
        ] {
            let (_dir, store, ids) = family(if other { line } else { &line[..4] });
            if let Some(at) = tagged {
                store.tags().set("kept", &ids[at], false).unwrap();
            }
            let report = remove_seals(&store, &ids[1..4], &[]).unwrap();
            let mut expected: Vec<Digest> = gone.iter().map(|at| ids[*at]).collect();
            expected.sort_unstable();
            assert_eq!(report.removed, expected, "{tagged:?} {other}");
            assert_eq!(report.kept, 3 - gone.len() as u64);
            let there = |at: &usize| store.images().contains(&ids[*at]);
            assert!(there(&0) && !gone.iter().any(there));
        }
    }

    #[test]
    fn no_seal_goes_where_an_image_cannot_be_read() {
        let (_dir, store, ids) = family(&[&[], &[0], &[]]);
        std::fs::write(store.images().marker(&ids[2]), "x").unwrap();
        std::fs::remove_dir_all(store.root().join("blobs")).unwrap();
        let report = remove_seals(&store, &ids[1..2], &[]).unwrap();
        assert!(report.removed.is_empty() && report.kept == 1, "{report:?}");
        assert!(report.notes[0].contains(&ids[2].hex()), "{report:?}");
        assert!(store.images().contains(&ids[1]));
    }

    #[test]
    fn ancestors_of_a_fork_stay() {
        let (_dir, store, ids) = family(&[&[], &[0], &[1]]);
        let report = remove_seals(&store, &ids[1..], &[ids[1]]).unwrap();
        assert_eq!((report.removed, report.kept), (vec![ids[2]], 1));
    }
}
