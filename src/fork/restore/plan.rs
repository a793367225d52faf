//! What has to be done in a fork so that paths are as in an image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::fork::compare::{How, WORLD, in_world};
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Inode, Name};
use crate::fork::state::State;
use crate::layers::world::Kind;

/// A path that was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The path, from the top of the files.
    pub path: Vec<u8>,
    /// What changed.
    pub how: How,
    /// What it is; of one that is gone, what it was.
    pub kind: Kind,
}

/// A path that stays since a part of it is in no image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The path, from the top of the files.
    pub path: Vec<u8>,
    /// Whether seals leave it out.
    pub is_ignored: bool,
    /// Whether the image has something there.
    pub is_in_image: bool,
}

/// One step. Paths begin at the fork's top; numbers are those of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Removes a name; a folder is empty then.
    Remove(Vec<u8>),
    /// Makes a folder.
    Folder(Vec<u8>, Ino),
    /// Makes a file, link or special, also in the place of one.
    File(Vec<u8>, Ino),
    /// Gives a file of the second path the first one as well, also in the place of another file.
    Link(Vec<u8>, Vec<u8>),
    /// Gives a file its attributes.
    Attributes(Vec<u8>, Ino),
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    [folder, name].join(&b'/')
}

fn inner(path: &[u8]) -> Vec<u8> {
    path.get(WORLD.len() + 1..).unwrap_or_default().to_vec()
}

/// What has to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) moved: Vec<Moved>,
    pub(super) held: Vec<Held>,
}

impl Plan {
    /// What leads from `now` to `then` at these paths.
    ///
    /// With `all_times` a file of another time is made again: the kernel believes no time of a file that it knows.
    pub(super) fn of(
        now: &State,
        then: &State,
        paths: &[Vec<u8>],
        settled: Option<u64>,
        all_times: bool,
    ) -> Result<Self> {
        let roots: Vec<Vec<u8>> = paths.iter().map(|path| in_world(path)).collect();
        let (files, above, plan) = Default::default();
        let mut planner = Planner { now, then, roots, settled, all_times, files, above, plan };
        let mut done = HashSet::new();
        let roots = planner.roots.clone();
        for root in &roots {
            let is_inside =
                |other: &Vec<u8>| other != root && root.starts_with(other) && root[other.len()] == b'/';
            if done.insert(root.clone()) && !roots.iter().any(is_inside) {
                planner.root(root)?;
            }
        }
        // What is made in them touches their times.
        for (folder, source) in planner.above.into_iter().rev() {
            planner.plan.steps.push(Step::Attributes(folder, source));
        }
        Ok(planner.plan)
    }
}

struct Planner<'a> {
    now: &'a State,
    then: &'a State,
    /// The paths that are restored.
    roots: Vec<Vec<u8>>,
    /// What was changed up to this epoch, and still counts as changed, is left out of seals.
    settled: Option<u64>,
    all_times: bool,
    /// Where each file of the image with several names is, once that is decided.
    files: HashMap<Ino, Vec<u8>>,
    /// Folders that are made only because a path below them is restored.
    above: BTreeMap<Vec<u8>, Ino>,
    plan: Plan,
}

/// A file at a path, in one of the two trees.
type Found = Option<(Ino, Arc<Inode>)>;

