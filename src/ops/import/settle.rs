//! Handles repositories that git writes to during an import.
//!
//! Git writes objects before the references to them, and writes a pack before it removes the objects that it contains. So an
//! import could get a reference without its objects, or miss an object both loose and packed.

use std::collections::HashMap;

use super::importing::Importing;
use super::report::Report;
use super::tree::Item;
use super::walk::{self, Limits, Meta};
use super::{contents, git, look};
use crate::error::Result;
use crate::store::Batch;

/// How often the import lists the repositories again.
const LOOKS: usize = 4;

/// Looks at the repositories again after all files are read, and imports changes, until there are none.
pub(super) fn settle(
    importing: &Importing<'_>,
    batch: &Batch<'_>,
    (limits, root): (&Limits<'_>, &Meta),
    repositories: &[Vec<u8>],
    items: &mut Vec<Item>,
    report: &mut Report,
) -> Result<()> {
    if repositories.is_empty() {
        return Ok(());
    }
    let is_inside = |path: &[u8]| repositories.iter().any(|folder| is_at_or_below(path, folder));
    let wanted =
        |path: &[u8]| is_inside(path) || repositories.iter().any(|folder| is_at_or_below(folder, path));
    for look in 0..LOOKS {
        let limits = Limits { wanted: &wanted, mounts: walk::mounts_below(importing.dir), ..*limits };
        let mut listing = walk::walk(importing.top, root, &limits, importing.options.jobs, &())?;
        git::mend(importing, &mut listing, &limits, &())?;
        let mut found = listing.found;
        found.retain(|found| is_inside(&found.path));
        let now: HashMap<&[u8], &Meta> = found.iter().map(|f| (f.path.as_slice(), &f.meta)).collect();
        // Checks whether an item is unchanged. The stamp also covers a link's target.
        let is_same = |item: &Item| {
            let meta = now.get(item.path.as_slice());
            meta.is_some_and(|meta| meta.stamp == item.meta.stamp && meta.kind == item.meta.kind)
        };
        let before = items.len();
        items.retain(|item| !is_inside(&item.path) || is_same(item));
        let kept = items.iter().filter(|item| is_inside(&item.path));
        let kept: std::collections::HashSet<&[u8]> = kept.map(|item| item.path.as_slice()).collect();
        let changed = found.iter().filter(|found| !kept.contains(found.path.as_slice()));
        let changed: Vec<_> = changed.cloned().collect();
        if changed.is_empty() && items.len() == before {
            return Ok(());
        }
        if look + 1 == LOOKS {
            importing.report(
                "git kept writing to a repository during the import; run `git fsck` in a fork".to_owned(),
            );
        }
        let (mut more, pending) = look::look(importing, &changed)?;
        contents::store(importing, batch, &mut more, &pending, report)?;
        items.append(&mut more);
    }
    Ok(())
}
/// Whether `path` is `folder`, or lies below it. Everything lies below the empty path.
fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
