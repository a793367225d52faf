//! Keeps mounts and directories of this program out of imports.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::importing::Importing;
use super::walk::Closed;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo;

/// The most directories that were not entered and are named in messages.
const NAMED: usize = 20;

/// Refuses directories of a mount of this program, except the files of images and forks.
pub(super) fn refuse_mount(dir: &Path) -> Result<()> {
    let Ok(Some((mounted, inside))) = mountinfo::holding(dir) else { return Ok(()) };
    let names: Vec<_> = inside.iter().skip(1).collect();
    let is_list = names.first().is_none_or(|name| {
        names.len() == 1 && ["images", "forks", "agents", "tags", "work"].iter().any(|list| name == list)
            || *name == "agents"
            || *name == ".pfimg"
    });
    if !mounted.is_ours() || !is_list {
        return Ok(());
    }
    let what = format!("{} shows the images and forks of {}", dir.display(), mounted.source.display());
    Err(Error::new(ErrorKind::InvalidInput, what)
        .with_hint("name the files of one fork: forks/NAME/world/fs in the mount"))
}

/// Whether the directory lies in a mount of this program. Then an agent may have written its files.
pub(super) fn is_in_mount(importing: &Importing<'_>) -> bool {
    mountinfo::holding(importing.dir).is_ok_and(|held| held.is_some_and(|(mounted, _)| mounted.is_ours()))
}

/// Returns the directories that no image may contain: the store and the cache would grow while they are read.
pub(super) fn own_folders(importing: &Importing<'_>) -> HashSet<(u64, u64)> {
    let own = importing.options.own.iter().map(PathBuf::as_path);
    own.chain(importing.options.index_dir.as_deref())
        .chain([importing.store.root()])
        .filter_map(|dir| fs::metadata(dir).ok())
        .map(|m| (m.dev(), m.ino()))
        .collect()
}

/// Reports directories that were not entered.
pub(super) fn report_closed(importing: &Importing<'_>, closed: &BTreeSet<(Vec<u8>, Closed)>) {
    for (path, why) in closed.iter().take(NAMED) {
        let path = importing.top.shown(path);
        let path = path.display();
        importing.report(match why {
            Closed::Own => format!("{path} is left out: it is the store, or a cache or logs of pfimg"),
            Closed::Store(store) => {
                format!("{path} is imported as an empty directory: {} is mounted there", store.display())
            }
            Closed::Filesystem => {
                format!("{path} is imported as an empty directory: another filesystem is mounted there")
            }
        });
    }
    if closed.len() > NAMED {
        importing.report(format!("{} more directories are not entered", closed.len() - NAMED));
    }
}