impl Planner<'_> {
    fn find(state: &State, folder: Option<Ino>, name: &[u8]) -> Found {
        let ino = state.child(folder?, name)?;
        Some((ino, state.inode(ino)?))
    }

    /// Plans for one path that was asked for: the folders above it come first.
    fn root(&mut self, path: &[u8]) -> Result<()> {
        let below = path.strip_prefix(WORLD).unwrap_or_default();
        let (mut now, mut then) = (Some(Ino::FS), Some(Ino::FS));
        let mut at = WORLD.to_vec();
        let names: Vec<&[u8]> = below.split(|b| *b == b'/').filter(|name| !name.is_empty()).collect();
        let Some((last, above)) = names.split_last() else {
            if let (Some(now), Some(then)) = (self.now.inode(Ino::FS), self.then.inode(Ino::FS)) {
                self.folder(&at, (Ino::FS, now), (Ino::FS, then));
            }
            return Ok(());
        };
        for name in above {
            at = join(&at, name);
            let (is, was) = (Self::find(self.now, now, name), Self::find(self.then, then, name));
            match (&is, &was) {
                (Some((_, is)), Some((_, was))) if was.is_dir() && !is.is_dir() => {
                    let shown = String::from_utf8_lossy(&inner(&at)).into_owned();
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("{shown:?} is a file now, not a directory"),
                    )
                    .with_hint(format!("restore {shown:?} itself")));
                }
                (None, Some((source, was))) if was.is_dir() && !self.above.contains_key(&at) => {
                    self.above.insert(at.clone(), *source);
                    self.moved(&at, How::Added, Kind::Dir);
                    self.plan.steps.push(Step::Folder(at.clone(), *source));
                }
                _ => {}
            }
            let folder = |found: Found| found.filter(|(_, inode)| inode.is_dir()).map(|(ino, _)| ino);
            (now, then) = (folder(is), folder(was));
        }
        at = join(&at, last);
        let (is, was) = (Self::find(self.now, now, last), Self::find(self.then, then, last));
        let parent = now;
        self.path(&at, parent, is, was);
        Ok(())
    }

    /// Plans for a path. Returns whether it is as in the image then.
    fn path(&mut self, path: &[u8], folder: Option<Ino>, now: Found, then: Found) -> bool {
        match (now, then) {
            (None, None) => true,
            (Some(now), None) => self.remove(path, folder, &now, false),
            (None, Some((source, then))) => {
                self.make(path, source, &then, None);
                true
            }
            (Some(now), Some((source, then))) => {
                if now.1.is_dir() && then.is_dir() {
                    return self.folder(path, now, (source, then));
                }
                if then.is_dir() || now.1.is_dir() {
                    if !self.remove(path, folder, &now, true) {
                        return false;
                    }
                    self.make(path, source, &then, Some(How::Kind));
                    return true;
                }
                self.file(path, folder, &now, source, &then)
            }
        }
    }

    /// A folder that both have.
    fn folder(
        &mut self,
        path: &[u8],
        (ino, now): (Ino, Arc<Inode>),
        (source, then): (Ino, Arc<Inode>),
    ) -> bool {
        let (is, was) = (list(self.now, ino), list(self.then, source));
        let mut all_right = true;
        let steps = self.plan.steps.len();
        let names: std::collections::BTreeSet<&Name> = is.keys().chain(was.keys()).collect();
        for name in names {
            let found = |state: &State, listed: &BTreeMap<Name, Ino>| {
                let ino = *listed.get(name)?;
                Some((ino, state.inode(ino)?))
            };
            let (is, was) = (found(self.now, &is), found(self.then, &was));
            all_right &= self.path(&join(path, name), Some(ino), is, was);
        }
        let differs = !self.same_attributes((ino, &now), (source, &then));
        let time = |state: &State, ino, inode: &Inode| state.recorded(ino, inode).mtime;
        let is_older = time(self.now, ino, &now) != time(self.then, source, &then);
        if differs {
            self.moved(path, How::Attributes, Kind::Dir);
        }
        // Where something stays that the image lacks, the folder keeps the time of that.
        if differs || (all_right && (is_older || self.plan.steps.len() > steps)) {
            self.plan.steps.push(Step::Attributes(path.to_vec(), source));
        }
        all_right
    }

    /// A file, link or special in both.
    fn file(
        &mut self,
        path: &[u8],
        folder: Option<Ino>,
        now: &(Ino, Arc<Inode>),
        source: Ino,
        then: &Arc<Inode>,
    ) -> bool {
        let is_same = self.is_same((now.0, &now.1), (source, then));
        let is_lonely = now.1.links.len() == 1 && then.links.len() == 1;
        let place = if is_lonely { None } else { self.place_of(source, then) };
        let is_right = if is_lonely {
            is_same
        } else {
            place.as_ref().is_some_and(|place| self.now.resolve(place) == Some(now.0))
                || (is_same && place.is_none() && self.may_stay(now, source, then))
        };
        if is_right {
            if !is_lonely {
                self.files.entry(source).or_insert_with(|| path.to_vec());
            }
            let time = |state: &State, ino, inode: &Inode| state.recorded(ino, inode).mtime;
            let is_older = time(self.now, now.0, &now.1) != time(self.then, source, then);
            if is_older && is_lonely && self.all_times {
                if self.may_go(path, folder, now, true) {
                    self.plan.steps.push(Step::File(path.to_vec(), source));
                }
            } else if is_older && names(self.now, &now.1).iter().all(|name| self.is_inside(name)) {
                self.plan.steps.push(Step::Attributes(path.to_vec(), source));
            }
            return true;
        }
        if !self.may_go(path, folder, now, true) {
            return false;
        }
        let how = if now.1.kind() != then.kind() {
            How::Kind
        } else if !same_body(&now.1, then) {
            How::Content
        } else {
            How::Attributes
        };
        self.make_file(path, source, then, Some(how), place);
        true
    }

    /// Makes what the image has at a path where nothing is.
    fn make(&mut self, path: &[u8], source: Ino, then: &Arc<Inode>, how: Option<How>) {
        if !then.is_dir() {
            let place = if then.links.len() == 1 { None } else { self.place_of(source, then) };
            return self.make_file(path, source, then, how, place);
        }
        self.moved(path, how.unwrap_or(How::Added), Kind::Dir);
        self.plan.steps.push(Step::Folder(path.to_vec(), source));
        for (name, child) in list(self.then, source) {
            if let Some(inode) = self.then.inode(child) {
                self.make(&join(path, &name), child, &inode, None);
            }
        }
        self.plan.steps.push(Step::Attributes(path.to_vec(), source));
    }

    fn make_file(
        &mut self,
        path: &[u8],
        source: Ino,
        then: &Inode,
        how: Option<How>,
        place: Option<Vec<u8>>,
    ) {
        self.moved(path, how.unwrap_or(How::Added), then.kind());
        if let Some(place) = place {
            self.plan.steps.push(Step::Link(path.to_vec(), place));
        } else {
            if then.links.len() > 1 {
                self.files.insert(source, path.to_vec());
            }
            self.plan.steps.push(Step::File(path.to_vec(), source));
        }
    }

    /// Where a file of the image with several names is, or will be by the steps so far.
    fn place_of(&mut self, source: Ino, then: &Arc<Inode>) -> Option<Vec<u8>> {
        if let Some(place) = self.files.get(&source) {
            return Some(place.clone());
        }
        let names = names(self.then, then);
        let (inside, outside): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| self.is_inside(name));
        let found = inside.into_iter().chain(outside).find(|name| {
            let Some(ino) = self.now.resolve(name) else { return false };
            let Some(inode) = self.now.inode(ino) else { return false };
            !inode.is_dir()
                && self.is_same((ino, &inode), (source, then))
                && self.may_stay(&(ino, inode), source, then)
        })?;
        self.files.insert(source, found.clone());
        Some(found)
    }

    /// Whether a file of the fork can be the file of the image: it has no name elsewhere that the image's has not.
    fn may_stay(&self, now: &(Ino, Arc<Inode>), _: Ino, then: &Arc<Inode>) -> bool {
        let then: HashSet<Vec<u8>> = names(self.then, then).into_iter().collect();
        names(self.now, &now.1).iter().all(|name| then.contains(name) || self.is_inside(name))
    }

    fn is_inside(&self, path: &[u8]) -> bool {
        let inside = |root: &Vec<u8>| {
            path.strip_prefix(&root[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.roots.iter().any(inside)
    }

    /// Removes what is at a path, with all that is below it, but for what is held. Returns whether nothing is.
    fn remove(
        &mut self,
        path: &[u8],
        folder: Option<Ino>,
        now: &(Ino, Arc<Inode>),
        is_in_image: bool,
    ) -> bool {
        let kind = now.1.kind();
        let mut goes = true;
        if now.1.is_dir() {
            for (name, child) in list(self.now, now.0) {
                if let Some(inode) = self.now.inode(child) {
                    goes &= self.remove(&join(path, &name), Some(now.0), &(child, inode), is_in_image);
                }
            }
        } else {
            goes = self.may_go(path, folder, now, is_in_image);
        }
        if goes {
            self.moved(path, How::Removed, kind);
            self.plan.steps.push(Step::Remove(path.to_vec()));
        }
        goes
    }

    /// Whether an image holds a file as it is, so that nothing is lost with it.
    fn may_go(
        &mut self,
        path: &[u8],
        folder: Option<Ino>,
        now: &(Ino, Arc<Inode>),
        is_in_image: bool,
    ) -> bool {
        let name: Name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().into();
        let of_node = self.now.dirty_nodes.get(&now.0).copied();
        let of_name = folder.and_then(|folder| self.now.dirty_names.get(&(folder, name)).copied());
        let Some(epoch) = of_node.max(of_name) else { return true };
        let is_ignored = self.settled.is_some_and(|settled| epoch <= settled);
        self.plan.held.push(Held { path: inner(path), is_ignored, is_in_image });
        false
    }

    fn moved(&mut self, path: &[u8], how: How, kind: Kind) {
        self.plan.moved.push(Moved { path: inner(path), how, kind });
    }

    fn is_same(&self, now: (Ino, &Inode), then: (Ino, &Inode)) -> bool {
        now.1.kind() == then.1.kind() && same_body(now.1, then.1) && self.same_attributes(now, then)
    }

    fn same_attributes(&self, (ino, now): (Ino, &Inode), (source, then): (Ino, &Inode)) -> bool {
        let (is, was) = (self.now.recorded(ino, now), self.then.recorded(source, then));
        let is_link = matches!(now.body, Body::Symlink(_));
        (is_link || is.mode == was.mode)
            && (is.uid, is.gid) == (was.uid, was.gid)
            && now.xattrs == then.xattrs
            && (now.is_dir() || is.rdev == was.rdev)
    }
}

fn list(state: &State, ino: Ino) -> BTreeMap<Name, Ino> {
    let mut listed = BTreeMap::new();
    state.list(ino, 0, &mut |entry| {
        listed.insert(entry.name, entry.ino);
        true
    });
    listed
}

/// All paths of a file, in their order.
fn names(state: &State, inode: &Inode) -> Vec<Vec<u8>> {
    let path = |(folder, name): &(Ino, Name)| Some(join(&state.path(*folder)?, name));
    let mut names: Vec<_> = inode.links.iter().filter_map(path).collect();
    names.sort_unstable();
    names
}

fn same_body(a: &Inode, b: &Inode) -> bool {
    match (&a.body, &b.body) {
        (Body::File(a), Body::File(b)) => {
            (a.known_size() == 0 && b.known_size() == 0) || a.digest().is_some_and(|a| b.digest() == Some(a))
        }
        (Body::Symlink(a), Body::Symlink(b)) => a == b,
        (Body::Special(a), Body::Special(b)) => a == b,
        (Body::Dir(_), Body::Dir(_)) => true,
        _ => false,
    }
}
