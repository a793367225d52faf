//! Forks that go: discarded, or put back onto an image.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::GenId;
use super::head::{self, Head};
use super::journal::Writer;
use super::live::{Fork, Live, now};
use super::registry::{Registry, Slot};
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;

impl Registry {
    /// Puts a fork onto an image, with nothing of what it was: the same name, but another fork from now on. Whoever has
    /// something of the old one open can read on. `judge` sees it before it is put there; if it fails the fork is as it was.
    pub fn put_back(
        &self,
        name: &str,
        fork: &Fork,
        image: Digest,
        judge: &dyn Fn(&Fork) -> Result<()>,
    ) -> Result<Arc<Fork>> {
        self.may_write()?;
        self.sync_sharers(name)?;
        let slot = self.slot(name)?;
        let mut slot_now = slot.lock();
        let same = matches!(&*slot_now, Slot::Loaded(now) if now.uid == fork.uid);
        if !same {
            return Err(Error::new(ErrorKind::Busy, format!("fork {name:?} is another one by now")));
        }
        let state = State::over(self.shared.base(Some(image), 0)?);
        let baseline = Arc::new(state.detached());
        let mut head = fork.head.lock();
        // Held until it is another fork: what is acknowledged from here on would be lost.
        let mut written = fork.live.write();
        if written.is_changed() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("fork {name:?} was written to since it was sealed"),
            )
            .with_hint("try again, best when nobody writes to it"));
        }
        let active = self.shared.new_generation()?;
        let next = Head {
            uid: GenId::random()?.to_string(),
            base: Some(image),
            generations: vec![active.id],
            ..head.clone()
        };
        self.shared.add_refs(&next.generations);
        let released = head.generations.clone();
        let live = Live::new(state, baseline, Writer::new(active.clone()), vec![active], Some(image));
        let restored = self.fork(next.clone(), live, None, true);
        let switched = judge(&restored).and_then(|()| {
            Fork::inherit_seals(&self.shared.forks, &fork.uid, &next.uid);
            fork.switch_head(&mut head, next.clone())
        });
        let durable = switched.inspect_err(|_| {
            Fork::forget_seals(&self.shared.forks, &next.uid);
            self.shared.drop_refs(&next.generations);
        })?;
        fork.discarded.store(true, Ordering::Release);
        written.writer.broken = Some("it was put back to a seal".into());
        drop(written);
        if durable {
            self.shared.drop_refs(&released);
        }
        Fork::forget_seals(&self.shared.forks, &fork.uid);
        *slot_now = Slot::Loaded(restored.clone());
        Ok(restored)
    }

    /// Makes the forks durable that rest on what a fork rests on, and are not: a power cut would leave nothing that names what
    /// was durable in it.
    fn sync_sharers(&self, name: &str) -> Result<()> {
        let generations = match &*self.slot(name)?.lock() {
            Slot::Known(head) => head.generations.clone(),
            Slot::Loaded(fork) => fork.head.lock().generations.clone(),
            Slot::Bad(_) => return Ok(()),
        };
        for fork in self.loaded() {
            let shares = || {
                let head = fork.head.lock();
                head.name != name && head.generations.iter().any(|id| generations.contains(id))
            };
            if !fork.head_unsynced.load(Ordering::Acquire) || !shares() {
                continue;
            }
            if let Err(error) = fork.fsync()
                // One that is discarded meanwhile needs nothing any more.
                && !fork.discarded.load(Ordering::Acquire)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Discards a fork: its head goes first, and with it the fork; then what only it needed. Somebody who still has it
    /// open can read on. The head of a damaged fork is kept in `damaged/`, with what it names.
    pub fn discard(&self, name: &str) -> Result<()> {
        self.may_write()?;
        self.sync_sharers(name)?;
        let slot = self.slot(name)?;
        let slot_now = slot.lock();
        let path = head::path(&self.shared.forks, name);
        let failed = |e| Error::io(e, format!("cannot discard fork {name:?}"));
        let mut durable = true;
        let mut remove = || {
            fs::remove_file(&path).map_err(failed)?;
            // Before its generations go: a power cut must not bring the head back without them. It is gone in any case.
            if let Err(e) = self.shared.files.io.sync_dir(&self.shared.forks.join("heads")) {
                tracing::error!("a power cut may bring fork {name:?} back: {e}");
                durable = false;
            }
            Ok::<(), Error>(())
        };
        let mut freed = Vec::new();
        let mut uid = None;
        match &*slot_now {
            Slot::Loaded(fork) => {
                let head = fork.head.lock();
                remove()?;
                fork.discarded.store(true, Ordering::Release);
                freed.clone_from(&head.generations);
                uid = Some(head.uid.clone());
            }
            Slot::Known(head) => {
                remove()?;
                freed.clone_from(&head.generations);
                uid = Some(head.uid.clone());
            }
            Slot::Bad(_) => {
                let kept = self.shared.forks.join("damaged").join(format!("{name}-{}.json", now()));
                fs::rename(&path, kept).map_err(failed)?;
            }
        }
        self.slots.lock().remove(name);
        if durable {
            self.shared.drop_refs(&freed);
        }
        if let Some(uid) = uid {
            Fork::forget_seals(&self.shared.forks, &uid);
        }
        Ok(())
    }
}
