//! Replaces links that lead out of a repository. `git new-workdir` and other tools make repositories of such links, and git in a
//! fork would write to their targets.

use std::path::Path;

use super::super::mended::MendedKind;
use super::super::ties::{resolved, split};
use super::mender::{Members, Mender, as_path, canonical, copy_file, is_head};
use crate::error::Result;
use crate::layers::world::Kind;
use crate::mount::reach::Top;

/// Replaces links that lead out of the image, or to the original, by their targets.
pub(super) fn links(mender: &mut Mender<'_>) -> Result<()> {
    let found = &mender.listing.found;
    if !found.iter().any(|found| found.meta.kind == Kind::Symlink) {
        return Ok(());
    }
    let repositories = Members::of(found).repositories(mender.top(), found);
    if repositories.is_empty() {
        return Ok(());
    }
    // Returns the part of the repository that a path names, such as `objects`.
    let part = |path: &[u8]| -> Option<Vec<u8>> {
        let below = |folder: &Vec<u8>| match &**folder {
            b"" => Some(path.to_vec()),
            folder => Some(path.strip_prefix(folder)?.strip_prefix(b"/")?.to_vec()),
        };
        repositories.iter().filter_map(below).find(|part| PARTS.contains(&&**part))
    };
    let mut leading = Vec::new();
    for (index, found) in found.iter().enumerate().filter(|(_, f)| f.meta.kind == Kind::Symlink) {
        let Some(part) = part(&found.path) else { continue };
        let (top, at) = found.place(mender.top());
        let Ok(target) = top.link(at) else { continue };
        let target = as_path(&target);
        let folder = top.shown(split(at).0);
        let meant = resolved(&folder, target);
        let stays = target.is_relative()
            && if found.source.is_some() {
                meant.starts_with(top.path())
            } else {
                mender.place.holds(&meant)
            };
        if !stays
            && let Some(end) = canonical(&folder.join(target))
            && is_part(&end, &part)
        {
            leading.push((index, end));
        }
    }
    for (index, end) in leading {
        if !mender.may_take(&end) {
            continue;
        }
        let at = mender.listing.found[index].path.clone();
        if end.is_dir() {
            let mut copied = mender.copy(&at, &end, &|_| true)?.into_iter();
            if let Some(itself) = copied.next() {
                mender.listing.found[index] = itself;
            }
            mender.listing.found.extend(copied);
        } else if let Some(file) = copy_file(&at, &end).filter(|file| file.meta.kind == Kind::File) {
            mender.listing.found[index] = file;
        } else {
            continue;
        }
        mender.mended(MendedKind::Link, &at, &end);
    }
    Ok(())
}
/// Whether a path is really this part of a repository. In a hostile directory a link may lead to any other file.
fn is_part(path: &Path, part: &[u8]) -> bool {
    let depth = part.split(|b| *b == b'/').count();
    let Some(folder) = path.ancestors().nth(depth) else { return false };
    folder.join(as_path(part)) == path
        && folder.join("objects").is_dir()
        && folder.join("refs").is_dir()
        && Top::open_without_links(folder).is_ok_and(|top| is_head(&top, b"HEAD"))
}

/// Parts of a repository that may be links. Scripts among the hooks may be links too.
const PARTS: [&[u8]; 15] = [
    b"config",
    b"hooks",
    b"index",
    b"info",
    b"logs",
    b"logs/refs",
    b"modules",
    b"objects",
    b"packed-refs",
    b"refs",
    b"reftable",
    b"remotes",
    b"rr-cache",
    b"shallow",
    b"svn",
];
