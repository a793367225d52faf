//! Carries a difference out, from either of its sides to the other, and never over something that is neither.
//!
//! Each path is looked at first. What it is to become already is done; what it is expected to be is changed; anything else was edited
//! by someone and stays: a conflict. The same holds after a crash, so that one procedure applies, finishes and takes back.
//!
//! Order: directories are made, top down; new content is written under temporary names in its directories, and made durable in one
//! call; what is to go is removed, deepest first; the rest is exchanged, each path in one step; permissions come last. Whatever leaves
//! its name is looked at again under a temporary name, and gets its name back if it was edited in between.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::below::{At, Top, is_unsupported, split};
use super::change::Difference;
use super::entry::Entry;
use super::keep::above;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::Kind;
use crate::ops::import::walk::Meta;
use crate::store::{Size, Store};

/// Permissions that a directory gets for the moment in which it is changed.
const OPEN: u16 = 0o700;

/// A file that changed less than this ago may have changed again without its times telling.
const SETTLED: Duration = Duration::from_secs(3);

/// A file of at least this many bytes is not read again where its times tell that it is the same.
const LARGE: u64 = 256 << 10;

/// To which side a difference is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Back,
}

/// Why a path was left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is neither what it was nor what it is to become.
    Edited,
    /// It was free, and something is there now.
    Taken,
    /// It is gone.
    Gone,
    /// It is a directory that holds other files.
    HoldsOthers,
    /// Its directory is gone, or a file or link has its place.
    NoFolder,
    /// It cannot be read.
    Unreadable,
}

impl Why {
    /// The reason for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Edited => "edited since",
            Self::Taken => "something else is there",
            Self::Gone => "deleted since",
            Self::HoldsOthers => "the directory holds other files",
            Self::NoFolder => "its directory is gone",
            Self::Unreadable => "it cannot be read",
        }
    }

    /// The reason for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Taken => "taken",
            Self::Gone => "gone",
            Self::HoldsOthers => "holds-others",
            Self::NoFolder => "no-folder",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A path that was left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The path.
    pub path: Vec<u8>,
    /// Why.
    pub why: Why,
}

/// How a path was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// There was nothing.
    Added,
    /// Its content, kind or permissions changed.
    Changed,
    /// There is nothing now.
    Deleted,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// What was changed, in the order of paths. What had been changed already is not in it.
    pub(super) changed: Vec<(Vec<u8>, How)>,
    /// What was left as it is.
    pub(super) conflicts: Vec<Left>,
    /// Edits that could not have their name back, each with the path at which it is now.
    pub(super) aside: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories that were to go and hold other files.
    pub(super) staying: Vec<Vec<u8>>,
}

/// How far a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Todo,
    Done,
    Conflict,
}

/// A path on its way.
#[derive(Debug)]
pub(super) struct Move {
    /// Its number in the difference.
    number: usize,
    pub(super) path: Vec<u8>,
    pub(super) from: Option<Entry>,
    pub(super) to: Option<Entry>,
    /// What was seen there when it was what is expected.
    pub(super) seen: Option<Meta>,
    pub(super) doing: Doing,
    /// What was written for it, under its temporary name.
    pub(super) staged: Option<Meta>,
}

impl Move {
    pub(super) fn number(&self) -> usize {
        self.number
    }
}

/// Whether a directory that is to be `mode` may have that mode while it is changed.
pub(super) fn is_mode_of(seen: u16, mode: u16) -> bool {
    seen == mode || seen == mode | OPEN
}

/// The work on one directory.
pub(super) struct Carry<'a> {
    pub(super) top: &'a Top<'a>,
    pub(super) store: &'a Store,
    /// What temporary names begin with.
    pub(super) prefix: String,
    pub(super) moves: Vec<Move>,
    folders: &'a BTreeMap<Vec<u8>, u16>,
    /// Directories whose permissions were opened for the moment.
    opened: BTreeMap<Vec<u8>, u16>,
    /// Whether the work continues after a crash.
    pub(super) resumed: bool,
    pub(super) carried: Carried,
}

