//! Forks that go: discarded, or put back onto an image.

use std::sync::Arc;

use super::beside;
use super::disk::GenId;
use super::frame::Frame;
use super::head::{self, Head};
use super::journal::Writer;
use super::live::{Fork, Live, now as now_ns};
use super::registry::{Registry, Slot};
use super::seals::Restored;
use super::state::{Base, State};
use super::stats::ForkInfo;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;

/// The new base of a fork that is restored.
#[derive(Clone, Copy, Debug)]
pub struct Onto<'a> {
    /// The image; nothing for the beginning of a fork that began empty.
    pub image: Option<Digest>,
    /// What its list says of it from then on.
    pub restored: Option<&'a Restored>,
}

/// Says whether a fork may go.
type Judge<'a> = &'a dyn Fn(&Fork) -> Result<()>;

/// A fork as it was when it was looked at: its identity, and when it was last frozen. A branch freezes it.
#[derive(PartialEq, Eq)]
struct Seen {
    uid: String,
    /// None if nothing but its head was read.
    epoch: Option<u64>,
}

impl Seen {
    fn of(head: &Head, fork: Option<&Fork>) -> Self {
        Self { uid: head.uid.clone(), epoch: fork.map(|fork| fork.live.read().state.epoch) }
    }
}

fn written_to(name: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("fork {name:?} was written to since it was sealed"))
        .with_hint("try again, best when no program writes to it")
}

/// A fork that takes no change, because another one is about to take its place. It does again when this is dropped.
struct Leaving<'a>(&'a Fork);

impl<'a> Leaving<'a> {
    /// Begins, if nothing was changed since the fork was at this version.
    fn begin(fork: &'a Fork, version: (GenId, u64)) -> Option<Self> {
        let mut live = fork.live.write();
        if live.version() != version {
            return None;
        }
        live.writer.leaving = true;
        Some(Self(fork))
    }

    /// The other one has taken its place.
    fn has_left(self) {
        self.0.discarded.store(true, Ordering::Release);
        self.0.live.write().writer.broken = Some("it was put back to a seal".into());
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.live.write().writer.leaving = false;
    }
}

impl Registry {
    /// Puts a fork onto an image, with nothing of what it was: the same name, but another fork from now on. Programs that
    /// have something of the old one open can read on. `judge` sees it before it is put there; if it fails the fork is as
    /// it was.
    pub fn put_back(&self, name: &str, fork: &Fork, image: Digest, judge: Judge<'_>) -> Result<Arc<Fork>> {
        self.put_back_and(name, fork, &Onto { image: Some(image), restored: None }, judge, &|_| ())
    }

