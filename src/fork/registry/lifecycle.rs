//! Makes, renames and discards forks, and restores them to an image.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::info::ForkInfo;
use super::table::{Registry, Slot};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::beside;
use crate::fork::clock::{self, now};
use crate::fork::disk::{GenId, Generation, Head, Restored, forget_seals, head_path, keep_list};
use crate::fork::errors::{no_fork, taken};
use crate::fork::frame::{FOLDER_MODE, Frame};
use crate::fork::handle::Fork;
use crate::fork::ino::Ino;
use crate::fork::journal::Writer;
use crate::fork::live::Live;
use crate::fork::record::{Attrs, Record};
use crate::fork::snapshot::Snapshots;
use crate::fork::state::{Base, State};
use crate::store::rename_new;
use crate::sync::Mutex;

/// The new base of a fork that is restored.
#[derive(Clone, Copy, Debug)]
pub struct Onto<'a> {
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// The entry for it in the fork's list of seals.
    pub restored: Option<&'a Restored>,
}

/// Decides whether a fork may be removed or replaced: an error says why not.
type Judge<'a> = &'a dyn Fn(&Fork) -> Result<()>;

/// What was seen of a fork: its identity, and its epoch. A branch freezes the fork, which raises the epoch.
#[derive(PartialEq, Eq)]
struct Seen {
    uid: String,
    /// None if only the head was read.
    epoch: Option<u64>,
}

impl Seen {
    fn of(head: &Head, fork: Option<&Fork>) -> Self {
        Self { uid: head.uid.clone(), epoch: fork.map(|fork| fork.core.live.read().state.epoch) }
    }
}

fn written_to(name: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("fork {name:?} was written to since it was sealed"))
        .with_hint("stop the programs that write to it, and try again")
}

/// Blocks changes of a fork that is about to be replaced. Dropping it allows changes again.
struct Leaving<'a>(&'a Fork);

impl<'a> Leaving<'a> {
    /// Begins, unless the fork has changed since it had this version.
    fn begin(fork: &'a Fork, version: (GenId, u64)) -> Option<Self> {
        let mut live = fork.core.live.write();
        if live.version() != version {
            return None;
        }
        live.writer.leaving = true;
        Some(Self(fork))
    }

    /// Notes that the other fork has replaced this one, which then never takes changes again.
    fn has_left(self) {
        self.0.core.note_discard();
        self.0.core.live.write().writer.broken = Some("it was restored to a seal".into());
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.core.live.write().writer.leaving = false;
    }
}

/// The initial state of a fork.
struct NewFork {
    image: Option<Digest>,
    /// The mode of the fork's top folder.
    mode: u16,
    /// Modes and owners of the folders around its files.
    folders: Frame,
    state: State,
    baseline: Arc<State>,
    /// The frozen generations that it rests on, oldest first.
    generations: Vec<Arc<Generation>>,
    created_ns: i64,
}

impl Registry {
    /// Makes a fork from an image, or an empty one.
    pub fn create(&self, name: &str, image: Option<Digest>) -> Result<Arc<Fork>> {
        self.create_as(name, image, FOLDER_MODE)
    }

    /// Like [`Registry::create`], with a mode for the top folder.
    pub fn create_as(&self, name: &str, image: Option<Digest>, mode: u16) -> Result<Arc<Fork>> {
        self.check_new(name)?;
        let created_ns = now();
        let state = State::over(self.shared.base(image, created_ns)?);
        let baseline = Arc::new(state.detached());
        let (folders, generations) = Default::default();
        self.establish(name, NewFork { image, mode, folders, state, baseline, generations, created_ns })
    }

    /// Makes a fork from the present state of another fork.
    pub fn branch(&self, source: &Fork, name: &str) -> Result<Arc<Fork>> {
        self.branch_as(source, name, 0o7777)
    }

