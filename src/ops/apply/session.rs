//! Applies, finishes and takes back: the order of the record and of the changes.
//!
//! The record in the store says `writing` before the first byte is written, and `done` once all are durable; `undoing` and `undone` when
//! the change is taken back. So a directory in between two states has a record that says so, whenever the machine stops.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use chrono::Utc;

use super::below::{Hooks, Top};
use super::branch;
use super::carry::{Carried, Carry, How, Left, Way, Why};
use super::change::Difference;
use super::entry::{Entry, Step};
use super::keep::{self, Entries, Words, above};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;
use crate::ops::import::walk::Meta;
use crate::store::applies::{Apply, ApplyId, Branch, State};
use crate::store::{Batch, Store};
use crate::tree::Tree;

/// The number of applies of a directory that are remembered, and can be taken back one after the other.
pub const REMEMBERED: usize = 20;

/// What to apply.
#[derive(Clone, Debug)]
pub struct Applying<'a> {
    /// The directory.
    pub dir: &'a Path,
    /// The fork or image, as its user named it.
    pub fork: &'a str,
    /// The image that the fork was compared with, if there was one.
    pub base: Option<Digest>,
    /// The image that is applied.
    pub image: Digest,
    /// Each path that changes. All names that become one file are among them, also a name whose content stays.
    pub steps: &'a [Step],
    /// The branch that moves, whose new commit is in the directory's repository already.
    pub branch: Option<Branch>,
}

/// What an apply, or taking it back, has done.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The directory.
    pub dir: PathBuf,
    /// The fork or image, as its user named it.
    pub fork: String,
    /// The state that the apply has now.
    pub state: State,
    /// What was changed, in the order of paths.
    pub changed: Vec<(Vec<u8>, How)>,
    /// What was left as it is, because someone edited it.
    pub conflicts: Vec<Left>,
    /// Edits that are at another path now, since two edits had the same one: where they were, and where they are.
    pub aside: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories that were to go and hold other files.
    pub staying: Vec<Vec<u8>>,
    /// The image of what was there before.
    pub before: Digest,
    /// The image of what the apply made.
    pub after: Digest,
    /// The image of edits that were overwritten, if there were any.
    pub edits: Option<Digest>,
    /// The branch that was moved, or why it was not.
    pub branch: Option<(String, Result<(), String>)>,
    /// Whether the apply made that branch, so that taking it back removes the branch.
    pub branch_is_new: bool,
    /// The commit of the paths in the directory's own repository, which stays when the apply is taken back.
    pub commit: Option<String>,
}

/// A directory that one program works on.
struct Held<'a> {
    store: &'a Store,
    top: Top<'a>,
    lock: File,
    applies: Vec<(ApplyId, Apply)>,
}

impl<'a> Held<'a> {
    /// Opens a directory, keeps other programs from applying to it, and reads what was applied to it.
    fn open(store: &'a Store, dir: &Path, hooks: &'a dyn Hooks) -> Result<Self> {
        let failed = |e| Error::io(e, format!("cannot open {}", dir.display())).with_path(dir);
        let dir = fs::canonicalize(dir).map_err(failed)?;
        let top = Top::open(&dir, hooks).map_err(failed)?;
        let stamp = top.meta().stamp;
        let busy = || {
            Error::new(ErrorKind::Busy, format!("another pfimg changes {}", dir.display()))
                .with_path(&dir)
                .with_hint("wait for it to end")
        };
        let lock = store.try_lock(&lock_name(stamp.dev, stamp.ino))?;
        let lock = lock.filter(|_| !top.is_held()).ok_or_else(busy)?;
        let applies = store.applies().of(&dir, stamp.dev, stamp.ino)?;
        Ok(Self { store, top, lock, applies })
    }

    fn unfinished(&self) -> Option<&(ApplyId, Apply)> {
        self.applies.iter().rev().find(|(_, apply)| apply.state.is_unfinished())
    }

    /// Records a new state, durably.
    fn record(&self, id: &ApplyId, apply: &mut Apply, state: State) -> Result<()> {
        apply.state = state;
        let failed = |e| Error::io(e, format!("cannot record the apply to {}", apply.dir.display()));
        self.top.call("record").map_err(failed)?;
        self.store.applies().set(id, apply)
    }

