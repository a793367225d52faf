//! Going back: to which state, and putting paths of a fork back to it. The command line and the daemon share this.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{About, Fork, Held, How, Moved, PathsBack, Restored, View};
use crate::layers::world::Kind;
use crate::ops::line::{Found, Line, find_state};
use crate::ops::seal::Sealed;
use crate::store::Store;
pub use crate::util::bytes::Bytes;

/// How often writes to the paths during the restore are sealed as well.
const SEALED_AGAIN: usize = 3;

/// To which state a fork is restored, or some of its paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The seal: a number, a tag or an id; nothing for the last one.
    pub seal: Option<String>,
    /// Whether the last restore is undone.
    pub undo: bool,
    /// The paths from the top of the files; nothing for all of the fork.
    pub paths: Option<Vec<Bytes>>,
}

/// The state that was found for a restore.
#[derive(Clone, Debug)]
pub struct Target {
    /// The state.
    pub to: Found,
    /// What it is called: its number, or the tag that was given.
    pub of: String,
    /// The paths; nothing for all of the fork.
    pub paths: Option<Vec<Vec<u8>>>,
    /// Whether it undoes a restore.
    pub is_undo: bool,
}

impl Target {
    /// Finds what was asked for in a fork's line.
    pub fn find(store: &Store, fork: &str, line: &Line, asked: &Asked) -> Result<Self> {
        let paths = asked.paths.as_ref().map(|paths| paths.iter().map(|path| path.0.clone()).collect());
        if asked.undo {
            return Self::before_last(store, fork, line);
        }
        let Some(seal) = &asked.seal else {
            let to = line.last();
            if to.image.is_none() && !line.began_empty() {
                return Err(Error::new(ErrorKind::NotFound, format!("fork {fork:?} was never sealed"))
                    .with_hint(format!("seal the fork with `pfimg seal {fork}`")));
            }
            let to = find_state(store, fork, line, &to.number.to_string())?;
            return Ok(Self { to, of: to.number.to_string(), paths, is_undo: false });
        };
        let to = find_state(store, fork, line, seal)?;
        let is_id = to.image.is_some_and(|image| image.hex().starts_with(seal.trim_start_matches("sha256:")));
        let of = if is_id { to.number.to_string() } else { seal.clone() };
        Ok(Self { to, of, paths, is_undo: false })
    }

    /// The state before the last restore.
    fn before_last(store: &Store, fork: &str, line: &Line) -> Result<Self> {
        let last = line.last_restore().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("fork {fork:?} was never restored: there is nothing to undo"),
            )
            .with_hint(format!("list the seals with `pfimg seals {fork}`"))
        })?;
        if let Some(image) = last.before.filter(|image| !store.images().contains(image)) {
            let what = format!(
                "the state of fork {fork:?} before its last restore, {image}, was removed from the store"
            );
            return Err(Error::new(ErrorKind::NotFound, what)
                .with_hint(format!("list the seals with `pfimg seals {fork}`")));
        }
        let number = line.number_of(last.before).unwrap_or_default();
        let to = Found { image: last.before, number };
        Ok(Self { to, of: number.to_string(), paths: last.paths.clone(), is_undo: true })
    }

    /// Why the state before is sealed.
    pub fn about_before(&self, view: Option<(&View, &View)>) -> About {
        let what = match (self.is_undo, &self.paths, view) {
            (true, ..) => "before undo".to_owned(),
            (_, Some(paths), Some((now, then))) => format!("before restore of {}", words(paths, now, then)),
            _ => format!("before restore of {}", self.of),
        };
        About::after(what)
    }

    /// The line of the fork's list that tells of the restore.
    pub fn restored(&self, before: Option<Digest>) -> Restored {
        let at_ns = chrono::Utc::now().timestamp_nanos_opt().unwrap_or(0);
        Restored { at_ns, of: self.of.clone(), image: self.to.image, before, paths: self.paths.clone() }
    }
}

