//! What an apply compares a fork or an image with.

use std::collections::HashSet;
use std::fs;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::line::Line;
use crate::store::Store;

/// Longest line of images that is followed.
const LINE: usize = 1000;

/// The image that a fork was made of; nothing if the fork began empty. Fails if the image cannot be told or is gone: another image in
/// its place would make the user's changes look like the fork's.
pub fn base_of_fork(store: &Store, fork: &str) -> Result<Option<Digest>> {
    let line = Line::of_name(store, fork)?;
    let hint =
        format!("bring over what you need by hand: `pfimg export` writes the files of `pfimg seal {fork}`");
    match line.origin() {
        Some(origin) if store.images().contains(&origin) => Ok(Some(origin)),
        Some(origin) => {
            let what =
                format!("the image that fork {fork:?} was made of, {origin}, was removed from the store");
            Err(Error::new(ErrorKind::NotFound, what).with_hint(hint))
        }
        None if line.began_empty() => Ok(None),
        None => {
            let what =
                format!("the image that fork {fork:?} was made of is not known: its first seal was removed");
            Err(Error::new(ErrorKind::NotFound, what).with_hint(hint))
        }
    }
}

/// The image that an image is compared with: for a seal the one that its fork was made of; else the newest import of a project that it
/// comes from; else its first parent.
pub fn base_of_image(store: &Store, image: &Digest) -> Result<Digest> {
    for fork in forks(store) {
        if Line::of_name(store, &fork).is_ok_and(|line| line.seals().contains(image))
            && let Some(origin) = base_of_fork(store, &fork)?
        {
            return Ok(origin);
        }
    }
    let imports = imports(store);
    let first = parent(store, image)?;
    let mut at = first;
    for _ in 0..LINE {
        let Some(found) = at else { break };
        if imports.contains(&found) {
            return Ok(found);
        }
        at = parent(store, &found).ok().flatten();
    }
    match first {
        Some(first) if store.images().contains(&first) => Ok(first),
        Some(first) => {
            let what = format!("the image that {image} comes from, {first}, was removed from the store");
            Err(Error::new(ErrorKind::NotFound, what)
                .with_hint("write out all of its files with `pfimg export`"))
        }
        None => {
            let what =
                format!("image {image} comes from no other image, so pfimg cannot tell what it changed");
            Err(Error::new(ErrorKind::InvalidInput, what)
                .with_hint("write out all of its files with `pfimg export`"))
        }
    }
}

fn parent(store: &Store, image: &Digest) -> Result<Option<Digest>> {
    Ok(store.image(image)?.manifest.parents.first().copied())
}

/// The names of the forks on disk.
fn forks(store: &Store) -> Vec<String> {
    let heads = fs::read_dir(store.root().join("forks/heads"));
    let names = heads.into_iter().flatten().flatten().filter_map(|head| head.file_name().into_string().ok());
    let names = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The images that are imports of projects.
fn imports(store: &Store) -> HashSet<Digest> {
    let mut imports = HashSet::new();
    let projects = store.projects();
    for name in projects.names().unwrap_or_default() {
        let line = projects.get(&name).ok().flatten();
        let mut at = line.and_then(|line| line.image);
        for _ in 0..LINE {
            let Some(image) = at.filter(|image| imports.insert(*image)) else { break };
            at = parent(store, &image).ok().flatten();
        }
    }
    imports
}
