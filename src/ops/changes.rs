//! Counts the files by which two trees differ.

use crate::fork::{Counts, Difference, How};
use crate::layers::world::Kind;

/// Files that one tree has more, other and fewer than another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that are new.
    pub added: u64,
    /// Files with other content or other attributes.
    pub changed: u64,
    /// Files that are gone.
    pub deleted: u64,
    /// The paths that are gone, from the top of the files: of a whole folder one, and true.
    pub deletions: Vec<(Vec<u8>, bool)>,
    /// The folder that holds all of these.
    folder: Folder,
}

/// The deepest folder that holds all paths so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Folder {
    #[default]
    Unknown,
    Of(Vec<u8>),
}

impl Folder {
    fn add(&mut self, path: &[u8], is_folder: bool) {
        let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let above = if is_folder { path } else { &path[..end] };
        *self = Self::Of(match self {
            Self::Unknown => above.to_vec(),
            Self::Of(before) => common(before, above),
        });
    }
}

fn common(a: &[u8], b: &[u8]) -> Vec<u8> {
    let names = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (a, b) = (names(a), names(b));
    let same: Vec<_> = a.into_iter().zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    same.join(&b'/')
}

impl Changes {
    /// Counts differences that are listed in full, in the order of a walk. What lies in a folder of git's is left out, but for the
    /// removal of that folder.
    pub fn of(found: &[Difference]) -> Self {
        let mut changes = Self::default();
        // The folders that are gone or new as a whole, and whether a file in them was counted.
        let (mut gone, mut made): (Option<Whole<'_>>, Option<Whole<'_>>) = (None, None);
        for difference in found {
            let Some(path) = difference.path.strip_prefix(b"world/fs/") else { continue };
            if is_in_git(path) {
                continue;
            }
            let is_git = path.rsplit(|byte| *byte == b'/').next() == Some(b".git");
            let was_folder = difference.before.is_some_and(|side| side.kind == Kind::Dir);
            let is_folder = difference.after.is_some_and(|side| side.kind == Kind::Dir);
            match difference.how {
                How::Removed => {
                    let inside = Whole::holds(&mut gone, path, !was_folder);
                    if !was_folder || is_git {
                        changes.deleted += 1;
                    } else if !inside {
                        Whole::begin(&mut gone, path, &mut changes.deleted);
                    }
                    if !inside {
                        changes.deletions.push((path.to_vec(), was_folder));
                        changes.folder.add(path, was_folder);
                    }
                }
                How::Added => {
                    let inside = Whole::holds(&mut made, path, !is_folder);
                    if !is_folder {
                        changes.added += 1;
                    } else if !inside && !is_git {
                        Whole::begin(&mut made, path, &mut changes.added);
                    }
                    if !inside {
                        changes.folder.add(path, is_folder);
                    }
                }
                How::Kind => {
                    changes.changed += 1;
                    changes.folder.add(path, false);
                    if was_folder {
                        changes.deletions.push((path.to_vec(), true));
                        // What was in it is gone with it.
                        Whole::finish(gone.take(), &mut changes.deleted);
                        gone = Some(Whole { path, counted: true });
                    }
                }
                How::Content | How::Attributes => {
                    changes.changed += 1;
                    changes.folder.add(path, false);
                }
            }
        }
        for (whole, number) in [(gone, &mut changes.deleted), (made, &mut changes.added)] {
            Whole::finish(whole, number);
        }
        changes
    }

    /// The numbers alone.
    pub fn counts(&self) -> Counts {
        let folder = match &self.folder {
            Folder::Of(folder) if !folder.is_empty() => Some(String::from_utf8_lossy(folder).into_owned()),
            _ => None,
        };
        Counts { added: self.added, changed: self.changed, deleted: self.deleted, folder }
    }
}

/// A folder that one side alone has.
struct Whole<'a> {
    path: &'a [u8],
    /// Whether something in it was counted. An empty folder counts itself.
    counted: bool,
}

impl<'a> Whole<'a> {
    /// Whether a path lies in the folder that was begun last. A file counts.
    fn holds(whole: &mut Option<Self>, path: &[u8], is_file: bool) -> bool {
        let Some(whole) = whole else { return false };
        let inside = path.strip_prefix(whole.path).is_some_and(|rest| rest.starts_with(b"/"));
        whole.counted |= inside && is_file;
        inside
    }

    fn begin(whole: &mut Option<Self>, path: &'a [u8], number: &mut u64) {
        Self::finish(whole.take(), number);
        *whole = Some(Whole { path, counted: false });
    }

    fn finish(whole: Option<Self>, number: &mut u64) {
        if whole.is_some_and(|whole| !whole.counted) {
            *number += 1;
        }
    }
}

/// Whether a path lies in a folder of git's. The folder itself does not: that it is gone must be told.
fn is_in_git(path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/');
    parts.next_back();
    parts.any(|part| part == b".git")
}

/// A difference at a path below the files of a fork, for tests. A slash behind the path makes it a folder.
#[cfg(test)]
pub(crate) fn difference(how: How, path: &str) -> Difference {
    let is_folder = path.ends_with('/');
    let kind = if is_folder { Kind::Dir } else { Kind::File };
    let side = crate::fork::Side { kind, mode: 0o644, uid: None, gid: None, size: None, below: 0 };
    let file = crate::fork::Side { kind: Kind::File, ..side };
    Difference {
        path: format!("world/fs/{}", path.trim_end_matches('/')).into_bytes(),
        how,
        before: (how != How::Added).then_some(side),
        after: match how {
            How::Removed => None,
            How::Kind => Some(file),
            _ => Some(side),
        },
        attributes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_that_holds_all_of_them_is_named() {
        use How::{Added, Content, Removed};
        let folder = |found: &[(How, &str)]| {
            let found: Vec<_> = found.iter().map(|(how, path)| difference(*how, path)).collect();
            Changes::of(&found).counts().folder
        };
        assert_eq!(
            folder(&[(Removed, "docs/"), (Removed, "docs/a/"), (Removed, "docs/a/b")]),
            Some("docs".into())
        );
        assert_eq!(folder(&[(Content, "a/b/c"), (Added, "a/b/d/e")]), Some("a/b".into()));
        assert_eq!(folder(&[(Content, "a/b/c"), (Added, "ab")]), None);
        assert_eq!(folder(&[(Content, "top")]), None);
        assert_eq!(folder(&[]), None);
    }
}
