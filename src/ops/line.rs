//! A fork's line: the image that it was made of, which is number 0, and its seals, which are counted from 1. Numbers stay: a
//! restore adds to the line, and a seal whose image was removed keeps its number.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, Fork, Seal};
use crate::store::Store;

/// The images of a fork, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The image that it was made of; nothing if it began empty, or if that cannot be told any more.
    origin: Option<Digest>,
    /// Whether it began with nothing.
    began_empty: bool,
    /// The images that were made of it, oldest first.
    seals: Vec<Digest>,
}

impl Line {
    /// The line of a fork that rests on an image now and was sealed as `seals` say.
    fn of(store: &Store, seals: &[Seal], rests_on: Option<Digest>) -> Self {
        let made: Vec<Digest> = seals.iter().filter(|seal| seal.made).map(|seal| seal.image).collect();
        let parent = |image: &Digest| store.image(image).ok()?.manifest.parents.first().copied();
        // A seal that is gone says nothing of the image before it. That of a later one may be a seal.
        let before = |seal: &Seal| if seal.made { parent(&seal.image) } else { Some(seal.image) };
        let origin = seals.iter().find_map(|seal| before(seal).filter(|image| !made.contains(image)));
        let origin = origin.or(rests_on.filter(|image| !made.contains(image)));
        let is_orphan =
            |image: &Digest| store.image(image).is_ok_and(|image| image.manifest.parents.is_empty());
        let began_empty = origin.is_none() && made.first().is_none_or(is_orphan);
        Self { origin, began_empty, seals: made }
    }

    /// The line of a fork.
    pub fn of_fork(store: &Store, fork: &Fork) -> Result<Self> {
        Ok(Self::of(store, &fork.seals()?, fork.lineage()?))
    }

    /// The line of a fork by its name, read from disk without the fork itself.
    pub fn of_name(store: &Store, name: &str) -> Result<Self> {
        let (info, seals) = fork::on_disk(store.root(), name)?;
        Ok(Self::of(store, &seals, info.base))
    }

    /// Every number with its image.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, Digest)> {
        let seals = self.seals.iter().enumerate().map(|(at, image)| (at + 1, *image));
        self.origin.map(|image| (0, image)).into_iter().chain(seals)
    }

    /// The image that the fork was made of, if it can be told.
    pub fn origin(&self) -> Option<Digest> {
        self.origin
    }

    /// Whether the fork began with nothing.
    pub fn began_empty(&self) -> bool {
        self.began_empty
    }

    /// The images that were made of the fork, oldest first.
    pub fn seals(&self) -> &[Digest] {
        &self.seals
    }
}

/// The error for what is no seal of a fork.
pub fn no_seal(fork: &str, seal: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{seal:?} is no seal of fork {fork:?}"))
        .with_hint(format!("`pfimg log {fork}` lists the seals"))
}

/// Finds an image of a fork's line: by its number, else by its tag or its id.
pub fn find(store: &Store, fork: &str, line: &Line, seal: &str) -> Result<Digest> {
    let is_number = !seal.is_empty() && seal.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(number) = seal.parse::<usize>().ok().filter(|_| is_number) {
        match line.numbered().find(|(its, _)| *its == number) {
            Some((_, image)) if store.images().contains(&image) => return Ok(image),
            Some((_, image)) => {
                let what = format!("seal {number} of fork {fork:?}, {image}, is not in the store any more");
                return Err(Error::new(ErrorKind::NotFound, what)
                    .with_hint(format!("`pfimg log {fork}` lists the seals that are")));
            }
            None if number == 0 && line.began_empty => {
                let what = format!("fork {fork:?} began empty: there is no image of its beginning");
                return Err(Error::new(ErrorKind::NotFound, what));
            }
            // An id may begin with digits alone.
            None => {}
        }
    }
    let image = store.resolve(seal).map_err(|error| match error.kind() {
        ErrorKind::NotFound => no_seal(fork, seal),
        _ => error,
    })?;
    if line.numbered().any(|(_, its)| its == image) { Ok(image) } else { Err(no_seal(fork, seal)) }
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

    fn seal(image: Digest, made: bool) -> Seal {
        Seal { image, at_ns: 0, made }
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
        let numbers =
            |seals: &[Seal], rests_on| Line::of(&store, seals, rests_on).numbered().collect::<Vec<_>>();
        assert_eq!(numbers(&[], Some(base)), [(0, base)]);
        assert_eq!(numbers(&[], None), []);
        let made = [seal(one, true), seal(two, true), seal(three, true)];
        let all = [(0, base), (1, one), (2, two), (3, three)];
        assert_eq!(numbers(&made, Some(three)), all);
        // It was sealed unchanged first, or again after it was put back to its beginning.
        let found = [seal(base, false), made[0], made[1], seal(base, false), made[2]];
        assert_eq!(numbers(&found, Some(three)), all);
        store.remove_image(&one).unwrap();
        assert_eq!(numbers(&found, Some(three)), all);
        let line = Line::of(&store, &found, Some(three));
        assert_eq!(find(&store, "f", &line, "2").unwrap(), two);
        assert_eq!(find(&store, "f", &line, "0").unwrap(), base);
        assert_eq!(find(&store, "f", &line, &three.hex()[..9]).unwrap(), three);
        for (gone, why) in
            [("1", "not in the store any more"), ("4", "is no seal"), ("nothing", "is no seal")]
        {
            let error = find(&store, "f", &line, gone).unwrap_err();
            assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(why), "{error}");
        }
        // Nothing of the second seal but its number is left, and of the third one the image before it is a seal.
        assert_eq!(numbers(&made, Some(three)), all[1..]);
    }
}
