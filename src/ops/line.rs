//! A fork's line: the image that it was made of, which is number 0, and its seals and restores, which are counted from 1. Numbers
//! stay: a restore adds to the line, and a seal whose image was removed keeps its number.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, About, Entry, Fork, Restored, Seal};
use crate::store::Store;

/// The images of a fork, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The image that the fork was made of; `None` if it began empty, or if the image is unknown.
    origin: Option<Digest>,
    /// Whether it began with nothing.
    began_empty: bool,
    /// The message of a seal of the unchanged beginning.
    said_of_origin: Option<String>,
    /// The numbers from 1, oldest first: the images that were made of it, and its restores.
    steps: Vec<Step>,
    /// The last restore, of the fork or of paths.
    last_restore: Option<Restored>,
}

/// A number of a line after 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// When, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Why.
    pub about: About,
    /// Whether the fork was restored to the image, which is one of the line.
    pub is_restore: bool,
}

/// What a name stands for in a line: an image, or the beginning of a fork that began empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// The last number that it has.
    pub number: usize,
}

impl Line {
    /// The line of a fork that rests on an image now, whose list says `entries` and whose head says how it began.
    fn of(
        store: &Store,
        entries: Vec<Entry>,
        rests_on: Option<Digest>,
        began: (Option<Digest>, bool),
    ) -> Self {
        let seals: Vec<Seal> = entries.iter().filter_map(Entry::seal).collect();
        let made: Vec<Digest> = seals.iter().filter(|seal| seal.made).map(|seal| seal.image).collect();
        let parent = |image: &Digest| store.image(image).ok()?.manifest.parents.first().copied();
        // A seal that is gone says nothing of the image before it. That of a later one may be a seal.
        let before = |seal: &Seal| if seal.made { parent(&seal.image) } else { Some(seal.image) };
        let derived = || {
            let origin = seals.iter().find_map(|seal| before(seal).filter(|image| !made.contains(image)));
            origin.or(rests_on.filter(|image| !made.contains(image)))
        };
        let origin = began.0.or_else(derived);
        let is_orphan =
            |image: &Digest| store.image(image).is_ok_and(|image| image.manifest.parents.is_empty());
        let began_empty = origin.is_none() && (began.1 || made.first().is_none_or(is_orphan));
        let mut line = Self { origin, began_empty, ..Self::default() };
        for entry in entries {
            line.add(entry);
        }
        line
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Sealed(Seal { image, at_ns, made: true }, about) => {
                self.steps.push(Step { image: Some(image), at_ns, about, is_restore: false });
            }
            Entry::Sealed(seal, about) => {
                let Some(message) = about.message else { return };
                match self.steps.iter_mut().rev().find(|step| step.image == Some(seal.image)) {
                    Some(step) => step.about.message = Some(message),
                    None if self.origin == Some(seal.image) => self.said_of_origin = Some(message),
                    None => {}
                }
            }
            Entry::Restored(restored) => {
                if restored.paths.is_none() {
                    let (image, at_ns) = (restored.image, restored.at_ns);
                    let about = About::after(format!("restored {}", restored.of));
                    self.steps.push(Step { image, at_ns, about, is_restore: true });
                }
                self.last_restore = Some(restored);
            }
        }
    }

    /// The line of a fork.
    pub fn of_fork(store: &Store, fork: &Fork) -> Result<Self> {
        Ok(Self::of(store, fork.history()?, fork.lineage()?, fork.beginning()))
    }

    /// The line of a fork by its name, read from disk without the fork itself.
    pub fn of_name(store: &Store, name: &str) -> Result<Self> {
        let (info, entries) = fork::on_disk(store.root(), name)?;
        Ok(Self::of(store, entries, info.base, (info.origin, info.began_empty)))
    }

    /// Every number with its image, where it has one.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, Digest)> {
        let steps = self.steps.iter().enumerate().filter_map(|(at, step)| Some((at + 1, step.image?)));
        self.origin.map(|image| (0, image)).into_iter().chain(steps)
    }

    /// The numbers from 1, oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The image that the fork was made of, if it can be told.
    pub fn origin(&self) -> Option<Digest> {
        self.origin
    }

    /// The message of a seal of the unchanged beginning.
    pub fn said_of_origin(&self) -> Option<&str> {
        self.said_of_origin.as_deref()
    }

    /// Whether the fork began with nothing.
    pub fn began_empty(&self) -> bool {
        self.began_empty
    }

    /// The images that were made of the fork, oldest first.
    pub fn seals(&self) -> Vec<Digest> {
        self.steps.iter().filter(|step| !step.is_restore).filter_map(|step| step.image).collect()
    }

    /// The last restore, of all of the fork or of paths.
    pub fn last_restore(&self) -> Option<&Restored> {
        self.last_restore.as_ref()
    }

    /// The number that names an image: of its seal, or the last one that it has.
    pub fn number_of(&self, image: Option<Digest>) -> Option<usize> {
        let is_it = |step: &&Step| step.image == image;
        let sealed = self.steps.iter().rposition(|step| is_it(&step) && !step.is_restore);
        let zero = || (self.origin == image && (image.is_some() || self.began_empty)).then_some(0);
        sealed
            .map(|at| at + 1)
            .or_else(zero)
            .or_else(|| Some(self.steps.iter().rposition(|step| is_it(&step))? + 1))
    }

    /// The newest number.
    pub fn last(&self) -> Found {
        let image = self.steps.last().map_or(self.origin, |step| step.image);
        Found { image, number: self.steps.len() }
    }
}

