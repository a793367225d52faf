//! The steps of a transfer: each action and observation of a program during the transfer, in order.
//!
//! A [`TransferState`] is the sum of the observations, and nothing else. So an oracle judges exactly the
//! content of a crash pack, and a pack whose steps give another state is refused.

use std::fmt::Display;

use super::pack::Crashpack;
use super::trace::{Seen, state_of};
use crate::digest::Digest;
use crate::oracle::{Transfer, TransferKind, TransferOracle, TransferState};

/// How many paths that differ are named; the rest is counted.
pub(crate) const NAMED: usize = 20;

/// The steps of one transfer so far.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    pack: Crashpack,
    /// The first step that shows a fault, in words.
    wrong: Option<String>,
}

impl Steps {
    /// Makes an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an action.
    pub fn did(&mut self, kind: &str, what: impl Into<String>) {
        self.push(kind, what.into(), None);
    }

    /// Adds an observation.
    pub fn saw(&mut self, kind: &str, what: impl Into<String>, seen: Seen) {
        self.push(kind, what.into(), Some(seen));
    }

    /// Adds an observation of a fault. The first one is reported to the caller of the transfer.
    pub fn wrong(&mut self, kind: &str, what: impl Into<String>, seen: Option<Seen>) {
        let what = what.into();
        self.wrong.get_or_insert_with(|| what.clone());
        self.push(kind, what, seen);
    }

    fn push(&mut self, kind: &str, what: String, seen: Option<Seen>) {
        self.pack = std::mem::take(&mut self.pack).push(kind, what, seen, None);
    }

    /// Adds the file that a step was about, for readers who investigate the fault.
    pub fn concerns(&mut self, path: impl Into<String>) {
        self.pack = std::mem::take(&mut self.pack).with_artifact_path(path);
    }

    /// Adds the marker and the blob of an image's manifest to the files concerned.
    pub fn concerns_image(&mut self, image: &Digest) {
        let hex = image.hex();
        self.concerns(format!("images/{hex}.json"));
        self.concerns(format!("blobs/sha256/{}/{hex}.zst", &hex[..2]));
    }

    /// Adds the seed of an image's synthetic content, if it has one.
    pub fn made_by(&mut self, seed: Option<u64>) {
        if let Some(seed) = seed {
            self.pack = std::mem::take(&mut self.pack).with_seed("fixture", seed);
        }
    }

    /// Adds the expected manifest and the one that is there. `why` says why it cannot be read or differs.
    pub fn saw_manifest(&mut self, expected: &Digest, found: String, why: Option<&str>) {
        self.concerns_image(expected);
        self.saw("manifest", format!("expected {expected}"), Seen::ManifestExpected(expected.to_string()));
        let what = match (why, found.is_empty()) {
            (Some(why), _) => why.to_owned(),
            (None, true) => "found none".to_owned(),
            (None, false) => format!("found {found}"),
        };
        if found == expected.to_string() && why.is_none() {
            self.saw("manifest", what, Seen::ManifestFound(found));
        } else {
            self.wrong("manifest", what, Some(Seen::ManifestFound(found)));
        }
    }

    /// Adds how many numbers are missing in the journals of a fork.
    pub fn saw_journal(&mut self, gaps: u32) {
        self.counted("journal", "numbers missing in the journals", gaps, Seen::JournalGaps(gaps));
    }

    /// Adds how many operations were under way.
    pub fn saw_pending(&mut self, pending: u32) {
        self.counted("operations", "operations under way", pending, Seen::PendingOperations(pending));
    }

    /// Adds how many things were left behind.
    pub fn saw_leaked(&mut self, what: &str, leaked: u32) {
        self.counted("obligations", what, leaked, Seen::LeakedObligations(leaked));
    }

    fn counted(&mut self, kind: &str, what: &str, number: u32, seen: Seen) {
        let what = format!("{what}: {number}");
        if number == 0 { self.saw(kind, what, seen) } else { self.wrong(kind, what, Some(seen)) }
    }

    /// Adds paths that differ, each with its difference: the first ones by name, the rest by number. `at` is
    /// their folder. Returns whether there are any.
    pub fn saw_paths<P: Display>(
        &mut self,
        at: &str,
        differing: impl IntoIterator<Item = (P, String)>,
    ) -> bool {
        let (mut named, mut more) = (0_usize, 0_usize);
        for (path, how) in differing {
            if named == NAMED {
                more += 1;
                continue;
            }
            named += 1;
            let path = path.to_string();
            self.concerns(format!("{at}/{path}"));
            self.wrong("path", format!("{path}: {how}"), Some(Seen::PathDiffers(path.clone())));
        }
        if named == 0 {
            self.did("path", "no path differs");
        }
        if more > 0 {
            self.wrong("path", format!("and {more} more paths"), None);
        }
        named > 0
    }

    /// The state of the transfer so far.
    pub fn state(&self) -> TransferState {
        state_of(&self.pack.trace)
    }

    /// The transfer in its present state, for a judgement.
    pub fn transfer(&self, kind: TransferKind, subject: &str) -> Transfer {
        Transfer { kind, subject: subject.to_owned(), state: self.state() }
    }

    /// The first step that shows a fault, in words.
    pub(crate) fn first_wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    /// A crash pack of these steps and of the input of an oracle.
    pub(crate) fn into_pack(self, oracle: TransferOracle, transfer: Transfer) -> Crashpack {
        self.pack.with_judged(oracle, transfer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_to_a_state_and_name_what_is_wrong_first() {
        let mut steps = Steps::new();
        let image = Digest::of(b"x");
        steps.did("checkpoint", "froze fork f");
        steps.saw_journal(0);
        steps.saw_manifest(&image, image.to_string(), None);
        assert!(!steps.saw_paths("forks/f", Vec::<(String, String)>::new()));
        assert_eq!((steps.first_wrong(), steps.state().journal_gaps), (None, 0));
        assert_eq!(steps.state().manifest_hash, image.to_string());
        steps.saw_journal(2);
        steps.saw_journal(1);
        steps.saw_pending(3);
        steps.saw_leaked("temporary files left", 4);
        steps.saw_manifest(&image, String::new(), Some("it is gone"));
        assert!(steps.saw_paths("forks/f", (0..23).map(|n| (format!("p{n}"), "gone".to_owned()))));
        let state = TransferState {
            manifest_hash: String::new(),
            expected_manifest_hash: image.to_string(),
            journal_gaps: 3,
            pending_operations: 3,
            leaked_obligations: 4,
            path_outcomes_consistent: false,
        };
        assert_eq!(steps.state(), state);
        assert_eq!(steps.first_wrong(), Some("numbers missing in the journals: 2"));
        let last: Vec<&str> =
            steps.pack.trace.iter().rev().take(2).map(|event| event.message.as_str()).collect();
        assert_eq!(last, ["and 3 more paths", "p19: gone"]);
        let concerned = &steps.pack.artifact_paths;
        assert_eq!((concerned.len(), concerned.last().map(String::as_str)), (22, Some("forks/f/p19")));
    }
}
