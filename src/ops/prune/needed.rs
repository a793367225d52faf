//! Which images are needed, and removing those that are not.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork;
use crate::ops::line::Line;
use crate::store::Store;

/// For this long after its marker is removed a mount still shows an image, and may make a fork of it.
const CATALOG_DELAY: Duration = Duration::from_millis(2500);

/// Why an image is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is one of the newest.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It has a tag.
    Tagged,
    /// It is the base of a fork.
    ForkBase,
    /// A fork was made of it: `restore FORK@0` goes back to it.
    ForkOrigin,
    /// A running program needs it.
    Pinned,
    /// An apply that can be finished or undone needs it.
    Applied,
}

impl Reason {
    /// The reason in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Tagged => "tagged",
            Self::ForkBase => "fork-base",
            Self::ForkOrigin => "fork-origin",
            Self::Pinned => "pinned",
            Self::Applied => "applied",
        }
    }
}

/// Removes images, except those that are needed by then. Returns the removed images, and why the others stay.
pub(super) fn remove(store: &Store, doomed: &[Digest]) -> Result<(Vec<Digest>, HashMap<Digest, Reason>)> {
    let mut removed = HashMap::new();
    for id in doomed {
        if let Some(marker) = store.remove_image(id)? {
            removed.insert(*id, marker);
        }
    }
    // Another program may have forked or tagged one of them in between.
    let mut back = needed_again(store, &mut removed)?;
    if !removed.is_empty() && store.root().join("forks").exists() {
        thread::sleep(CATALOG_DELAY);
        back.extend(needed_again(store, &mut removed)?);
    }
    store.sync()?;
    Ok((removed.into_keys().collect(), back))
}

/// Restores the images that are needed now, and returns the reasons.
fn needed_again(store: &Store, removed: &mut HashMap<Digest, Vec<u8>>) -> Result<HashMap<Digest, Reason>> {
    let needed = needed(store)?;
    let mut back = HashMap::new();
    for (id, reasons) in needed {
        if let (Some(marker), Some(reason)) = (removed.get(&id), reasons.first()) {
            store.restore_image(&id, marker)?;
            removed.remove(&id);
            back.insert(id, *reason);
        }
    }
    Ok(back)
}

/// Images, and why each is kept.
type Needed = BTreeMap<Digest, Vec<Reason>>;

/// Forgets discarded forks that have no image left in the store.
pub(super) fn forget_discarded(store: &Store) -> Result<()> {
    fork::forget_discarded(store.root(), &|image| store.images().contains(image))
}

/// Images that every policy keeps. Fails if they cannot be determined.
pub(super) fn needed(store: &Store) -> Result<Needed> {
    needed_with(store, store.applies().images()?)
}

/// Does the same, with these images for applies.
pub(super) fn needed_with(store: &Store, of_applies: Vec<Digest>) -> Result<Needed> {
    let mut needed = Needed::new();
    for name in store.tags().names()? {
        match store.tags().get(&name) {
            Ok(id) => needed.entry(id).or_default().push(Reason::Tagged),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!("cannot read which images tags name: {error}"),
                )
                .with_hint("remove the file if you cannot repair it"));
            }
        }
    }
    let forks = fork::references(store.root())?;
    if let Some(problem) = forks.problems.first() {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("cannot read which images forks are based on: {problem}"),
        )
        .with_hint("discard the fork if you cannot repair it"));
    }
    for base in forks.bases.into_values().flatten() {
        needed.entry(base).or_default().push(Reason::ForkBase);
    }
    let derived = |name: &String| Line::of_name(store, name).ok().and_then(|line| line.origin());
    let origins = forks.origins.into_values().chain(forks.of_unknown_origin.iter().filter_map(derived));
    for origin in origins {
        needed.entry(origin).or_default().push(Reason::ForkOrigin);
    }
    for (image, _) in store.pins()? {
        needed.entry(image).or_default().push(Reason::Pinned);
    }
    for image in of_applies {
        needed.entry(image).or_default().push(Reason::Applied);
    }
    for reasons in needed.values_mut() {
        reasons.sort_unstable();
        reasons.dedup();
    }
    Ok(needed)
}