/// Returns the error for a name that is not a seal of a fork.
pub fn no_seal(fork: &str, seal: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{seal:?} is not a seal of fork {fork:?}"))
        .with_hint(format!("list the seals with `pfimg seals {fork}`"))
}

/// Finds a state of a fork's line: by its number, else by its tag or its id.
pub fn find_state(store: &Store, fork: &str, line: &Line, seal: &str) -> Result<Found> {
    let is_number = !seal.is_empty() && seal.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(number) = seal.parse::<usize>().ok().filter(|_| is_number) {
        let image = match number.checked_sub(1) {
            None => (line.origin.is_some() || line.began_empty).then_some(line.origin),
            Some(at) => line.steps.get(at).map(|step| step.image),
        };
        match image {
            Some(None) => return Ok(Found { image: None, number }),
            Some(Some(image)) if store.images().contains(&image) => {
                return Ok(Found { image: Some(image), number });
            }
            Some(Some(image)) => {
                let what = format!("seal {number} of fork {fork:?}, {image}, is no longer in the store");
                return Err(Error::new(ErrorKind::NotFound, what)
                    .with_hint(format!("list the remaining seals with `pfimg seals {fork}`")));
            }
            // An id may begin with digits alone.
            None => {}
        }
    }
    let image = store.resolve(seal).map_err(|error| match error.kind() {
        ErrorKind::NotFound => no_seal(fork, seal),
        _ => error,
    })?;
    let number = line.number_of(Some(image)).ok_or_else(|| no_seal(fork, seal))?;
    Ok(Found { image: Some(image), number })
}

/// Finds an image of a fork's line: by its number, else by its tag or its id.
pub fn find(store: &Store, fork: &str, line: &Line, seal: &str) -> Result<Digest> {
    find_state(store, fork, line, seal)?.image.ok_or_else(|| {
        let what = format!("fork {fork:?} began empty, so it has no image of its beginning");
        Error::new(ErrorKind::NotFound, what)
            .with_hint(format!("go back to it with `pfimg restore {fork}@{seal}`"))
    })
}