impl<'a> Carry<'a> {
    /// Work that has not begun. `id` tells its temporary names from those of others.
    pub(super) fn new(top: &'a Top<'a>, store: &'a Store, id: &str, found: &'a Difference, way: Way) -> Self {
        let moves = found.changes.iter().enumerate().map(|(number, change)| {
            let (from, to) = match way {
                Way::Forward => (&change.before, &change.after),
                Way::Back => (&change.after, &change.before),
            };
            Move {
                number,
                path: change.path.clone(),
                from: from.clone(),
                to: to.clone(),
                seen: None,
                doing: Doing::Todo,
                staged: None,
            }
        });
        Self {
            top,
            store,
            prefix: format!(".pfimg-apply-{id}-"),
            moves: moves.collect(),
            folders: &found.folders,
            opened: BTreeMap::new(),
            resumed: false,
            carried: Carried::default(),
        }
    }

    pub(super) fn failed(&self, path: &[u8], e: io::Error) -> Error {
        Error::io(e, format!("cannot change {}", self.top.shown(path).display()))
    }

    /// The temporary name of content that is being written for a path. It is never anything else.
    pub(super) fn new_name(&self, at: &At, number: usize) -> io::Result<At> {
        at.sibling(format!("{}{number}.new", self.prefix).into_bytes())
    }

    /// The temporary name of what leaves the name of a path.
    pub(super) fn old_name(&self, at: &At, number: usize) -> io::Result<At> {
        at.sibling(format!("{}{number}", self.prefix).into_bytes())
    }

    /// The place of a path, in a directory that can be changed. Nothing if there is no such directory.
    pub(super) fn place(&mut self, path: &[u8]) -> Result<Option<At>> {
        self.try_place(path).map_err(|e| self.failed(path, e))
    }

