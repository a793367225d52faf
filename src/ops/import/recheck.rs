//! Finds quickly that nothing in a directory has changed since its last import: one stat of each file, no listing.
//!
//! A name that appears in a directory, or goes from it, changes the directory's own times. So the names are the same if the
//! directories are. This holds for the filesystems in [`LOCAL`]. On others, an import lists the directory.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, fstatfs, statat};

use super::index::{InOrder, Record, parent_and_name};
use super::progress::Progress;
use super::walk::{Meta, mounts_below};
use crate::digest::Digest;
use crate::layers::ignore::Ignore;
use crate::mount::reach::Top;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::util::parallel::parallel_for_each;

/// Filesystems that change a directory's times with its names, by their type in `statfs` (linux/magic.h): ext2 to ext4, xfs, btrfs,
/// tmpfs, overlayfs, f2fs, bcachefs, zfs. Network filesystems may answer from a cache.
const LOCAL: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1];

/// Records that one thread checks before it takes more.
const AT_ONCE: usize = 256;

/// Identifies the rules by which an import of a directory leaves files out.
pub(super) fn limits(dir: &Path, ignore: &Ignore, one_file_system: bool, own: &[PathBuf]) -> Digest {
    let own = own.iter().filter_map(|path| fs::canonicalize(path).ok());
    let mut own: Vec<_> = own.filter(|path| path.starts_with(dir)).collect();
    own.sort();
    own.dedup();
    let mut rules = ignore.texts();
    rules.sort();
    let text = format!("one filesystem: {one_file_system}\nown: {own:?}\nrules: {rules:?}\n");
    Digest::of(text.as_bytes())
}

/// The number of files and their bytes.
pub(super) type Totals = (u64, u64);

/// Returns the totals of the files below a directory if an import would find just those of the index, whose limits must be those of
/// the import. Returns nothing if something changed, or if only a listing can tell.
pub(super) fn unchanged(
    index: &InOrder<'_>,
    top: &Top,
    root: &Meta,
    jobs: NonZeroUsize,
    progress: &dyn Progress,
) -> Option<Totals> {
    let kind = fstatfs(top.folder(b"").ok()?).ok()?.f_type as u64;
    if !LOCAL.contains(&kind) || !mounts_below(top.path()).is_empty() {
        return None;
    }
    let (first, below) = index.records.split_first()?;
    if !first.0.is_empty() || !index.is_unchanged(&first.1, &root.stamp) {
        return None;
    }
    // A piece may begin within a directory. It then opens the directory again.
    let pieces: Vec<_> = below.chunks(AT_ONCE).collect();
    let has_changed = AtomicBool::new(false);
    parallel_for_each(jobs, &pieces, &|piece| {
        let of_one = piece.chunk_by(|(a, _), (b, _)| parent_and_name(a).0 == parent_and_name(b).0);
        for records in of_one {
            if has_changed.load(Ordering::Relaxed) {
                return;
            }
            if !are_unchanged(top, index, records, root.stamp.dev) {
                has_changed.store(true, Ordering::Relaxed);
            }
        }
        progress.found(piece.len() as u64);
    });
    if has_changed.load(Ordering::Relaxed) {
        return None;
    }
    let files = below.iter().filter(|(_, record)| record.content.is_some());
    Some(files.fold((0, 0), |(files, bytes), (_, record)| (files + 1, bytes + record.stamp.size)))
}

