//! The description of a seal in a fork's list.

use super::sealing::Stored;
use crate::fork::{About, Frozen, Kept, beside};
use crate::ops::changes::Changes;
use crate::store::Store;

/// Returns the description of a seal: the texts of the user, the command in the fork, and the counted changes.
pub(super) fn told(
    store: &Store,
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
    // Only an automatic seal, or one without a reason, names the command that runs in the fork.
    let is_within = matches!(&*about.after, "" | "idle" | "interval");
    let within = is_within.then(|| beside::running(store.root(), name)).flatten();
    About { within, counts, ..about.clone() }
}
