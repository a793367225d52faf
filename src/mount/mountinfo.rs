//! Reads which filesystems are mounted where: `/proc/self/mountinfo`, proc(5).

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The type under which this program's mounts are listed.
pub(crate) const FS_TYPE: &str = "fuse.pfimg";

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The kernel's number for this mount.
    pub id: u64,
    /// The number of the mount that it lies on.
    pub parent: u64,
    /// Its mountpoint.
    pub path: PathBuf,
    /// The folder of its filesystem that is mounted.
    pub root: PathBuf,
    /// Device, as `major:minor`. Distinguishes this mount from others at the same path.
    pub device: String,
    /// Type of the filesystem.
    pub fs_type: String,
    /// The source of the mount: the store's folder, for a mount of this program.
    pub source: PathBuf,
    /// Options of the mount and of the filesystem, separated by commas.
    pub options: String,
}

impl Mounted {
    /// Whether it is a mount of this program.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// The id of the user who mounted it, for a mount of this program.
    pub(crate) fn user(&self) -> Option<u32> {
        self.options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
    }
}

/// Returns all mounts that this process sees, in the order in which they were made. The last of several at one path shows.
pub fn mounts() -> Result<Vec<Mounted>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| Error::io(e, format!("cannot read {path}")))?;
    Ok(parse(&text))
}

/// Returns other places where a folder's files, or some of them, are mounted. Its path must contain no links.
pub fn aliases(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(aliases_among(&mounts()?, folder))
}

fn aliases_among(mounts: &[Mounted], folder: &Path) -> Vec<PathBuf> {
    let Some(home) = shown_at(mounts, folder) else { return Vec::new() };
    let Ok(below) = folder.strip_prefix(&home.path) else { return Vec::new() };
    let inside = home.root.join(below);
    let others = mounts.iter().filter(|other| other.id != home.id && other.device == home.device);
    others
        .filter_map(|mounted| match inside.strip_prefix(&mounted.root) {
            Ok(below) => Some(mounted.path.join(below)),
            Err(_) => mounted.root.starts_with(&inside).then(|| mounted.path.clone()),
        })
        .filter(|path| path != folder)
        .collect()
}

/// Returns the mount at a mountpoint, if there is one.
pub(crate) fn mounted_at(path: &Path) -> Result<Option<Mounted>> {
    Ok(mounts()?.into_iter().rfind(|mounted| mounted.path == path))
}

/// Whether a mount that was unmounted here still exists in another mount namespace: that of a container or of a `pfimg run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Elsewhere {
    Nowhere,
    /// Only below other mounts, so that no program can reach it.
    Covered,
    /// A program may use it.
    Seen,
}

/// Looks for a mount in other mount namespaces, as far as this user may inspect their processes.
pub(crate) fn elsewhere(device: &str) -> Elsewhere {
    namespaces().map(|(_, mounts)| seen_among(&mounts, device)).max().unwrap_or(Elsewhere::Nowhere)
}

fn seen_among(mounts: &[Mounted], device: &str) -> Elsewhere {
    let ours = mounts.iter().filter(|mounted| mounted.is_ours() && mounted.device == device);
    let seen = |mounted: &Mounted| match shown_at(mounts, &mounted.path) {
        Some(shown) if shown.id != mounted.id => Elsewhere::Covered,
        _ => Elsewhere::Seen,
    };
    ours.map(seen).max().unwrap_or(Elsewhere::Nowhere)
}

/// Returns the mount that shows at a path. Follows the mounts on the way from the root, each on top of the one before. The order
/// of the list cannot be used: it is that of creation, and a mount may be moved into place later.
fn shown_at<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    let is_root =
        |mounted: &&Mounted| mounts.iter().all(|other| other.id != mounted.parent || other.id == mounted.id);
    let mut shown = mounts.iter().find(is_root)?;
    // Each step leads to another mount, so there are no more steps than mounts.
    for _ in mounts {
        let on_the_way =
            |next: &&Mounted| next.parent == shown.id && next.id != shown.id && path.starts_with(&next.path);
        let Some(next) = mounts.iter().filter(on_the_way).min_by_key(|next| next.path.components().count())
        else {
            break;
        };
        shown = next;
    }
    Some(shown)
}

/// Whether a `pfimg run` is confined to this fork of the store at `mountpoint`.
pub fn runs_in(mountpoint: &Path, fork: &str) -> bool {
    let Ok(Some(here)) = mounted_at(mountpoint) else { return false };
    let folder = Path::new("/forks").join(fork);
    namespaces().any(|(_, mounts)| {
        mounts.iter().any(|other| other.is_ours() && other.device == here.device && other.root == folder)
    })
}

/// Returns the mounts of each mount namespace that has a process which this user may inspect, with that process's folder in
/// /proc.
fn namespaces() -> impl Iterator<Item = (PathBuf, Vec<Mounted>)> {
    let mut known = HashSet::new();
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |process| {
        let path = process.path();
        let namespace = fs::read_link(path.join("ns/mnt")).ok()?;
        if !known.insert(namespace) {
            return None;
        }
        let text = fs::read(path.join("mountinfo")).ok()?;
        Some((path, parse(&text)))
    })
}

/// Returns this program's mounts that show only in other mount namespaces, as far as this user may inspect their processes.
///
/// Each comes with the folder in /proc of a process that sees it. The mount's files can be read below that folder's `root`.
pub(crate) fn mounts_elsewhere() -> Result<Vec<(PathBuf, Mounted)>> {
    let mut known: HashSet<String> = mounts()?.into_iter().map(|mounted| mounted.device).collect();
    let mut found = Vec::new();
    for (process, mounts) in namespaces() {
        for mounted in mounts.iter().filter(|mounted| mounted.is_ours() && mounted.root == Path::new("/")) {
            let shows = shown_at(&mounts, &mounted.path).is_some_and(|shown| shown.id == mounted.id);
            if shows && known.insert(mounted.device.clone()) {
                found.push((process.clone(), mounted.clone()));
            }
        }
    }
    Ok(found)
}