    /// Like [`Registry::branch`], with a mode for the top folder. Bits that the source's folder lacks are cleared.
    pub fn branch_as(&self, source: &Fork, name: &str, mode: u16) -> Result<Arc<Fork>> {
        self.check_new(name)?;
        // Held until the new head names the generations, so that none of them is released before.
        let mut head = source.core.head.lock();
        let frozen = Snapshots::of(&source.core).freeze_locked(&mut head)?;
        let mode = mode & frozen.state.nodes.get(&Ino::TOP).map_or(FOLDER_MODE, |top| top.mode);
        let new = NewFork {
            image: head.base,
            mode,
            folders: head.folders.clone(),
            state: frozen.state.branch(),
            baseline: frozen.baseline.clone(),
            generations: frozen.generations.clone(),
            created_ns: now(),
        };
        self.establish(name, new)
    }

    fn establish(&self, name: &str, new: NewFork) -> Result<Arc<Fork>> {
        let NewFork { image, mode, folders, state, baseline, mut generations, created_ns } = new;
        let active = self.shared.new_generation()?;
        generations.push(active.clone());
        let head = Head {
            name: name.to_owned(),
            uid: GenId::random()?.to_string(),
            created_ns,
            base: image,
            generations: generations.iter().map(|generation| generation.id).collect(),
            folders,
            numbered_by: None,
            origin: image,
            began_empty: image.is_none() && generations.len() == 1,
            extra: serde_json::Map::new(),
        };
        let ids = head.generations.clone();
        self.shared.add_refs(&ids);
        let writer = Writer::new(active);
        let mut live = Live::new(state, baseline, writer, generations, image);
        // Set before the fork has a name, so that the fork is never more open than it should be.
        let closed = set_mode(&mut live, Ino::TOP, mode);
        if let Err(e) = closed.and_then(|()| head.write(&self.shared.files, &self.shared.forks, false)) {
            self.shared.drop_refs(&ids);
            return Err(e);
        }
        let fork = self.fork(head, live, None);
        if image.is_none() {
            fork.begin_making();
        }
        self.slots.lock().insert(name.to_owned(), Arc::new(Mutex::new(Slot::Loaded(fork.clone()))));
        Ok(fork)
    }

