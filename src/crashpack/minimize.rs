//! Drops steps of a crash pack while the verdicts stay the same.

use super::pack::Crashpack;
use super::trace::{TraceEvent, state_of};

/// The part of a verdict that must stay: the oracle, and the kinds of its violations.
type Essence = (String, Vec<String>);

impl Crashpack {
    /// The same fault with the fewest steps that cause it: each remaining step is needed for a verdict. A
    /// judged event gets the state of the remaining steps.
    #[must_use]
    pub fn minimized(&self) -> Self {
        let essence = self.essence();
        let mut least = self.clone();
        // First halves, then ever smaller stretches, from the end to the beginning.
        let mut stretch = least.trace.len().next_power_of_two();
        loop {
            let before = least.trace.len();
            let mut end = before;
            while end > 0 {
                let start = end.saturating_sub(stretch);
                let fewer = least.without(start..end);
                if fewer.trace.len() < least.trace.len() && fewer.essence() == essence {
                    least = fewer;
                }
                end = start;
            }
            // A step may be needed only while another one is there.
            if stretch <= 1 && least.trace.len() == before {
                break;
            }
            stretch = (stretch / 2).max(1);
        }
        for (event, seq) in least.trace.iter_mut().zip(1..) {
            event.seq = seq;
        }
        let kept = format!("{} of {}", least.steps(), self.steps());
        least.with_metadata("steps_left", kept)
    }

    fn essence(&self) -> Vec<Essence> {
        let types = |result: crate::oracle::TransferOracleResult| {
            (result.oracle_name, result.violations.into_iter().map(|found| found.violation_type).collect())
        };
        self.results().into_iter().map(types).collect()
    }

    /// The pack without some steps. Judged events stay.
    fn without(&self, stretch: std::ops::Range<usize>) -> Self {
        let derives = self.trace.iter().any(|event| event.seen.is_some());
        let mut left: Vec<TraceEvent> = Vec::with_capacity(self.trace.len());
        for (index, event) in self.trace.iter().enumerate() {
            if event.judged.is_none() && stretch.contains(&index) {
                continue;
            }
            let mut event = event.clone();
            if let Some(judged) = event.judged.as_mut().filter(|_| derives) {
                judged.transfer.state = state_of(&left);
            }
            left.push(event);
        }
        Self { trace: left, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crashpack::{Seen, Steps};
    use crate::oracle::{TransferKind, TransferOracle};

    fn pack(steps: Steps) -> Crashpack {
        let transfer = steps.transfer(TransferKind::Seal, "f");
        steps.into_pack(TransferOracle::new("seal"), transfer)
    }

    fn messages(pack: &Crashpack) -> Vec<&str> {
        pack.trace.iter().map(|event| event.message.as_str()).collect()
    }

    #[test]
    fn only_steps_that_the_verdict_needs_are_left() {
        let mut steps = Steps::new();
        let image = crate::digest::Digest::of(b"x");
        steps.did("checkpoint", "froze");
        steps.saw_journal(0);
        steps.saw_manifest(&image, image.to_string(), None);
        steps.saw_paths("f", (0..30).map(|n| (format!("p{n}"), "gone".to_owned())));
        steps.saw_leaked("files left", 2);
        let whole = pack(steps);
        let least = whole.minimized();
        assert_eq!(least.results()[0].violations.len(), 2);
        assert_eq!(messages(&least), ["p19: gone", "files left: 2", "seal of f"]);
        let seqs: Vec<u64> = least.trace.iter().map(|event| event.seq).collect();
        assert_eq!((seqs, least.contradiction()), (vec![1, 2, 3], None));
        assert_eq!(least.metadata["steps_left"], "2 of 26");
        assert_eq!(messages(&least.minimized()), messages(&least), "none is left to drop");
    }

    #[test]
    fn two_hashes_that_differ_need_one_step() {
        let mut steps = Steps::new();
        let image = crate::digest::Digest::of(b"x");
        steps.saw_manifest(&image, String::new(), Some("gone"));
        let least = pack(steps).minimized();
        assert_eq!(least.results()[0].violations[0].violation_type, "manifest_integrity");
        assert_eq!(least.trace.len(), 2);
    }

    #[test]
    fn steps_that_show_nothing_are_dropped_if_the_state_is_given() {
        let state = crate::oracle::TransferState { journal_gaps: 1, ..Default::default() };
        let transfer = crate::oracle::Transfer { kind: TransferKind::Seal, subject: "f".into(), state };
        let pack =
            Crashpack::new().with_trace("note", "n").with_judged(TransferOracle::new("seal"), transfer);
        let least = pack.minimized();
        assert_eq!((least.trace.len(), least.results()), (1, pack.results()));
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn each_step_that_is_left_is_needed(seen in prop::collection::vec((0..6_u8, 0..3_u32), 0..24)) {
            let mut steps = Steps::new();
            for (what, number) in seen {
                let seen = match what {
                    0 => Seen::ManifestExpected(number.to_string()),
                    1 => Seen::ManifestFound(number.to_string()),
                    2 => Seen::JournalGaps(number),
                    3 => Seen::PendingOperations(number),
                    4 => Seen::LeakedObligations(number),
                    _ => Seen::PathDiffers(number.to_string()),
                };
                steps.saw("note", "seen", seen);
            }
            let whole = pack(steps);
            let least = whole.minimized();
            prop_assert_eq!(least.essence(), whole.essence());
            for index in 0..least.trace.len() - 1 {
                let fewer = least.without(index..index + 1);
                prop_assert_ne!(fewer.essence(), whole.essence());
            }
        }
    }
}
