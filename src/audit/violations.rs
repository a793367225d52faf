//! The violations of a store: those in the log, and the existing crash packs.

use std::collections::VecDeque;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::event::SessionEvent;
use crate::crashpack;
use crate::error::Result;

/// How many violations and packs are named; the rest is counted.
const NAMED: usize = 20;

/// A violation that an oracle found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The number of its line.
    pub turn: u32,
    /// The kind of transfer.
    pub transfer: String,
    /// The subject of the transfer.
    pub subject: String,
    /// The fault.
    pub reason: String,
    /// The name of its crash pack, if one could be kept.
    pub crashpack: Option<String>,
}

/// The violations in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// Their number.
    pub count: u64,
    /// The newest, at most 20, oldest first.
    pub newest: VecDeque<Violation>,
}

impl Violations {
    /// Counts an event, if it is a violation.
    pub fn apply(&mut self, event: &SessionEvent) {
        let SessionEvent::MilestoneBlocked(noted) = event else { return };
        let text = |key: &str| noted.extra.get(key).and_then(Value::as_str).map(str::to_owned);
        self.count += 1;
        self.newest.push_back(Violation {
            turn: noted.turn,
            transfer: text("phase_id").unwrap_or_default(),
            subject: text("agent_id").unwrap_or_default(),
            reason: text("reason").unwrap_or_default(),
            crashpack: text("crashpack"),
        });
        if self.newest.len() > NAMED {
            self.newest.pop_front();
        }
    }
}

/// The crash packs of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packs {
    /// Their number.
    pub count: u64,
    /// The names of the newest, at most 20, newest first.
    pub newest: Vec<String>,
}

impl Packs {
    /// Lists the crash packs of the store in `store`.
    pub fn of(store: &Path) -> Result<Self> {
        let kept = crashpack::kept(&super::file::crash_dir(store))?;
        let count = kept.len() as u64;
        Ok(Self { count, newest: kept.into_iter().take(NAMED).map(|pack| pack.name).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::note;

    #[test]
    fn violations_are_counted_and_the_newest_are_named() {
        let mut violations = Violations::default();
        violations.apply(&note::fork_made("f", None));
        for n in 0..25 {
            let pack = format!("seal-{n}");
            violations.apply(&note::violation("seal", "f", "gone", (n % 2 == 0).then_some(pack.as_str())));
        }
        assert_eq!((violations.count, violations.newest.len()), (25, 20));
        let (first, last) = (&violations.newest[0], &violations.newest[19]);
        assert_eq!((first.crashpack.as_deref(), last.crashpack.as_deref()), (None, Some("seal-24")));
        assert_eq!((&*last.transfer, &*last.subject, &*last.reason), ("seal", "f", "gone"));
    }
}