/// Whether the files of one directory are those of their records, on the filesystem of the directory.
fn are_unchanged(top: &Top, index: &InOrder<'_>, records: &[(&[u8], Record)], dev: u64) -> bool {
    let Some((path, _)) = records.first() else { return true };
    let Ok(directory) = top.folder(parent_and_name(path).0.unwrap_or_default()) else { return false };
    records.iter().all(|(path, record)| {
        statat(&directory, parent_and_name(path).1, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            let now = Meta::of(&stat).stamp;
            now.dev == dev && index.is_unchanged(record, &now)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, Instant};

    use super::super::index_file::index_name;
    use super::super::make::import;
    use super::super::options::Options;
    use super::*;
    use crate::audit::Log;
    use crate::store::Store;

    struct Imported {
        temp: tempfile::TempDir,
        store: Store,
        options: Options,
    }

    impl Imported {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::create(temp.path().join("store")).unwrap();
            let dir = temp.path().join("dir");
            for directory in ["a/b/c", "a-b", "empty"] {
                fs::create_dir_all(dir.join(directory)).unwrap();
            }
            for n in 0..600 {
                fs::write(dir.join(["", "a", "a/b", "a/b/c", "a-b"][n % 5]).join(format!("f{n}")), "12")
                    .unwrap();
            }
            symlink("f0", dir.join("a/link")).unwrap();
            let index_dir = Some(temp.path().join("index"));
            Self { options: Options { index_dir, ..Options::new(dir, Log::off()) }, temp, store }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.options.dir.join(name)
        }

        fn unchanged(&self) -> Option<Totals> {
            let options = &self.options;
            let dir = fs::canonicalize(&options.dir).unwrap();
            let top = Top::open(&dir).unwrap();
            let root = Meta::of(&top.stat(b"").unwrap());
            let index = options.index_dir.as_ref().unwrap().join(index_name(&self.store, &dir));
            let bytes = fs::read(index).unwrap();
            let index = InOrder::parse(&bytes).unwrap();
            let own = [options.own.as_slice(), &[self.store.root().to_owned()]].concat();
            let limits = limits(&dir, &options.ignore, options.one_file_system, &own);
            let same = index.limits == Some(limits);
            same.then(|| unchanged(&index, &top, &root, options.jobs, &())).flatten()
        }

        /// Imports the directory until all its times are older than the index.
        fn settle(&self) -> Totals {
            let started = Instant::now();
            loop {
                import(&self.store, &self.options, &()).unwrap();
                if let Some(totals) = self.unchanged() {
                    return totals;
                }
                assert!(
                    started.elapsed() < Duration::from_secs(30),
                    "the directory never counts as unchanged"
                );
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn every_change_below_a_directory_is_noticed() {
        let directory = Imported::new();
        let path = |name: &str| directory.path(name);
        let times = |name: &str| fs::metadata(path(name)).unwrap().modified().unwrap();
        assert_eq!(directory.settle(), (600, 1200));
        let changes: [(&str, &dyn Fn()); 12] = [
            ("the same length and time", &|| {
                let time = times("a/f1");
                fs::write(path("a/f1"), "34").unwrap();
                fs::File::options().write(true).open(path("a/f1")).unwrap().set_modified(time).unwrap();
            }),
            ("a new file deep down", &|| fs::write(path("a/b/c/new"), "").unwrap()),
            ("a new file, and the directory's old time", &|| {
                let time = times("a-b");
                fs::write(path("a-b/new"), "").unwrap();
                fs::File::open(path("a-b")).unwrap().set_modified(time).unwrap();
            }),
            ("a file in an empty directory", &|| fs::write(path("empty/new"), "").unwrap()),
            ("a file at the top", &|| fs::write(path("new"), "").unwrap()),
            ("a removed file", &|| fs::remove_file(path("a/f6")).unwrap()),
            ("a mode", &|| fs::set_permissions(path("a/b/f2"), fs::Permissions::from_mode(0o600)).unwrap()),
            ("a mode of the top", &|| {
                fs::set_permissions(path(""), fs::Permissions::from_mode(0o700)).unwrap();
            }),
            ("another name", &|| fs::rename(path("a/f11"), path("a/g11")).unwrap()),
            ("a file that took another's name", &|| fs::rename(path("a/g11"), path("a/f16")).unwrap()),
            ("a directory that became a link to its copy", &|| {
                fs::rename(path("a-b"), directory.temp.path().join("moved")).unwrap();
                symlink(directory.temp.path().join("moved"), path("a-b")).unwrap();
            }),
            ("a removed tree", &|| fs::remove_dir_all(path("a")).unwrap()),
        ];
        for (what, change) in changes {
            change();
            assert_eq!(directory.unchanged(), None, "{what}");
            directory.settle();
        }
    }

    #[test]
    fn other_limits_and_a_repository_that_depends_on_another_directory_need_a_listing() {
        let mut directory = Imported::new();
        directory.settle();
        directory.options.ignore.add("f2*").unwrap();
        assert_eq!(directory.unchanged(), None, "a rule");
        directory.settle();
        directory.options.one_file_system = true;
        assert_eq!(directory.unchanged(), None, "one filesystem");
        directory.settle();
        directory.options.own.push(directory.path("a/b"));
        assert_eq!(directory.unchanged(), None, "a directory of this program");
        // The records alone do not tell that the import did not enter it.
        import(&directory.store, &directory.options, &()).unwrap();
        let index =
            fs::read_dir(directory.options.index_dir.as_ref().unwrap()).unwrap().next().unwrap().unwrap();
        assert_eq!(InOrder::parse(&fs::read(index.path()).unwrap()).unwrap().limits, None);
    }
}