    fn difference(&self, apply: &Apply) -> Result<Difference> {
        Ok(Difference::of(&tree(self.store, &apply.before)?, &tree(self.store, &apply.after)?))
    }

    /// Forgets the oldest applies that are more than are remembered.
    fn forget(&self) {
        let number = self.applies.len() + 1;
        for (id, apply) in self.applies.iter().take(number.saturating_sub(REMEMBERED)) {
            if let (false, Err(error)) = (apply.state.is_unfinished(), self.store.applies().remove(id)) {
                tracing::warn!("{error}");
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread starts in this moment has the descriptors as well.
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
        self.top.release();
    }
}

/// The lock of a directory that is applied to.
fn lock_name(dev: u64, ino: u64) -> String {
    format!("apply.{dev:x}.{ino:x}.lock")
}

/// Forgets every apply that is finished or taken back, so that no image is kept for it. It cannot be taken back from then on. An apply
/// to a directory that another program changes at this moment stays.
pub fn forget_finished(store: &Store) -> Result<()> {
    for (id, apply) in store.applies().all()? {
        let apply = apply?;
        let Some(_lock) = store.try_lock(&lock_name(apply.dev, apply.ino))? else { continue };
        // Another program may have begun to take it back before it was locked.
        if store.applies().read(&id)?.is_some_and(|now| !now.state.is_unfinished()) {
            store.applies().remove(&id)?;
        }
    }
    Ok(())
}

/// The tree of an image that an apply keeps.
fn tree(store: &Store, image: &Digest) -> Result<Tree> {
    let fs = store.image(image)?.manifest.world.fs;
    let bytes = store.blobs().read_metadata(&fs)?;
    Tree::parse(&bytes).map_err(|e| {
        Error::new(ErrorKind::Damaged, format!("image {image}: its tree cannot be read")).with_source(e)
    })
}

/// What temporary names of an apply begin with.
fn name_of(apply: &Apply) -> String {
    apply.before.hex()[..12].to_owned()
}

/// The error for a directory in which an apply was interrupted.
fn interrupted(apply: &Apply) -> Error {
    let dir = apply.dir.display();
    let (what, hint) = match apply.state {
        State::Undoing => (
            format!("taking {} back from {dir} was interrupted", apply.fork),
            "`pfimg apply --undo` finishes it",
        ),
        _ => (
            format!("applying {} to {dir} was interrupted", apply.fork),
            "`pfimg apply --continue` finishes it, `pfimg apply --undo` takes it back",
        ),
    };
    Error::new(ErrorKind::Busy, what).with_path(&apply.dir).with_hint(hint)
}

/// Fails if an apply to a directory was interrupted. Until that is finished or taken back, nothing else is applied to it.
pub fn refuse_interrupted(store: &Store, dir: &Path) -> Result<()> {
    let applies = of_dir(store, dir)?;
    match applies.iter().rev().find(|(_, apply)| apply.state.is_unfinished()) {
        Some((_, apply)) => Err(interrupted(apply)),
        None => Ok(()),
    }
}

/// The applies of a directory, oldest first.
pub fn of_dir(store: &Store, dir: &Path) -> Result<Vec<(ApplyId, Apply)>> {
    let failed = |e| Error::io(e, format!("cannot open {}", dir.display())).with_path(dir);
    let dir = fs::canonicalize(dir).map_err(failed)?;
    let stamp = Top::open(&dir, &()).map_err(failed)?.meta().stamp;
    store.applies().of(&dir, stamp.dev, stamp.ino)
}

/// The directory that something was applied to: this one, or the nearest above it.
pub fn find_dir(store: &Store, start: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(e, format!("cannot open {}", start.display())).with_path(start);
    let start = fs::canonicalize(start).map_err(failed)?;
    for dir in start.ancestors() {
        match of_dir(store, dir) {
            Ok(applies) if applies.is_empty() => {}
            Ok(_) => return Ok(dir.to_owned()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Err(nothing(&start))
}

fn nothing(dir: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("nothing was applied to {} that can be undone", dir.display()))
        .with_path(dir)
        .with_hint("name the directory: `pfimg apply --undo DIR`")
}

/// Applies steps to a directory: all that was decided before, and nothing if the directory does not hold what the steps expect. What
/// was there is in an image before anything changes. Paths that are edited while this works are left, and named in the outcome.
///
/// If a call fails in the middle, what was changed is taken back. If that fails as well, the directory is between two states, every
/// later apply refuses, and [`finish`] and [`undo`] lead out.
pub fn carry_out(store: &Store, applying: &Applying<'_>, hooks: &dyn Hooks) -> Result<Outcome> {
    let held = Held::open(store, applying.dir, hooks)?;
    if let Some((_, apply)) = held.unfinished() {
        return Err(interrupted(apply));
    }
    let dir = held.top.path().to_owned();
    let words = Words {
        before: format!("before applying {} to {}", applying.fork, dir.display()),
        after: format!("after applying {} to {}", applying.fork, dir.display()),
    };
    let kept = keep::keep(store, &held.top, applying.steps, &words)?;
    let stamp = held.top.meta().stamp;
    let mut apply = Apply {
        dir,
        dev: stamp.dev,
        ino: stamp.ino,
        fork: applying.fork.to_owned(),
        base: applying.base,
        image: applying.image,
        before: kept.before,
        after: kept.after,
        state: State::Writing,
        began_at: Utc::now(),
        branch: applying.branch.clone(),
        commit: None,
    };
    let found = held.difference(&apply)?;
    // Before the record: a directory that cannot take the steps is left as it is.
    let mut carry = Carry::new(&held.top, store, &name_of(&apply), &found, Way::Forward);
    let ready = carry.scan(&kept.seen).and_then(|()| {
        if !carry.carried.conflicts.is_empty() {
            return Err(refused(&apply, &carry.carried.conflicts, "nothing was written; apply again"));
        }
        let failed = |e| Error::io(e, format!("cannot record the apply to {}", apply.dir.display()));
        held.top.call("record").map_err(failed)?;
        store.applies().add(&apply)
    });
    let id = ready.inspect_err(|_| carry.abandon())?;
    let outcome = carry.run().and_then(|()| {
        let carried = std::mem::take(&mut carry.carried);
        end(&held, &id, &mut apply, carried, Way::Forward)
    });
    match outcome {
        Ok(outcome) => {
            held.forget();
            Ok(outcome)
        }
        Err(error) => Err(take_back(&held, &id, &mut apply, error)),
    }
}

/// Records the commit that was made of the newest apply of a directory, so that an undo can name it.
pub fn note_commit(store: &Store, dir: &Path, commit: &str) -> Result<()> {
    let held = Held::open(store, dir, &())?;
    match held.applies.last().cloned() {
        Some((id, apply)) => store.applies().set(&id, &Apply { commit: Some(commit.to_owned()), ..apply }),
        None => Ok(()),
    }
}

/// After an error: takes back what was changed, and says in the error what the directory holds now.
fn take_back(held: &Held<'_>, id: &ApplyId, apply: &mut Apply, error: Error) -> Error {
    let taken = held.record(id, apply, State::Undoing).and_then(|()| resume(held, id, apply, Way::Back));
    error.with_hint(match taken {
        Ok(outcome) if outcome.conflicts.is_empty() => {
            "what was changed was taken back; correct the cause and apply again"
        }
        Ok(_) => "what was changed was taken back, but for files that were edited in that moment",
        Err(_) => {
            "correct the cause, then `pfimg apply --continue` finishes the apply and `pfimg apply --undo` takes it back"
        }
    })
}

/// Moves the branch, records the end, and says what was done.
fn end(held: &Held<'_>, id: &ApplyId, apply: &mut Apply, carried: Carried, way: Way) -> Result<Outcome> {
    let branch = match &apply.branch {
        None => None,
        Some(branch) => {
            let set = branch::set(held.top.path(), branch, way);
            Some((branch.name.clone(), set.map_err(|error| error.to_string())))
        }
    };
    let state = if way == Way::Forward { State::Done } else { State::Undone };
    held.record(id, apply, state)?;
    Ok(Outcome {
        dir: held.top.path().to_owned(),
        fork: apply.fork.clone(),
        state,
        changed: carried.changed,
        conflicts: carried.conflicts,
        aside: carried.aside,
        staying: carried.staying,
        before: apply.before,
        after: apply.after,
        edits: None,
        branch,
        branch_is_new: apply.branch.as_ref().is_some_and(|branch| branch.old.is_none()),
        commit: apply.commit.clone(),
    })
}

fn refused(apply: &Apply, conflicts: &[Left], hint: &'static str) -> Error {
    let named: Vec<String> = conflicts
        .iter()
        .map(|left| format!("{} ({})", String::from_utf8_lossy(&left.path), left.why.words()))
        .collect();
    let what = format!("conflicts in {}, nothing was written: {}", apply.dir.display(), named.join(", "));
    Error::new(ErrorKind::Conflict, what).with_path(&apply.dir).with_hint(hint)
}

/// Finishes an apply that was interrupted, or taking one back. Paths that were edited since are left, and named in the outcome.
pub fn finish(store: &Store, dir: &Path, hooks: &dyn Hooks) -> Result<Outcome> {
    let held = Held::open(store, dir, hooks)?;
    let Some((id, mut apply)) = held.unfinished().cloned() else {
        let what = format!("no apply to {} was interrupted", held.top.path().display());
        return Err(Error::new(ErrorKind::NotFound, what)
            .with_path(dir)
            .with_hint("undo a finished apply with `pfimg apply --undo DIR`"));
    };
    let way = if apply.state == State::Writing { Way::Forward } else { Way::Back };
    resume(&held, &id, &mut apply, way)
}

/// Carries an interrupted apply to one side.
fn resume(held: &Held<'_>, id: &ApplyId, apply: &mut Apply, way: Way) -> Result<Outcome> {
    let found = held.difference(apply)?;
    let mut carry = Carry::new(&held.top, held.store, &name_of(apply), &found, way);
    carry.clear()?;
    carry.scan(&HashMap::new())?;
    carry.run()?;
    let carried = std::mem::take(&mut carry.carried);
    end(held, id, apply, carried, way)
}

/// Takes the newest apply of a directory back that was not taken back yet, finished or not: files, and the branch. If a path was edited
/// after a finished apply, nothing is written, and the error is of kind [`ErrorKind::Conflict`]; with `force` the edits go, and an
/// image keeps them. Of an apply that was interrupted, paths that were edited since are left without `force`.
pub fn undo(store: &Store, dir: &Path, force: bool, hooks: &dyn Hooks) -> Result<Outcome> {
    let held = Held::open(store, dir, hooks)?;
    let newest = held.applies.iter().rev().find(|(_, apply)| apply.state != State::Undone).cloned();
    let (id, mut apply) = newest.ok_or_else(|| nothing(held.top.path()))?;
    let mut found = held.difference(&apply)?;
    let name = name_of(&apply);
    let is_unfinished = apply.state.is_unfinished();
    let mut carry = Carry::new(&held.top, store, &name, &found, Way::Back);
    if is_unfinished {
        carry.clear()?;
    }
    let scanned = carry.scan(&HashMap::new());
    carry.abandon();
    scanned?;
    let conflicts = std::mem::take(&mut carry.carried.conflicts);
    let aside = std::mem::take(&mut carry.carried.aside);
    let mut edits = None;
    if !conflicts.is_empty() {
        if force {
            let image = keep_edits(&held, &apply, &conflicts)?;
            apply.after = image;
            edits = Some(image);
            found = held.difference(&apply)?;
        } else if !is_unfinished {
            let hint = "`pfimg apply --undo --force` takes them back too, and keeps the edits as an image";
            return Err(refused(&apply, &conflicts, hint));
        }
    }
    held.record(&id, &mut apply, State::Undoing)?;
    let mut carry = Carry::new(&held.top, store, &name, &found, Way::Back);
    let ran = carry.scan(&HashMap::new()).and_then(|()| carry.run());
    let mut carried = std::mem::take(&mut carry.carried);
    carried.aside.extend(aside);
    match ran.and_then(|()| end(&held, &id, &mut apply, carried, Way::Back)) {
        Ok(outcome) => Ok(Outcome { edits, ..outcome }),
        Err(error) if is_unfinished || edits.is_some() => {
            Err(error.with_hint("correct the cause, then `pfimg apply --undo` finishes this"))
        }
        Err(error) => Err(take_back_undo(&held, &id, &mut apply, error)),
    }
}

/// After an error: applies again what was taken back, so that a failed undo leaves the apply.
fn take_back_undo(held: &Held<'_>, id: &ApplyId, apply: &mut Apply, error: Error) -> Error {
    let again = held.record(id, apply, State::Writing).and_then(|()| resume(held, id, apply, Way::Forward));
    error.with_hint(match again {
        Ok(_) => "the apply stays as it was; correct the cause and undo again",
        Err(_) => "correct the cause, then `pfimg apply --undo` finishes this, or `pfimg apply --continue` applies again",
    })
}

/// Makes an image of what the paths of an apply hold now, edits included. What cannot be read stays a conflict.
fn keep_edits(held: &Held<'_>, apply: &Apply, conflicts: &[Left]) -> Result<Digest> {
    let (store, top) = (held.store, &held.top);
    let (before, after) = (tree(store, &apply.before)?, tree(store, &apply.after)?);
    let batch = store.begin();
    let mut entries = keep::entries(&after, top.meta());
    for left in conflicts.iter().filter(|left| left.why != Why::Unreadable) {
        entries.retain(|path, _| *path != left.path && above(path).all(|folder| folder != left.path));
    }
    for left in conflicts.iter().filter(|left| left.why != Why::Unreadable) {
        // A directory stays if it holds other files, unless a file or link needs its name.
        let needs_name = before.resolve(&left.path).is_some_and(|id| before.kind(id) != Kind::Dir);
        keep_edit(&batch, top, &left.path, needs_name, &mut entries)?;
    }
    // A path needs its directories. Those that are gone are made again, and what was in them too.
    let folders = entries.iter().filter(|(_, (entry, _))| matches!(entry, Entry::Dir { .. }));
    let mut gone = Vec::new();
    for (path, _) in folders {
        let failed = |e| Error::io(e, format!("cannot read {}", top.shown(path).display()));
        let at = top.at(path).map_err(failed)?;
        let is_there = match &at {
            Some(at) => top.look(at).map_err(failed)?.is_some(),
            None => false,
        };
        if !is_there {
            gone.push(path.clone());
        }
    }
    entries.retain(|path, _| !gone.iter().any(|one| one == path || above(path).any(|dir| dir == &one[..])));
    let orphans: Vec<Vec<u8>> = entries
        .keys()
        .filter(|path| above(path).any(|dir| !matches!(entries.get(dir), Some((Entry::Dir { .. }, _)))))
        .cloned()
        .collect();
    entries.retain(|path, _| !orphans.contains(path));
    let words = format!("edited after applying {} to {}", apply.fork, apply.dir.display());
    keep::image(store, top, &entries, &words, Some(apply.after))
}

/// Adds what is at a path now, and with `below` everything in it.
fn keep_edit(
    batch: &Batch<'_>,
    top: &Top<'_>,
    path: &[u8],
    below: bool,
    entries: &mut Entries,
) -> Result<()> {
    let failed = |e| Error::io(e, format!("cannot read {}", top.shown(path).display()));
    let Some(at) = top.at(path).map_err(failed)? else { return Ok(()) };
    let Some(seen) = top.look(&at).map_err(failed)? else { return Ok(()) };
    let entry = match seen.kind {
        Kind::Dir => Some(Entry::Dir { mode: seen.mode }),
        Kind::File => keep::store_file(batch, top, path, &at, &seen)?.map(|content| Entry::File {
            mode: seen.mode,
            content,
            size: seen.stamp.size,
            links: None,
        }),
        Kind::Symlink => top.target(&at).map_err(failed)?.map(|target| Entry::Link { target }),
        _ => None,
    };
    let Some(entry) = entry else {
        let shown = top.shown(path);
        let what = format!("{} changes while it is read, or an image cannot hold it", shown.display());
        return Err(Error::new(ErrorKind::Conflict, what).with_hint("move it away and try again"));
    };
    let is_folder = matches!(entry, Entry::Dir { .. });
    entries.insert(path.to_vec(), (entry, Meta { links: 1, ..seen }));
    if is_folder && below {
        for name in top.names(path).map_err(failed)? {
            keep_edit(batch, top, &[path, b"/", &name].concat(), true, entries)?;
        }
    }
    Ok(())
}