/// Paths in words: folders have a slash.
pub fn words(paths: &[Vec<u8>], now: &View, then: &View) -> String {
    let word = |path: &Vec<u8>| {
        let is_folder = |view: &View| view.kind_at(path) == Some(Kind::Dir);
        let slash = if is_folder(then) || is_folder(now) { "/" } else { "" };
        match &path[..] {
            b"" => "all files".to_owned(),
            path => format!("{}{slash}", path.escape_ascii()),
        }
    };
    let shown: Vec<_> = paths.iter().take(2).map(word).collect();
    match paths.len().saturating_sub(shown.len()) {
        0 => shown.join(" and "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Fails for a path that neither the fork nor the state has.
pub fn check_paths(fork: &str, target: &Target, now: &View, then: &View) -> Result<()> {
    for path in target.paths.iter().flatten() {
        if now.kind_at(path).is_none() && then.kind_at(path).is_none() {
            let shown = path.escape_ascii();
            let what =
                format!("there is no \"{shown}\" in fork {fork:?}, nor in its seal {}", target.to.number);
            return Err(Error::new(ErrorKind::NotFound, what).with_hint(format!(
                "list the seals with `pfimg seals {fork}`; write paths from the top of the fork"
            )));
        }
    }
    Ok(())
}

/// What a restore of paths did.
#[derive(Debug)]
pub struct PathsRestored {
    /// What changed in the fork.
    pub back: PathsBack,
    /// The last seal before.
    pub sealed: Sealed,
    /// Whether any seal before made a new image.
    pub new: bool,
}

/// Puts paths of a fork back. `seal` seals the fork, or everything of it.
pub fn restore_paths(
    fork: &Fork,
    target: &Target,
    then: &View,
    seal: &mut dyn FnMut(bool, &About) -> Result<Sealed>,
) -> Result<PathsRestored> {
    let paths = target.paths.as_deref().unwrap_or_default();
    let now = fork.view();
    check_paths(&fork.name(), target, &now, then)?;
    // What cannot be done is refused before anything is sealed.
    fork.would_restore(then, paths)?;
    let about = target.about_before(Some((&now, then)));
    let mut sealed = seal(false, &about)?;
    let mut new = sealed.new;
    let mut plan = fork.would_restore(then, paths)?;
    for _ in 0..SEALED_AGAIN {
        // What seals leave out stays where the image has nothing, and is sealed where the image has something.
        let is_everything = plan.held.iter().any(|held| held.is_ignored && held.is_in_image);
        if !is_everything && plan.held.iter().all(|held| held.is_ignored) {
            break;
        }
        sealed = seal(is_everything, &about)?;
        new |= sealed.new;
        plan = fork.would_restore(then, paths)?;
    }
    // Written before anything changes: whatever ends the program then, the restore can be undone.
    if !plan.moved.is_empty() {
        fork.note_restored(&target.restored(Some(sealed.image)))?;
    }
    let back = fork.restore_paths(then, paths)?;
    Ok(PathsRestored { back, sealed, new })
}

/// What a restore did, for the command that asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// Its number in the fork's line.
    pub number: usize,
    /// The image that holds the state before, and its number.
    pub before: Digest,
    /// See `before`.
    pub before_number: Option<usize>,
    /// Whether that image is new.
    pub new: bool,
    /// Remarks for the user.
    pub reports: Vec<String>,
    /// The paths that were restored, with a slash behind folders; nothing for all of the fork.
    pub paths: Option<Vec<Bytes>>,
    /// The paths that changed, where paths were restored.
    pub moved: Vec<PathLine>,
    /// The paths that stay.
    pub held: Vec<PathLine>,
}

/// A path and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathLine {
    /// The path, from the top of the files.
    pub path: Bytes,
    /// `A` for added, `D` for deleted, `T` for another kind of file, `M` for changed; `-` for what stays.
    pub status: char,
    /// Whether it is a folder.
    pub is_folder: bool,
}

impl From<&Moved> for PathLine {
    fn from(moved: &Moved) -> Self {
        let status = match moved.how {
            How::Added => 'A',
            How::Removed => 'D',
            How::Kind => 'T',
            How::Content | How::Attributes => 'M',
        };
        Self { path: Bytes(moved.path.clone()), status, is_folder: moved.kind == Kind::Dir }
    }
}

impl From<&Held> for PathLine {
    fn from(held: &Held) -> Self {
        Self { path: Bytes(held.path.clone()), status: '-', is_folder: false }
    }
}

impl Outcome {
    /// What a restore of paths did.
    pub fn of_paths(
        store: &Store,
        fork: &Fork,
        target: &Target,
        then: &View,
        done: &PathsRestored,
    ) -> Result<Self> {
        let line = Line::of_fork(store, fork)?;
        let now = fork.view();
        let folder = |path: &Vec<u8>| {
            let is_in = |view: &&View| view.kind_at(path) == Some(Kind::Dir);
            let went = |moved: &Moved| moved.path == *path && moved.kind == Kind::Dir;
            let is_folder = [&now, then].iter().any(is_in) || done.back.moved.iter().any(went);
            let slash: &[u8] = if is_folder && !path.is_empty() { b"/" } else { b"" };
            Bytes([path, slash].concat())
        };
        Ok(Self {
            image: target.to.image,
            number: target.to.number,
            before: done.sealed.image,
            before_number: line.number_of(Some(done.sealed.image)),
            new: done.new,
            reports: done.sealed.reports.clone(),
            paths: Some(target.paths.iter().flatten().map(folder).collect()),
            moved: done.back.moved.iter().map(PathLine::from).collect(),
            held: done.back.held.iter().map(PathLine::from).collect(),
        })
    }

    /// What a restore of all of a fork did.
    pub fn of_all(store: &Store, fork: &Fork, target: &Target, sealed: &Sealed) -> Result<Self> {
        let line = Line::of_fork(store, fork)?;
        Ok(Self {
            image: target.to.image,
            number: target.to.number,
            before: sealed.image,
            before_number: line.number_of(Some(sealed.image)),
            new: sealed.new,
            reports: sealed.reports.clone(),
            paths: None,
            moved: Vec::new(),
            held: Vec::new(),
        })
    }
}