/// Finds an image by a name that a user gave: as [`Store::resolve`] does, or else `FORK@SEAL`.
pub fn image(store: &Store, name: &str) -> Result<Digest> {
    let error = match store.resolve(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        found => return found,
    };
    // A fork's name holds no @, so that what is behind the first one is the seal.
    let Some((fork, seal)) = name.split_once('@') else { return Err(error) };
    find(store, fork, &Line::of_name(store, fork)?, seal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    fn seal(image: Digest, made: bool) -> Entry {
        Entry::Sealed(Seal { image, at_ns: 0, made }, About::default())
    }

    #[test]
    fn seals_are_counted_from_the_image_that_the_fork_was_made_of_and_keep_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let mut images = Vec::new();
        for seconds in 0..4 {
            let mut manifest = sample();
            manifest.created_at += chrono::Duration::seconds(seconds);
            manifest.parents = images.last().copied().into_iter().collect();
            images.push(store.put_manifest(&manifest).unwrap());
        }
        let [base, one, two, three] = images[..] else { panic!("four images") };
        let numbers = |seals: &[Entry], rests_on| {
            Line::of(&store, seals.to_vec(), rests_on, (None, false)).numbered().collect::<Vec<_>>()
        };
        assert_eq!(numbers(&[], Some(base)), [(0, base)]);
        assert_eq!(numbers(&[], None), []);
        let made = [seal(one, true), seal(two, true), seal(three, true)];
        let all = [(0, base), (1, one), (2, two), (3, three)];
        assert_eq!(numbers(&made, Some(three)), all);
        // It was sealed unchanged first, and again after a restore to its beginning.
        let found = [seal(base, false), made[0].clone(), made[1].clone(), seal(base, false), made[2].clone()];
        assert_eq!(numbers(&found, Some(three)), all);
        store.remove_image(&one).unwrap();
        assert_eq!(numbers(&found, Some(three)), all);
        let line = Line::of(&store, found.to_vec(), Some(three), (None, false));
        assert_eq!(find(&store, "f", &line, "2").unwrap(), two);
        assert_eq!(find(&store, "f", &line, "0").unwrap(), base);
        assert_eq!(find(&store, "f", &line, &three.hex()[..9]).unwrap(), three);
        for (gone, why) in
            [("1", "no longer in the store"), ("4", "is not a seal"), ("nothing", "is not a seal")]
        {
            let error = find(&store, "f", &line, gone).unwrap_err();
            assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(why), "{error}");
        }
        // Nothing of the second seal but its number is left, and of the third one the image before it is a seal.
        assert_eq!(numbers(&made, Some(three)), all[1..]);
        // The head knows.
        let told = Line::of(&store, made.to_vec(), Some(three), (Some(base), false));
        assert_eq!(told.numbered().collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_restore_has_its_own_number_and_its_result_the_number_of_its_seal() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let one = store.put_manifest(&sample()).unwrap();
        let restored = |of: &str, image, paths| {
            Entry::Restored(Restored { at_ns: 0, of: of.into(), image, before: Some(one), paths })
        };
        let entries = vec![
            seal(one, true),
            restored("0", None, None),
            restored("docs", Some(one), Some(vec![b"docs".to_vec()])),
            restored("1", Some(one), None),
        ];
        let line = Line::of(&store, entries, Some(one), (None, true));
        let words: Vec<_> = line.steps().iter().map(|step| (step.about.words(), step.image)).collect();
        assert_eq!(
            words,
            [("seal".into(), Some(one)), ("restored 0".into(), None), ("restored 1".into(), Some(one))]
        );
        assert_eq!(line.number_of(Some(one)), Some(1));
        assert_eq!(line.number_of(None), Some(0));
        assert_eq!(line.seals(), [one]);
        assert_eq!(line.last(), Found { image: Some(one), number: 3 });
        assert_eq!(line.last_restore().unwrap().of, "1");
        let state = |seal| find_state(&store, "f", &line, seal).unwrap().image;
        assert_eq!((state("0"), state("2"), state("3")), (None, None, Some(one)));
        let error = find(&store, "f", &line, "0").unwrap_err();
        assert!(error.to_string().contains("began empty"), "{error}");
    }
}
