//! Freezes a fork's state at one moment.

use std::sync::OnceLock;

use super::frozen::Frozen;
use crate::error::Result;
use crate::fork::core::Core;
use crate::fork::disk::Head;
use crate::fork::journal::Writer;
use crate::fork::live::Live;
use crate::sync::{MutexGuard, wait};

/// The snapshots of a fork: freezing its state, moving it to an image of that state, and rewriting its journals.
pub(in crate::fork) struct Snapshots<'a> {
    pub(super) core: &'a Core,
}

impl<'a> Snapshots<'a> {
    pub(in crate::fork) fn of(core: &'a Core) -> Self {
        Self { core }
    }

    /// Freezes the present state, which takes a pointer. The fork continues at once in a new generation.
    ///
    /// Waits for operations of several steps, for one second at most.
    pub(in crate::fork) fn freeze(&self) -> Result<Frozen> {
        wait::required()?;
        self.core.gate.pause(|pending| {
            let mut head = self.core.head.lock();
            let frozen = self.freeze_locked(&mut head)?;
            Ok(Frozen { pending, ..frozen })
        })
    }

    pub(in crate::fork) fn freeze_locked(&self, head: &mut MutexGuard<'_, Head>) -> Result<Frozen> {
        wait::required()?;
        self.core.may_write()?;
        {
            let mut live = self.core.live.write();
            live.writable()?;
            if live.writer.is_empty() {
                let frozen = self.frozen(&live, 1);
                // Tells later changes apart from the frozen ones.
                live.state.epoch += 1;
                return Ok(frozen);
            }
        }
        let new = self.core.shared.new_generation()?;
        self.core.shared.add_refs(&[new.id]);
        let mut next = head.clone();
        next.generations.push(new.id);
        // The head names the new generation before anything is written to it. Until then operations go to the old one.
        // Either head therefore leads to all of them.
        if let Err(e) = next.write(&self.core.shared.files, &self.core.shared.forks, true) {
            self.core.shared.drop_refs(&[new.id]);
            return Err(e);
        }
        **head = next;
        self.core.note_head();
        let mut live = self.core.live.write();
        live.state.raise_floors();
        let frozen = self.frozen(&live, 0);
        live.writer.generation.freeze_at(live.writer.seq, live.writer.end);
        live.state.epoch += 1;
        live.generations.push(new.clone());
        live.writer = Writer::new(new);
        Ok(frozen)
    }

    /// The last `behind` generations hold nothing of the frozen state.
    fn frozen(&self, live: &Live, behind: usize) -> Frozen {
        let kept = live.generations.len() - behind;
        Frozen {
            state: live.state.detached(),
            baseline: live.baseline.clone(),
            generations: live.generations[..kept].to_vec(),
            image: live.image,
            uid: self.core.uid.clone(),
            pending: 0,
            reader: self.core.shared.reader.clone(),
            changes: OnceLock::new(),
        }
    }
}