    fn try_place(&mut self, path: &[u8]) -> io::Result<Option<At>> {
        let found = match self.top.at(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                // A directory on the way cannot be entered. The outermost comes first.
                let folders: Vec<Vec<u8>> = above(path).map(<[u8]>::to_vec).collect();
                for folder in folders.iter().rev() {
                    self.open_up(folder)?;
                }
                self.top.at(path)?
            }
            found => found?,
        };
        let Some(at) = found else { return Ok(None) };
        let meta = self.top.look_at_folder(&at)?;
        if needs_opening(&meta) {
            self.open_up(split(path).0)?;
        }
        Ok(Some(at))
    }

    /// Lets its owner change a directory that is read-only. It gets its permissions back at the end.
    fn open_up(&mut self, path: &[u8]) -> io::Result<()> {
        if let Some((folder, meta)) = self.top.folder(path)?
            && needs_opening(&meta)
        {
            self.opened.entry(path.to_vec()).or_insert(meta.mode);
            self.top.set_folder_mode(&folder, meta.mode | OPEN)?;
        }
        Ok(())
    }

    pub(super) fn conflict(&mut self, at: usize, why: Why) {
        let one = &mut self.moves[at];
        one.doing = Doing::Conflict;
        self.carried.conflicts.push(Left { path: one.path.clone(), why });
    }

    fn is_todo(&self, at: usize) -> bool {
        self.moves[at].doing == Doing::Todo
    }

    /// Changes everything that is to be changed, and makes it durable.
    pub(super) fn run(&mut self) -> Result<()> {
        let todo = self.moves.iter().filter(|one| one.doing == Doing::Todo).count();
        self.top.hooks().total(todo as u64);
        let done = self.run_all();
        let closed = self.close(done.is_ok());
        done?;
        closed?;
        self.carried.conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        for one in self.moves.iter().filter(|one| one.doing == Doing::Done && one.staged.is_some()) {
            let how = match (&one.from, &one.to) {
                (_, None) => How::Deleted,
                (None, _) => How::Added,
                _ => How::Changed,
            };
            self.carried.changed.push((one.path.clone(), how));
        }
        Ok(())
    }

    fn run_all(&mut self) -> Result<()> {
        for at in 0..self.moves.len() {
            if self.is_todo(at) && matches!(self.moves[at].to, Some(Entry::Dir { .. })) {
                self.make_folder(at)?;
            }
        }
        self.stage_all()?;
        for at in (0..self.moves.len()).rev() {
            if self.is_todo(at) && self.moves[at].to.is_none() {
                self.delete(at)?;
            }
        }
        for at in 0..self.moves.len() {
            if self.is_todo(at) && self.moves[at].staged.is_some() {
                self.put(at)?;
            } else if self.is_todo(at) && matches!(self.moves[at].to, Some(Entry::File { .. })) {
                self.change_mode(at)?;
            }
        }
        Ok(())
    }

    /// Notes that a path is as it is to be. `seen` says what it was made as.
    pub(super) fn finish(&mut self, at: usize, seen: Meta) {
        let one = &mut self.moves[at];
        (one.doing, one.staged) = (Doing::Done, Some(seen));
        self.top.hooks().done();
    }

    /// Makes a conflict of the error of a call that found nothing: the directory, or what was in it, was removed in this moment.
    pub(super) fn unless_gone<T>(&mut self, at: usize, done: Result<T>) -> Result<Option<T>> {
        match done {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.conflict(at, Why::NoFolder);
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    /// Notes that nothing has to be done for a path.
    pub(super) fn pass(&mut self, at: usize) {
        self.moves[at].doing = Doing::Done;
        self.top.hooks().done();
    }

    /// Whether a file differs in its permissions alone, and has no other name.
    fn is_mode_only(&self, at: usize) -> bool {
        let one = &self.moves[at];
        let (
            Some(Entry::File { content, links: None, .. }),
            Some(Entry::File { content: new, links: None, .. }),
        ) = (&one.from, &one.to)
        else {
            return false;
        };
        content == new && one.seen.is_some_and(|seen| seen.kind == Kind::File && seen.links == 1)
    }

    fn make_folder(&mut self, at: usize) -> Result<()> {
        let Move { path, to, seen, number, .. } = &self.moves[at];
        let (path, number) = (path.clone(), *number);
        let Some(Entry::Dir { mode }) = *to else { return Ok(()) };
        // Its permissions come last.
        if seen.is_some_and(|seen| seen.kind == Kind::Dir) {
            return Ok(());
        }
        let Some(place) = self.place(&path)? else {
            self.conflict(at, Why::NoFolder);
            return Ok(());
        };
        let make = || {
            let temp = self.new_name(&place, number)?;
            self.top.mkdir(&temp, mode | OPEN)?;
            self.top.look(&temp)
        };
        let made = make().map_err(|e| self.failed(&path, e));
        let Some(made) = self.unless_gone(at, made)? else { return Ok(()) };
        self.moves[at].staged = made;
        self.put(at)
    }

    fn change_mode(&mut self, at: usize) -> Result<()> {
        let path = self.moves[at].path.clone();
        let (Some(Entry::File { mode, .. }), Some(seen)) = (self.moves[at].to.clone(), self.moves[at].seen)
        else {
            return Ok(());
        };
        let Some(place) = self.place(&path)? else {
            self.conflict(at, Why::NoFolder);
            return Ok(());
        };
        let now = self.top.look(&place).map_err(|e| self.failed(&path, e))?;
        let is_expected = now.is_some_and(|now| (now.mode, now.links) == (seen.mode, 1));
        if is_expected && self.top.set_mode_at(&place, &seen, mode).map_err(|e| self.failed(&path, e))? {
            self.finish(at, seen);
        } else {
            self.conflict(at, Why::Edited);
        }
        Ok(())
    }

    /// Writes all new content under temporary names, and makes it durable.
    fn stage_all(&mut self) -> Result<()> {
        // Where the first name of each group of hard links is.
        let mut leaders: HashMap<u64, (At, Meta)> = HashMap::new();
        for at in 0..self.moves.len() {
            let one = &self.moves[at];
            if let (Doing::Done, Some(Entry::File { links: Some(group), .. }), Some(seen)) =
                (one.doing, &one.to, one.seen)
            {
                let (group, path) = (*group, one.path.clone());
                if let Some(place) = self.place(&path)? {
                    leaders.entry(group).or_insert((place, seen));
                }
            }
        }
        let mut any = false;
        for at in 0..self.moves.len() {
            if self.is_todo(at)
                && !self.is_mode_only(at)
                && let Some(Entry::File { .. } | Entry::Link { .. }) = self.moves[at].to
            {
                any |= self.stage(at, &mut leaders)?;
            }
        }
        if any {
            self.top.sync().map_err(|e| self.failed(b"", e))?;
        }
        Ok(())
    }

    /// Writes the new content of a path under its temporary name. Says whether it did.
    fn stage(&mut self, at: usize, leaders: &mut HashMap<u64, (At, Meta)>) -> Result<bool> {
        let path = self.moves[at].path.clone();
        let Some(place) = self.place(&path)? else {
            self.conflict(at, Why::NoFolder);
            return Ok(false);
        };
        let staged = self.stage_at(at, &place, leaders);
        let Some(staged) = self.unless_gone(at, staged)? else { return Ok(false) };
        self.moves[at].staged = staged;
        Ok(true)
    }

    fn stage_at(
        &self,
        at: usize,
        place: &At,
        leaders: &mut HashMap<u64, (At, Meta)>,
    ) -> Result<Option<Meta>> {
        let Move { path, to, number, .. } = &self.moves[at];
        let failed = |e| self.failed(path, e);
        let temp = self.new_name(place, *number).map_err(failed)?;
        let group = match to {
            Some(Entry::Link { target }) => {
                self.top.symlink(target, &temp).map_err(failed)?;
                None
            }
            Some(entry @ Entry::File { links, .. }) => {
                let leader = links.and_then(|group| leaders.get(&group));
                if !self.link(leader, &temp).map_err(failed)? {
                    self.write(at, place, &temp, entry)?;
                }
                *links
            }
            _ => return Ok(None),
        };
        let staged = self.top.look(&temp).map_err(failed)?;
        if let (Some(group), Some(meta)) = (group, staged) {
            leaders.entry(group).or_insert((temp, meta));
        }
        Ok(staged)
    }

    /// Gives a file that has one name a further one. Says whether it could: some filesystems have no hard links.
    fn link(&self, leader: Option<&(At, Meta)>, temp: &At) -> io::Result<bool> {
        let Some((first, meta)) = leader else { return Ok(false) };
        match self.top.link(first, temp) {
            // The number of a file's names is limited, and a filesystem or its rules may refuse them.
            Err(e)
                if is_unsupported(&e)
                    || matches!(
                        e.raw_os_error(),
                        Some(libc::EPERM | libc::EMLINK | libc::EXDEV | libc::ENOENT)
                    ) =>
            {
                return Ok(false);
            }
            linked => linked?,
        }
        let made = self.top.look(temp)?;
        let is_same = made
            .is_some_and(|made| (made.stamp.dev, made.stamp.ino) == (meta.stamp.dev, meta.stamp.ino))
            && made.is_some_and(|made| made.stamp.mtime_ns == meta.stamp.mtime_ns);
        if !is_same {
            self.top.unlink(temp)?;
        }
        Ok(is_same)
    }

    fn write(&self, at: usize, place: &At, temp: &At, to: &Entry) -> Result<()> {
        let Entry::File { mode, content, size, .. } = to else { return Ok(()) };
        let path = &self.moves[at].path;
        let failed = |e| self.failed(path, e);
        let mut file = self.top.create(temp).map_err(failed)?;
        if *size > 0 {
            let mut writer = self.top.writer(&mut file);
            let streamed = self.store.blobs().stream(content, Size::Exact(*size), &mut writer);
            if let (Err(_), Some(e)) = (&streamed, writer.failed) {
                return Err(failed(e));
            }
            streamed?;
        }
        // It takes the place of a file, or belongs to the directory's owner where root applies.
        if let Some(seen) = self.moves[at].seen.filter(|seen| seen.kind == Kind::File) {
            self.top.set_owner(&file, &seen).map_err(failed)?;
            match self.top.copy_attributes(place, &seen, &file) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                copied => copied.map_err(failed)?,
            }
        } else if rustix::process::geteuid().is_root() {
            let like = self.top.look_at_folder(place).map_err(failed)?;
            self.top.set_owner(&file, &like).map_err(failed)?;
        }
        self.top.set_mode(&file, *mode).map_err(failed)
    }

    /// Ends the work before it began.
    pub(super) fn abandon(&mut self) {
        if let Err(error) = self.close(false) {
            tracing::warn!("{error}");
        }
    }

    /// Gives directories the permissions that they are to have, deepest first, and makes everything durable.
    fn close(&mut self, is_done: bool) -> Result<()> {
        let mut modes: BTreeMap<Vec<u8>, (u16, Option<usize>)> = BTreeMap::new();
        if is_done {
            for (at, one) in self.moves.iter().enumerate().filter(|(_, one)| one.doing != Doing::Conflict) {
                match (&one.from, &one.to) {
                    (_, Some(Entry::Dir { mode })) => drop(modes.insert(one.path.clone(), (*mode, Some(at)))),
                    // It stays if it holds other files.
                    (Some(Entry::Dir { mode }), None) => drop(modes.insert(one.path.clone(), (*mode, None))),
                    _ => {}
                }
            }
        }
        // After a crash a directory may still be open. Nothing else tells that it was.
        let closed = self.folders.iter().filter(|(_, mode)| self.resumed && **mode & OPEN != OPEN);
        for (path, mode) in self.opened.iter().chain(closed) {
            modes.entry(path.clone()).or_insert((*mode, None));
        }
        for (path, (mode, own)) in modes.iter().rev() {
            let found = self.top.folder(path).map_err(|e| self.failed(path, e))?;
            let Some((folder, meta)) = found.filter(|(_, meta)| meta.mode != *mode) else { continue };
            let before = own.and_then(|at| self.moves[at].seen).filter(|seen| seen.kind == Kind::Dir);
            let is_as_left = before.is_some_and(|before| is_mode_of(meta.mode, before.mode));
            if is_as_left || meta.mode == *mode | OPEN {
                self.top.set_folder_mode(&folder, *mode).map_err(|e| self.failed(path, e))?;
            } else if let Some(at) = own {
                self.conflict(*at, Why::Edited);
            }
        }
        for at in 0..self.moves.len() {
            if let (true, Some(Entry::Dir { .. }), Some(seen)) =
                (is_done && self.is_todo(at), &self.moves[at].to, self.moves[at].seen)
            {
                self.finish(at, seen);
            }
        }
        if is_done { self.top.sync().map_err(|e| self.failed(b"", e)) } else { Ok(()) }
    }
}

/// Whether a directory must be opened before its owner can change it. Root needs no permission.
fn needs_opening(meta: &Meta) -> bool {
    let user = rustix::process::geteuid();
    meta.mode & 0o300 != 0o300 && !user.is_root() && meta.uid == user.as_raw()
}

/// Whether a file that was seen twice is surely the same, as its times tell. A rename changes one of them.
pub(super) fn is_surely_same(before: &Meta, now: &Meta) -> bool {
    let key = |meta: &Meta| {
        (meta.kind, meta.mode, meta.stamp.dev, meta.stamp.ino, meta.stamp.size, meta.stamp.mtime_ns)
    };
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let age = now_ns.saturating_sub(now.stamp.mtime_ns);
    key(before) == key(now) && now.stamp.size >= LARGE && age > SETTLED.as_nanos() as i64
}