    /// Renames a fork. Returns what is known of it.
    pub fn rename(&self, name: &str, new_name: &str) -> Result<ForkInfo> {
        self.slot(name)?;
        self.check_new(new_name)?;
        let io = &*self.shared.files.io;
        let (from, to) = (head_path(&self.shared.forks, name), head_path(&self.shared.forks, new_name));
        let rename = || {
            rename_new(io, &from, &to).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => taken(new_name),
                _ => Error::io(e, format!("cannot rename fork {name:?} to {new_name:?}")),
            })
        };
        self.with_slot(name, |slot, now| {
            let info = match now {
                Slot::Loaded(fork) => {
                    let mut head = fork.core.head.lock();
                    rename()?;
                    new_name.clone_into(&mut head.name);
                    fork.core.note_head();
                    ForkInfo::of(&head, fork.damage())
                }
                Slot::Unloaded(head) => {
                    rename()?;
                    new_name.clone_into(&mut head.name);
                    ForkInfo::of(head, None)
                }
                Slot::Damaged(damage) => {
                    rename()?;
                    ForkInfo::damaged(new_name, damage)
                }
                Slot::Gone => return Err(no_fork(name)),
            };
            // While this fork still has the old name: the next fork of that name may have runs.
            beside::renamed(&self.shared.forks, name, new_name);
            self.unlist(name, slot);
            self.slots.lock().insert(new_name.to_owned(), Arc::clone(slot));
            Ok(info)
        })
    }

    /// Restores a fork to an image: a new fork with the same name replaces it. Programs can still read the files of the old
    /// fork that they have open.
    ///
    /// `judge` sees the new fork before it replaces the old one. If `judge` fails, the old fork stays unchanged.
    pub fn restore(&self, name: &str, fork: &Fork, image: Digest, judge: Judge<'_>) -> Result<Arc<Fork>> {
        self.restore_and(name, fork, &Onto { image: Some(image), restored: None }, judge, &|_| ())
    }

    /// Like [`Registry::restore`], and hands the new fork to `adopt` before other threads can find it by name.
    pub fn restore_and(
        &self,
        name: &str,
        fork: &Fork,
        onto: &Onto<'_>,
        judge: Judge<'_>,
        adopt: &dyn Fn(&Arc<Fork>),
    ) -> Result<Arc<Fork>> {
        self.may_write()?;
        // Read before any lock is taken.
        let base = self.shared.base(onto.image, fork.created_ns())?;
        loop {
            let seen = self.sync_sharers(name)?;
            let restored = self.with_slot(name, |_, slot| {
                if !matches!(&*slot, Slot::Loaded(now) if now.uid() == fork.uid()) {
                    let message = format!("fork {name:?} was replaced in the meantime");
                    return Err(Error::new(ErrorKind::Busy, message).with_hint("try again"));
                }
                let Some(restored) = self.replace(fork, seen.as_ref(), (onto, &base), judge)? else {
                    return Ok(None);
                };
                *slot = Slot::Loaded(restored.clone());
                adopt(&restored);
                Ok(Some(restored))
            })?;
            if let Some(restored) = restored {
                return Ok(restored);
            }
        }
    }

    /// Replaces a fork whose slot is locked by a new one. Returns [`None`] if the fork was branched after `seen`.
    ///
    /// Programs can read and write the old fork while the new one is made and judged. Then the old fork is checked again and
    /// takes no more changes while the head is switched, since those would be lost.
    fn replace(
        &self,
        fork: &Fork,
        seen: Option<&Seen>,
        (onto, base): (&Onto<'_>, &Arc<Base>),
        judge: &dyn Fn(&Fork) -> Result<()>,
    ) -> Result<Option<Arc<Fork>>> {
        let mut state = State::over(Arc::clone(base));
        let baseline = Arc::new(state.detached());
        let mut head = fork.core.head.lock();
        if seen != Some(&Seen::of(&head, Some(fork))) {
            return Ok(None);
        }
        let (version, folders) = {
            let live = fork.core.live.read();
            if live.is_changed() {
                return Err(written_to(&head.name));
            }
            // The folders around its files keep mode and owner, which no image records.
            (live.version(), live.state.folders())
        };
        state.set_folders(&folders);
        let active = self.shared.new_generation()?;
        let next = Head {
            folders,
            uid: GenId::random()?.to_string(),
            base: onto.image,
            generations: vec![active.id],
            numbered_by: head.numbered_by.clone().or_else(|| Some(head.uid.clone())),
            ..head.clone()
        };
        self.shared.add_refs(&next.generations);
        let released = head.generations.clone();
        let live = Live::new(state, baseline, Writer::new(active.clone()), vec![active], onto.image);
        let restored = self.fork(next.clone(), live, None);
        let switched = judge(&restored)
            .and_then(|()| fork.core.seal_list().inherit(&next.uid, onto.restored))
            .map(|()| beside::inherit(&self.shared.forks, self.shared.files.sharing, fork.uid(), &next.uid))
            .and_then(|()| {
                let leaving = Leaving::begin(fork, version).ok_or_else(|| written_to(&head.name))?;
                let durable = fork.core.switch_head(&mut head, next.clone())?;
                leaving.has_left();
                Ok(durable)
            });
        let durable = switched.inspect_err(|_| {
            forget_lists(&self.shared.forks, &next.uid);
            self.shared.drop_refs(&next.generations);
        })?;
        if durable {
            self.shared.drop_refs(&released);
        }
        forget_lists(&self.shared.forks, fork.uid());
        Ok(Some(restored))
    }

    /// Makes those forks durable that share generations with a fork. Otherwise a power cut after its discard could leave
    /// durable data that no head names. Returns what it saw of the fork. Branches that are made later are not yet durable.
    fn sync_sharers(&self, name: &str) -> Result<Option<Seen>> {
        let looked = self.with_slot(name, |_, slot| {
            Ok(match slot {
                Slot::Unloaded(head) => Some((Seen::of(head, None), head.generations.clone())),
                Slot::Loaded(fork) => {
                    // A branch holds the source's head until it is in the map itself.
                    let head = fork.core.head.lock();
                    Some((Seen::of(&head, Some(fork)), head.generations.clone()))
                }
                Slot::Damaged(_) | Slot::Gone => None,
            })
        })?;
        let Some((seen, generations)) = looked else { return Ok(None) };
        for fork in self.loaded() {
            let shares = || {
                let head = fork.core.head.lock();
                head.uid != seen.uid && head.generations.iter().any(|id| generations.contains(id))
            };
            if fork.core.has_unsynced_head() && shares() {
                fork.core.fsync_unless_discarded()?;
            }
        }
        Ok(Some(seen))
    }

    /// Discards a fork and returns what was known of it.
    ///
    /// Removes the head first, and with it the fork; then the generations that only this fork used. Programs can still read
    /// the files that they have open. The head of a damaged fork moves to `damaged/`, and its generations stay.
    pub fn discard(&self, name: &str) -> Result<ForkInfo> {
        self.discard_judged(name, None)
    }

    /// Like [`Registry::discard`], if `judge` allows it. `judge` sees the very fork that would be removed.
    pub fn discard_if(&self, name: &str, judge: Judge<'_>) -> Result<ForkInfo> {
        self.discard_judged(name, Some(judge))
    }

    fn discard_judged(&self, name: &str, judge: Option<Judge<'_>>) -> Result<ForkInfo> {
        self.may_write()?;
        loop {
            let seen = self.sync_sharers(name)?;
            let gone = self.with_slot(name, |slot, now| {
                if let Some(judge) = judge {
                    judge(&*self.get_in(name, now)?)?;
                }
                self.take_away(name, slot, now, seen.as_ref())
            })?;
            if let Some(info) = gone {
                return Ok(info);
            }
        }
    }

    /// Discards the fork of a locked slot. Returns [`None`] if it is a different fork than `seen`, or was branched since.
    fn take_away(
        &self,
        name: &str,
        slot: &Arc<Mutex<Slot>>,
        now: &mut Slot,
        seen: Option<&Seen>,
    ) -> Result<Option<ForkInfo>> {
        let io = &*self.shared.files.io;
        let path = head_path(&self.shared.forks, name);
        let failed = |e| Error::io(e, format!("cannot discard fork {name:?}"));
        // Returns whether the removal is durable.
        let remove = |uid: &str| {
            // Before the fork is gone: afterwards no file would name its images. Without the list they can still be
            // removed with other images, so a failure does not keep the fork.
            if let Err(e) = keep_list(&self.shared.forks, &self.shared.files, uid, name) {
                tracing::warn!("{e}");
            }
            io.remove(&path).map_err(failed)?;
            // Before the generations are removed: a power cut must not bring the head back without them. If this fails, the
            // fork is removed nevertheless.
            let durable = io.sync_dir(&self.shared.forks.join("heads"));
            if let Err(e) = &durable {
                tracing::error!("a power cut may bring fork {name:?} back: {e}");
            }
            Ok::<bool, Error>(durable.is_ok())
        };
        let (info, durable, freed) = match &*now {
            Slot::Loaded(fork) => {
                let head = fork.core.head.lock();
                if seen != Some(&Seen::of(&head, Some(fork))) {
                    return Ok(None);
                }
                let durable = remove(&head.uid)?;
                fork.core.note_discard();
                (ForkInfo::of(&head, fork.damage()), durable, head.generations.clone())
            }
            Slot::Unloaded(head) => {
                if seen != Some(&Seen::of(head, None)) {
                    return Ok(None);
                }
                (ForkInfo::of(head, None), remove(&head.uid)?, head.generations.clone())
            }
            Slot::Damaged(damage) => {
                let kept = self.shared.forks.join("damaged").join(format!("{name}-{}.json", clock::now()));
                io.rename(&path, &kept).map_err(failed)?;
                (ForkInfo::damaged(name, damage), true, Vec::new())
            }
            Slot::Gone => return Ok(None),
        };
        *now = Slot::Gone;
        // While this fork still has the name: the next fork of that name may have runs.
        beside::gone(&self.shared.forks, name);
        self.unlist(name, slot);
        if durable {
            self.shared.drop_refs(&freed);
        }
        if let Some(uid) = &info.uid {
            forget_lists(&self.shared.forks, uid);
        }
        Ok(Some(info))
    }
}

/// Changes a folder's mode, if it is different.
fn set_mode(live: &mut Live, ino: Ino, mode: u16) -> Result<()> {
    if live.inode_or_stale(ino)?.mode == mode {
        return Ok(());
    }
    live.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, now()) }))
}

/// Removes the list of seals of a fork that no longer exists, and its project.
fn forget_lists(forks: &Path, uid: &str) {
    forget_seals(forks, uid);
    beside::forget_project(forks, uid);
}
