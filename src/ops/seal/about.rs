//! What a fork's list says of a seal.

use super::Sealer;
use super::layers::Stored;
use crate::fork::{About, Frozen, Kept, beside};
use crate::ops::changes::Changes;

impl Sealer {
    /// What the fork's list says of a seal: what was asked for, what ran in the fork, and what changed.
    pub(super) fn told(
        &self,
        name: &str,
        about: &About,
        frozen: &Frozen,
        kept: &Kept,
        stored: &Stored,
    ) -> About {
        let mut found = Vec::new();
        let counted = frozen.differences(&mut |path| stored.get(path).map(|blob| blob.digest), &mut |one| {
            if !kept.contains_key(&one.path) {
                found.push(one);
            }
        });
        let counts = counted.is_ok().then(|| Changes::of(&found).counts());
        // Of a seal that says what came after it, the command is no part.
        let is_within = matches!(&*about.after, "" | "idle" | "interval");
        let within = is_within.then(|| beside::running(self.store.root(), name)).flatten();
        About { within, counts, ..about.clone() }
    }
}