    /// Does the same, and hands the new fork to `adopt` before any other thread can find it by its name.
    pub fn put_back_and(
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
                if !matches!(&*slot, Slot::Loaded(now) if now.uid == fork.uid) {
                    let message = format!("fork {name:?} was replaced in the meantime");
                    return Err(Error::new(ErrorKind::Busy, message));
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

    /// Puts another fork in the place of one whose slot is locked. None if it was branched since it was looked at.
    ///
    /// All is made and judged while the fork is read and written. Then it is looked at again, and takes no change any more while the
    /// head is switched: what was acknowledged from then on would be lost.
    fn replace(
        &self,
        fork: &Fork,
        seen: Option<&Seen>,
        (onto, base): (&Onto<'_>, &Arc<Base>),
        judge: &dyn Fn(&Fork) -> Result<()>,
    ) -> Result<Option<Arc<Fork>>> {
        let mut state = State::over(Arc::clone(base));
        let baseline = Arc::new(state.detached());
        let mut head = fork.head.lock();
        if seen != Some(&Seen::of(&head, Some(fork))) {
            return Ok(None);
        }
        let (version, folders) = {
            let live = fork.live.read();
            if live.is_changed() {
                return Err(written_to(&head.name));
            }
            // The folders around its files keep mode and owner, which no image records.
            (live.version(), Frame::of(&live.state))
        };
        folders.apply(&mut state);
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
        let restored = self.fork(next.clone(), live, None, true);
        let switched = judge(&restored)
            .and_then(|()| fork.inherit_seals(&next.uid, onto.restored))
            .map(|()| beside::inherit(&self.shared.forks, self.shared.files.sharing, &fork.uid, &next.uid))
            .and_then(|()| {
                let leaving = Leaving::begin(fork, version).ok_or_else(|| written_to(&head.name))?;
                let durable = fork.switch_head(&mut head, next.clone())?;
                leaving.has_left();
                Ok(durable)
            });
        let durable = switched.inspect_err(|_| {
            Fork::forget_seals(&self.shared.forks, &next.uid);
            self.shared.drop_refs(&next.generations);
        })?;
        if durable {
            self.shared.drop_refs(&released);
        }
        Fork::forget_seals(&self.shared.forks, &fork.uid);
        Ok(Some(restored))
    }

    /// Makes the forks durable that rest on what a fork rests on, and are not: a power cut would leave nothing that names what
    /// was durable in it. Returns the fork that it looked at. Branches made of that one since are not durable yet.
    fn sync_sharers(&self, name: &str) -> Result<Option<Seen>> {
        let looked = self.with_slot(name, |_, slot| {
            Ok(match slot {
                Slot::Known(head) => Some((Seen::of(head, None), head.generations.clone())),
                Slot::Loaded(fork) => {
                    // A branch holds the head until it is in the map.
                    let head = fork.head.lock();
                    Some((Seen::of(&head, Some(fork)), head.generations.clone()))
                }
                Slot::Bad(_) | Slot::Gone => None,
            })
        })?;
        let Some((seen, generations)) = looked else { return Ok(None) };
        for fork in self.loaded() {
            let shares = || {
                let head = fork.head.lock();
                head.uid != seen.uid && head.generations.iter().any(|id| generations.contains(id))
            };
            if fork.head_unsynced.load(Ordering::Acquire) && shares() {
                fork.fsync_unless_discarded()?;
            }
        }
        Ok(Some(seen))
    }

    /// Discards a fork: its head goes first, and with it the fork; then what only it needed. Programs that still have it
    /// open can read on. The head of a damaged fork is kept in `damaged/`, with what it names. Returns what the fork was.
    pub fn discard(&self, name: &str) -> Result<ForkInfo> {
        self.discard_judged(name, None)
    }

    /// The same if `judge` allows it, which is shown the very fork that goes.
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

    /// Discards the fork of a slot that is locked. None if it is another one than was looked at, or was branched since.
    fn take_away(
        &self,
        name: &str,
        slot: &Arc<Mutex<Slot>>,
        now: &mut Slot,
        seen: Option<&Seen>,
    ) -> Result<Option<ForkInfo>> {
        let io = &*self.shared.files.io;
        let path = head::path(&self.shared.forks, name);
        let failed = |e| Error::io(e, format!("cannot discard fork {name:?}"));
        // Whether it is gone after a power cut too.
        let remove = || {
            io.remove(&path).map_err(failed)?;
            // Before its generations go: a power cut must not bring the head back without them. It is gone in any case.
            let durable = io.sync_dir(&self.shared.forks.join("heads"));
            if let Err(e) = &durable {
                tracing::error!("a power cut may bring fork {name:?} back: {e}");
            }
            Ok::<bool, Error>(durable.is_ok())
        };
        let (info, durable, freed) = match &*now {
            Slot::Loaded(fork) => {
                let head = fork.head.lock();
                if seen != Some(&Seen::of(&head, Some(fork))) {
                    return Ok(None);
                }
                let durable = remove()?;
                fork.discarded.store(true, Ordering::Release);
                (ForkInfo::of(&head, fork.damage()), durable, head.generations.clone())
            }
            Slot::Known(head) => {
                if seen != Some(&Seen::of(head, None)) {
                    return Ok(None);
                }
                (ForkInfo::of(head, None), remove()?, head.generations.clone())
            }
            Slot::Bad(damage) => {
                let kept = self.shared.forks.join("damaged").join(format!("{name}-{}.json", now_ns()));
                io.rename(&path, &kept).map_err(failed)?;
                (ForkInfo::damaged(name, damage), true, Vec::new())
            }
            Slot::Gone => return Ok(None),
        };
        *now = Slot::Gone;
        // While the name is this fork's: the next one of it may have runs.
        beside::gone(&self.shared.forks, name);
        self.unlist(name, slot);
        if durable {
            self.shared.drop_refs(&freed);
        }
        if let Some(uid) = &info.uid {
            Fork::forget_seals(&self.shared.forks, uid);
        }
        Ok(Some(info))
    }
}