/// Returns all mounts that a process sees, given its folder in /proc. Returns none if this user may not inspect it.
pub(crate) fn mounts_of(process: &Path) -> Vec<Mounted> {
    fs::read(process.join("mountinfo")).map(|text| parse(&text)).unwrap_or_default()
}

/// Returns the mount that contains a path without links, and the path inside its filesystem.
pub(crate) fn holding(path: &Path) -> Result<Option<(Mounted, PathBuf)>> {
    Ok(holding_among(&mounts()?, path).map(|(mounted, inside)| (mounted.clone(), inside)))
}

pub(crate) fn holding_among<'a>(mounts: &'a [Mounted], path: &Path) -> Option<(&'a Mounted, PathBuf)> {
    let mounted = shown_at(mounts, path)?;
    let below = path.strip_prefix(&mounted.path).ok()?;
    Some((mounted, mounted.root.join(below)))
}

/// Returns the mounts that show below a folder whose path contains no links.
pub(crate) fn below(folder: &Path) -> Result<Vec<Mounted>> {
    let mounts = mounts()?;
    let shows = |mounted: &&Mounted| {
        mounted.path != folder
            && mounted.path.starts_with(folder)
            && shown_at(&mounts, &mounted.path).is_some_and(|shown| shown.id == mounted.id)
    };
    Ok(mounts.iter().filter(shows).cloned().collect())
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-")?;
            let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
            let options = [*fields.get(5)?, *fields.get(dash + 3)?];
            Some(Mounted {
                id: text(fields.first()?).parse().ok()?,
                parent: text(fields.get(1)?).parse().ok()?,
                path: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
                root: PathBuf::from(OsString::from_vec(unescape(fields.get(3)?))),
                device: text(fields.get(2)?),
                fs_type: text(fields.get(dash + 1)?),
                source: PathBuf::from(OsString::from_vec(unescape(fields.get(dash + 2)?))),
                options: options.map(text).join(","),
            })
        })
        .collect()
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_escapes_and_optional_fields() {
        let text =
            b"36 35 98:0 / /a\\040b\\134c rw,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue\n\
            40 36 0:55 / /mnt rw,nosuid,nodev - fuse.pfimg /the\\040store rw,user_id=0\ngarbage\n\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].path, Path::new("/a b\\c"));
        assert!(!mounts[0].is_ours() && mounts[1].is_ours());
        assert_eq!(mounts[1].device, "0:55");
        assert_eq!(mounts[1].source, Path::new("/the store"));
        assert_eq!(mounts[1].options, "rw,nosuid,nodev,rw,user_id=0");
    }

    #[test]
    fn a_folder_is_found_wherever_it_is_mounted() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /data rw - ext4 /dev/b rw\n3 1 8:2 /stores /srv rw - ext4 /dev/b rw\n\
            4 1 8:2 /stores/mine/blobs /b rw - ext4 /dev/b rw\n5 1 8:2 /other /o rw - ext4 /dev/b rw\n6 1 8:1 /data /d rw - ext4 /dev/a rw\n";
        let mounts = parse(text);
        let found = |folder: &str| aliases_among(&mounts, Path::new(folder));
        assert_eq!(found("/data/stores/mine"), [Path::new("/srv/mine"), Path::new("/b")]);
        assert_eq!(found("/srv/mine"), [Path::new("/data/stores/mine"), Path::new("/b")]);
        assert_eq!(found("/home/me"), [] as [&Path; 0]);
        assert_eq!(aliases_among(&[], Path::new("/x")), [] as [&Path; 0]);
    }

    #[test]
    fn a_mount_below_others_is_covered() {
        let root = "1 0 8:1 / / rw - ext4 /dev/a rw\n";
        let ours = |id, on, path: &str| format!("{id} {on} 0:9 / {path} rw - fuse.pfimg /s rw\n");
        let other = |id, on, path: &str| format!("{id} {on} 0:5 / {path} rw - tmpfs tmpfs rw\n");
        let seen = |text: String| seen_among(&parse((root.to_owned() + &text).as_bytes()), "0:9");
        assert_eq!(seen(other(2, 1, "/a")), Elsewhere::Nowhere);
        assert_eq!(seen(ours(2, 1, "/a/b")), Elsewhere::Seen);
        assert_eq!(
            seen(ours(2, 1, "/a/b") + &other(3, 2, "/a/b/c") + &other(4, 1, "/a/bc")),
            Elsewhere::Seen
        );
        assert_eq!(seen(ours(2, 1, "/a/b") + &other(3, 2, "/a/b")), Elsewhere::Covered);
        assert_eq!(seen(ours(2, 1, "/a/b") + &other(3, 1, "/a")), Elsewhere::Covered);
        assert_eq!(seen(other(2, 1, "/a") + &ours(3, 2, "/a/b")), Elsewhere::Seen);
        // This mount was made before the one that it is moved into.
        let fork = ours(3, 5, "/a/b/forks/f");
        assert_eq!(
            seen(ours(2, 1, "/a/b") + &fork + &other(4, 1, "/a") + &other(5, 4, "/a/b")),
            Elsewhere::Seen
        );
        assert_eq!(shown_at(&[], Path::new("/")), None);
        let loops = parse(b"1 2 8:1 / / rw - ext4 /dev/a rw\n2 1 8:1 / / rw - ext4 /dev/a rw\n");
        assert_eq!(shown_at(&loops, Path::new("/")), None);
    }

    #[test]
    fn this_process_sees_a_root_mount() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}
