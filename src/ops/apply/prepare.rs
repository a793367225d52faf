//! Makes the plan of an apply of an image to a directory.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;

use super::held::Content;
use super::merge::{Favor, Text, is_binary, merge};
use super::plan::{Decide, Lines, Merged, Others, Plan, plan};
use super::read;
use super::sides::Sides;
use super::within::Below;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Size, Store};
use crate::tree::Tree;

/// Longer files are not merged by lines, in bytes.
pub const MAX_MERGE: u64 = 64 << 20;

/// The most places in a file that are named; further ones are counted.
const MOST_PLACES: usize = 4;

/// What an apply is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The directory.
    pub dir: &'a Path,
    /// The paths that are meant, relative to the directory; all without one.
    pub only: &'a [Vec<u8>],
    /// What happens to conflicts.
    pub decide: Decide,
    /// What the two sides are called in markers: the directory's, and the fork's.
    pub names: (&'a str, &'a str),
    /// Whether merged files are put into the store, as carrying the plan out needs.
    pub store_merged: bool,
    /// How many threads read.
    pub jobs: NonZeroUsize,
}

/// The plan of an apply, and what of the fork never leaves it.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// What changes.
    pub plan: Plan,
    /// Hooks, settings and filters of repositories that the fork changed.
    pub programs: Vec<Vec<u8>>,
    /// Whether the repository at the top may have other commits in the fork.
    pub has_commits: bool,
}

/// Plans to bring what an image changed since its base into a directory. Nothing in the directory changes. Without a base the image
/// began empty.
pub fn prepare(
    store: &Store,
    base: Option<&Digest>,
    image: &Digest,
    options: Options<'_>,
) -> Result<Prepared> {
    let before = base.map_or_else(|| Ok(Tree::empty()), |base| tree(store, base))?;
    let sides = Sides::of(&before, &tree(store, image)?, options.only);
    let top = Below::open(options.dir)?;
    let deep = options.decide.others == Others::Theirs;
    let here = read::read(&top, &sides.root, deep, options.jobs)?;
    let mut merging = Merging { store, top: &top, options };
    let plan = plan(&sides.root, &sides.groups, &here, options.decide, &mut merging)?;
    Ok(Prepared { plan, programs: sides.programs, has_commits: sides.has_commits })
}

/// The files of an image.
fn tree(store: &Store, image: &Digest) -> Result<Tree> {
    let digest = store.image(image)?.manifest.world.fs;
    let about = |error: Error| error.context(format_args!("image {image}"));
    let bytes = store.blobs().read_metadata(&digest).map_err(|e| about(e.into()))?;
    // The text comes from `FormatError`.
    Tree::parse(&bytes).map_err(|e| about(Error::new(ErrorKind::Damaged, e.to_string())))
}

struct Merging<'a> {
    store: &'a Store,
    top: &'a Below,
    options: Options<'a>,
}

impl Merging<'_> {
    fn blob(&self, content: &Content) -> Result<Vec<u8>> {
        Ok(self.store.blobs().read(&content.digest, Size::Exact(content.size))?)
    }

    fn content(&self, bytes: &[u8]) -> Result<Content> {
        let digest =
            if self.options.store_merged { self.store.blobs().put(bytes)? } else { Digest::of(bytes) };
        Ok(Content { digest, size: bytes.len() as u64 })
    }

    fn favor(&self) -> Option<Favor<'_>> {
        let Decide { markers, others, .. } = self.options.decide;
        let (ours, theirs) = self.options.names;
        match others {
            _ if markers => Some(Favor::Markers(ours.as_bytes(), theirs.as_bytes())),
            Others::Ours => Some(Favor::Ours),
            Others::Theirs => Some(Favor::Theirs),
            Others::Refuse | Others::Skip => None,
        }
    }

    /// Whether an earlier apply of the same fork left markers in a file. More of them would be a muddle.
    fn has_markers(&self, bytes: &[u8]) -> bool {
        let (ours, theirs) = self.options.names;
        let holds = |mark: &str, name: &str| {
            let line = format!("{mark} {name}");
            bytes.split(|byte| *byte == b'\n').any(|its| its.trim_ascii_end() == line.as_bytes())
        };
        holds("<<<<<<<", ours) && holds(">>>>>>>", theirs)
    }

    fn told(&self, text: &Text) -> String {
        match self.favor() {
            Some(Favor::Markers(..)) => format!("markers in {}", places(&text.marked)),
            Some(Favor::Theirs) => {
                format!("{} as in {}, the rest merged", places(&text.conflicts), self.options.names.1)
            }
            _ => format!("{} as yours, the rest merged", places(&text.conflicts)),
        }
    }
}

impl Lines for Merging<'_> {
    fn merge(
        &mut self,
        path: &[u8],
        base: Option<&Content>,
        fork: &Content,
        here: &Content,
    ) -> Result<Merged> {
        let refused =
            |why: &str| Ok(Merged::Conflict { by_lines: false, why: why.to_owned(), decided: None });
        if base.into_iter().chain([fork, here]).any(|content| content.size > MAX_MERGE) {
            return refused("both sides changed it, and it is too large to merge by lines");
        }
        let ours = read::bytes(self.top, path, &here.digest, here.size)?;
        let theirs = self.blob(fork)?;
        let before = base.map_or_else(|| Ok(Vec::new()), |base| self.blob(base))?;
        if [&ours, &theirs, &before].into_iter().any(|bytes| is_binary(bytes)) {
            return refused("both sides changed it, and it is binary");
        }
        if self.has_markers(&ours) {
            return refused("both sides changed it, and it has markers of an earlier apply");
        }
        let favor = self.favor();
        let text = merge(&before, &ours, &theirs, favor.unwrap_or(Favor::Ours));
        if text.conflicts.is_empty() {
            return Ok(Merged::Clean(self.content(&text.bytes)?));
        }
        let why = format!("{} changed on both sides", places(&text.conflicts));
        let decided = match favor {
            Some(_) => Some((self.content(&text.bytes)?, self.told(&text))),
            None => None,
        };
        Ok(Merged::Conflict { by_lines: true, why, decided })
    }
}

/// Lines of a file, in words: "line 5", "lines 5, 9-12".
fn places(ranges: &[Range<usize>]) -> String {
    let place = |range: &Range<usize>| match range.end.saturating_sub(range.start) {
        0 | 1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    };
    let one = ranges.len() == 1 && ranges[0].len() <= 1;
    let mut text: Vec<String> = ranges.iter().take(MOST_PLACES).map(place).collect();
    if ranges.len() > MOST_PLACES {
        text.push(format!("{} more", ranges.len() - MOST_PLACES));
    }
    format!("{} {}", if one { "line" } else { "lines" }, text.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_and_many_are_counted() {
        let place = |range: Range<usize>| places(&vec![range; 1]);
        assert_eq!(
            (place(5..6), place(5..5), place(5..8)),
            ("line 5".into(), "line 5".into(), "lines 5-7".into())
        );
        assert_eq!(places(&[5..6, 9..13]), "lines 5, 9-12");
        assert_eq!(places(&[1..2, 3..4, 5..6, 7..8, 9..10, 11..12]), "lines 1, 3, 5, 7, 2 more");
    }
}
