//! The cache's folder: closed to others, and marked with a `CACHEDIR.TAG`. The mark tells programs that copy
//! data (`tar --exclude-caches`, backups, an import) to skip the folder.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::Sharing;

/// The mark's name in a cache's folder.
pub(crate) const MARK: &str = "CACHEDIR.TAG";

/// The mark's text. The first line is the standard's, the second identifies caches of pfimg.
const TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by pfimg.\n\
    # See https://bford.info/cachedir/ for what that means.\n";

/// The part of a mark that identifies its program.
const TELLING: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag created by pfimg.";

/// Names that pfimg makes in a cache's folder, apart from the folders of two hex digits.
const OWN: [&str; 4] = [MARK, "packs", "imports", "times"];

/// Bytes of a mark that [`is_ours`] looks at.
pub(crate) const MARK_BYTES: usize = TELLING.len();

/// Whether a mark with this beginning is pfimg's.
pub(crate) fn is_ours(mark: &[u8]) -> bool {
    mark.starts_with(TELLING.as_bytes())
}

/// Makes a cache's folder and those above it, each closed to others, and marks it. An existing folder keeps
/// its mode.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    if let Some(above) = dir.parent() {
        Sharing::Private.create_dir_all(above)?;
    }
    Sharing::Private.create_dir_all(dir)?;
    mark(dir);
    Ok(())
}

/// Makes a folder in a cache's folder, and the cache's folder if it is missing.
pub(crate) fn make_inside(cache: &Path, folder: &Path) -> io::Result<()> {
    if !cache.is_dir() {
        make(cache)?;
    }
    Sharing::Private.create_dir_all(folder)
}

/// Marks a cache's folder, unless others may write there or it holds other files: the folder may have another
/// use.
pub(super) fn mark(dir: &Path) {
    let marked = || {
        let folder = fs::symlink_metadata(dir)?;
        let private = folder.uid() == rustix::process::geteuid().as_raw() && folder.mode() & 0o022 == 0;
        if !folder.is_dir() || !private {
            return Ok(());
        }
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let name = name.to_str().unwrap_or_default();
            let is_shard = name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if name == MARK || !(is_shard || OWN.contains(&name)) {
                return Ok(());
            }
        }
        Sharing::Private.create_new(&dir.join(MARK))?.write_all(TEXT.as_bytes())
    };
    if let Err(error) = marked() {
        tracing::debug!("cannot mark {} as a cache: {error}", dir.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_that_is_made_for_a_cache_is_closed_to_others_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("new/pfimg");
        make_inside(&cache, &cache.join("packs")).unwrap();
        let mark = fs::read(cache.join(MARK)).unwrap();
        assert!(is_ours(&mark) && is_ours(&mark[..MARK_BYTES]) && !is_ours(&mark[..MARK_BYTES - 1]));
        assert!(cache.join("packs").is_dir());
        for path in [&cache, &cache.join("packs"), &dir.path().join("new")] {
            assert_eq!(
                fs::metadata(path).unwrap().permissions().mode() & 0o7777,
                0o700,
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn a_folder_that_holds_anything_else_or_that_others_may_write_is_not_marked() {
        let dir = tempfile::tempdir().unwrap();
        let is_marked = |before: &dyn Fn(&Path)| {
            let cache = tempfile::tempdir_in(dir.path()).unwrap();
            before(cache.path());
            make(cache.path()).unwrap();
            cache.path().join(MARK).exists()
        };
        let mode =
            |bits| move |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
        assert!(is_marked(&|_| ()));
        // A mark of an earlier version.
        assert!(is_marked(&|path| {
            for name in ["packs", "imports", "0f"] {
                fs::create_dir(path.join(name)).unwrap();
            }
        }));
        assert!(!is_marked(&|path| fs::write(path.join("letter"), "dear").unwrap()));
        assert!(!is_marked(&mode(0o1777)) && !is_marked(&mode(0o770)));
    }
}
