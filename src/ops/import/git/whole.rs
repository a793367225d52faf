//! Replaces a `.git` file by the repository that it leads to.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::super::importing::Standing;
use super::super::mended::MendedKind;
use super::super::source::{read, shown};
use super::super::ties::{TieKind, resolved, split, tie};
use super::super::walk::{Found, joined};
use super::mender::{MAX_FILE, Members, Mender, as_path, canonical, copy_file, is_at_or_below, is_head};
use crate::error::Result;
use crate::layers::world::Kind;
use crate::mount::reach::Top;
use crate::sync::Mutex;

/// Files that all worktrees of a repository share.
const SHARED: [&[u8]; 14] = [
    b"branches",
    b"common",
    b"config",
    b"description",
    b"hooks",
    b"info",
    b"logs",
    b"lost-found",
    b"objects",
    b"packed-refs",
    b"refs",
    b"remotes",
    b"rr-cache",
    b"shallow",
];

/// Shared files of other tools.
const SHARED_BY_TOOLS: [&[u8]; 4] = [b"annex", b"lfs", b"reftable", b"svn"];

/// Files that each worktree has for itself, apart from references such as `ORIG_HEAD`.
const OWN: [&[u8]; 10] = [
    b"commondir",
    b"config.worktree",
    b"gitdir",
    b"index",
    b"locked",
    b"modules",
    b"rebase-apply",
    b"rebase-merge",
    b"sequencer",
    b"worktrees",
];

/// Paths in shared directories that each worktree has for itself.
const OWN_BELOW: [&[u8]; 8] = [
    b"info/sparse-checkout",
    b"logs/HEAD",
    b"logs/refs/bisect",
    b"logs/refs/rewritten",
    b"logs/refs/worktree",
    b"refs/bisect",
    b"refs/rewritten",
    b"refs/worktree",
];

/// The directory of a work tree's state, and the directory that all work trees share. They may be the same.
struct GitDir {
    own: PathBuf,
    common: PathBuf,
}

/// The target of a `.git` file or link.
enum Leads {
    /// A repository of the image, by a path that is right there too. Or the file is not one of git's.
    Right,
    /// A path that does not exist.
    Nowhere(PathBuf),
    /// A file or directory that pfimg cannot add as a repository.
    Odd(PathBuf),
    To(GitDir),
}

/// Adds the repositories that `.git` files and links lead to.
pub(super) fn git_files(mender: &mut Mender<'_>) -> Result<()> {
    let found = &mender.listing.found;
    let is_git = |found: &Found| {
        split(&found.path).1 == b".git"
            && match found.meta.kind {
                Kind::File | Kind::Symlink => true,
                // A copy of the directory of a worktree's state.
                Kind::Dir => mender.top().stat(&joined(&found.path, b"commondir")).is_ok(),
                _ => false,
            }
    };
    let files: Vec<usize> = (0..found.len()).filter(|at| is_git(&found[*at])).collect();
    if files.is_empty() {
        return Ok(());
    }
    let repositories = Members::of(found).repositories(mender.top(), found);
    let repositories = repositories.into_iter().collect();
    let mut plans = Vec::new();
    for index in files {
        let path = mender.listing.found[index].path.clone();
        let found = mender.listing.found[index].clone();
        match leads(mender, &found, &repositories) {
            Leads::Right => {}
            Leads::Nowhere(target) => mender.ties.push(tie(TieKind::GitFile, &path, &target)),
            Leads::Odd(target) => {
                mender.ties.push(tie(TieKind::GitLeftOut, &path, &target));
                mender.dropped.push(path);
            }
            Leads::To(git_dir) => plans.push((index, git_dir)),
        }
    }
    let taken: HashSet<PathBuf> = plans.iter().map(|(_, git_dir)| git_dir.own.clone()).collect();
    for (index, git_dir) in plans {
        take_in(mender, index, &git_dir, &taken)?;
    }
    Ok(())
}

fn leads(mender: &mut Mender<'_>, found: &Found, repositories: &HashSet<Vec<u8>>) -> Leads {
    let folder = mender.top().shown(split(&found.path).0);
    let (written, is_link) = if found.meta.kind == Kind::Dir {
        (b".git".to_vec(), false)
    } else if found.meta.kind == Kind::Symlink {
        let Ok(target) = mender.top().link(&found.path) else { return Leads::Right };
        let Some(end) = canonical(&folder.join(as_path(&target))) else {
            return Leads::Nowhere(resolved(&folder, as_path(&target)));
        };
        if end.is_dir() {
            (target, true)
        } else {
            // The link leads to a `.git` file.
            let text = Top::open(end.parent().unwrap_or(&end))
                .and_then(|top| read(&top, end.file_name().unwrap_or_default().as_encoded_bytes(), MAX_FILE));
            match text.ok().flatten().as_deref().and_then(git_file) {
                Some(to) => (to.to_vec(), true),
                None => return Leads::Right,
            }
        }
    } else {
        match found.text(mender.top(), MAX_FILE).as_deref().and_then(git_file) {
            Some(to) => (to.to_vec(), false),
            None => return Leads::Right,
        }
    };
    let written = as_path(&written);
    let target = resolved(&folder, written);
    let Some(own) = canonical(&folder.join(written)) else { return Leads::Nowhere(target) };
    let Some(git_dir) = GitDir::at(own) else { return Leads::Odd(target) };
    let inside = git_dir.own.strip_prefix(mender.top().path()).ok();
    let inside = inside.map(|path| path.as_os_str().as_encoded_bytes());
    let is_right = written.is_relative()
        && git_dir.own == git_dir.common
        && mender.place.holds(&target)
        // A link may lead to its target through other links.
        && (!is_link || target == git_dir.own)
        && inside.is_some_and(|path| {
            let in_worktrees = |folder: &Vec<u8>| {
                path != &**folder && is_at_or_below(path, &joined(folder, b"worktrees"))
            };
            repositories.contains(path) && !repositories.iter().any(in_worktrees)
        });
    if is_right {
        Leads::Right
    } else if mender.may_take(&git_dir.own) && mender.may_take(&git_dir.common) {
        Leads::To(git_dir)
    } else {
        Leads::Odd(target)
    }
}

/// Replaces a `.git` file by the repository that it leads to. Repositories in `taken` are added at their own places.
fn take_in(mender: &mut Mender<'_>, index: usize, git_dir: &GitDir, taken: &HashSet<PathBuf>) -> Result<()> {
    let at = mender.listing.found[index].path.clone();
    let GitDir { own, common } = git_dir;
    let mut all: BTreeMap<Vec<u8>, Found> = BTreeMap::new();
    let is_taken = |folder: &Path, path: &[u8]| {
        path.starts_with(b"modules/") && taken.contains(&folder.join(as_path(path)))
    };
    let is_worktree = own != common;
    if is_worktree {
        let unknown = Mutex::new(BTreeSet::new());
        let is_shared = |path: &[u8]| is_shared(common, path, &unknown);
        let copied = mender.copy(&at, common, &is_shared)?;
        all.extend(copied.into_iter().map(|found| (found.path.clone(), found)));
        let unknown = unknown.into_inner();
        if !unknown.is_empty() {
            let names = unknown.into_iter().collect::<Vec<_>>().join(", ");
            mender.importing.report(format!("{} is without {names} of {}", shown(&at), common.display()));
        }
    }
    let wanted = |path: &[u8]| {
        let is_mark = is_worktree && [&b"commondir"[..], b"gitdir", b"locked"].contains(&path);
        !is_mark && path != b"worktrees" && !is_lock(path) && !is_taken(own, path)
    };
    let copied = mender.copy(&at, own, &wanted)?;
    all.extend(copied.into_iter().map(|found| (found.path.clone(), found)));
    if let Some(standing) = mender.importing.special.standing.as_ref().filter(|_| at == b".git") {
        stand(&mut all, standing);
    }
    if mender.listing.found[index].meta.kind == Kind::Dir {
        mender.replaced.push(at.clone());
    }
    if let Some(itself) = all.remove(&at) {
        mender.listing.found[index] = itself;
    }
    mender.listing.found.extend(all.into_values());
    let kind = if is_worktree { MendedKind::Worktree } else { MendedKind::GitFile };
    mender.mended(kind, &at, common);
    mender.whole.insert(at);
    Ok(())
}
/// Gives a repository another state, and removes traces of unfinished operations.
fn stand(all: &mut BTreeMap<Vec<u8>, Found>, standing: &Standing) {
    let is_state = |path: &[u8]| {
        let name = path.strip_prefix(b".git/").unwrap_or_default();
        let first = name.split(|b| *b == b'/').next().unwrap_or_default();
        name == b"index"
            || name != b"HEAD" && is_reference(name)
            || [&b"rebase-apply"[..], b"rebase-merge", b"sequencer"].contains(&first)
    };
    all.retain(|path, _| !is_state(path));
    if let Some(head) = all.get_mut(&b".git/HEAD"[..]) {
        head.meta.kind = Kind::File;
        head.make(standing.head.clone());
    }
    let index = copy_file(b".git/index", &standing.index);
    all.extend(index.map(|index| (index.path.clone(), index)));
}

impl GitDir {
    /// Returns the repository at a path without links. Returns none if there is none that can be added.
    fn at(own: PathBuf) -> Option<Self> {
        let top = Top::open_without_links(&own).ok()?;
        let common = match read(&top, b"commondir", MAX_FILE) {
            Ok(text) => canonical(&own.join(as_path(text?.trim_ascii_end())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => own.clone(),
            Err(_) => return None,
        };
        let has_table = common.join("reftable").exists();
        // Refuses a worktree with a reftable, since its references would have to be written into the table.
        let is_sound = is_head(&top, b"HEAD")
            && common.join("objects").is_dir()
            && (common.join("refs").is_dir() || has_table)
            && !(has_table && own != common);
        is_sound.then_some(Self { own, common })
    }
}

/// Whether the image of a worktree gets this path of the directory that all worktrees share. Adds names that git does not use to
/// `unknown`.
fn is_shared(common: &Path, path: &[u8], unknown: &Mutex<BTreeSet<String>>) -> bool {
    let first = path.split(|b| *b == b'/').next().unwrap_or_default();
    let is_top = first.len() == path.len();
    if is_lock(path) || OWN_BELOW.contains(&path) {
        return false;
    }
    // Paths below a refused name are never asked for.
    if !is_top || SHARED.contains(&first) || SHARED_BY_TOOLS.contains(&first) {
        return true;
    }
    let is_own = OWN.contains(&first)
        || is_reference(first)
        || first.starts_with(b"index.")
        || first.starts_with(b"sharedindex.")
        || first.starts_with(b"fsmonitor--daemon");
    if is_own {
        return false;
    }
    // The directory of a bare repository may also contain its worktrees and other files.
    if common.join(as_path(path)).join(".git").exists() {
        return false;
    }
    let is_wanted = common.ends_with(".git");
    if !is_wanted {
        unknown.lock().insert(shown(first));
    }
    is_wanted
}

/// Whether a name is that of a reference at the top of a repository, such as `HEAD` and `MERGE_HEAD`, or of a message.
fn is_reference(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_uppercase() || *b == b'_' || *b == b'-')
}

/// Whether a path is the lock of a program that is working on the repository. No reference has such a name.
fn is_lock(path: &[u8]) -> bool {
    let (folder, name) = path.split_at(path.iter().position(|b| *b == b'/').unwrap_or(0));
    path == b"gc.pid"
        || name.ends_with(b".lock") && [&b""[..], b"info", b"logs", b"objects", b"refs"].contains(&folder)
}

/// Returns the path that a `.git` file names.
fn git_file(text: &[u8]) -> Option<&[u8]> {
    let target = text.strip_prefix(b"gitdir:")?;
    let target = target.strip_prefix(b" ").unwrap_or(target);
    let end = target.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |at| at + 1);
    (end > 0).then_some(&target[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_file_names_its_repository() {
        assert_eq!(git_file(b"gitdir: ../.git/modules/sub\n"), Some(&b"../.git/modules/sub"[..]));
        assert_eq!(git_file(b"gitdir: /a b \r\n\n"), Some(&b"/a b "[..]));
        assert_eq!((git_file(b"gitdir:\n"), git_file(b"gitdir: "), git_file(b"other")), (None, None, None));
    }

    #[test]
    fn a_worktree_takes_the_common_files_of_a_shared_git_directory() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = Mutex::default();
        for (common, tool) in [("x/.git", true), ("x.git", false)] {
            let common = dir.path().join(common);
            std::fs::create_dir_all(common.join("main/.git")).unwrap();
            let shared = |path: &str| is_shared(&common, path.as_bytes(), &unknown);
            for path in [
                "config",
                "refs/heads/main",
                "logs/refs/heads/x",
                "info/exclude",
                "lfs",
                "lfs/a.lock",
                "objects/pack",
            ] {
                assert!(shared(path), "{path}");
            }
            for path in [
                "HEAD",
                "ORIG_HEAD",
                "index",
                "modules",
                "worktrees",
                "logs/HEAD",
                "refs/bisect",
                "config.lock",
                "refs/heads/x.lock",
                "main",
            ] {
                assert!(!shared(path), "{path}");
            }
            assert_eq!(shared("tool"), tool);
        }
        assert_eq!(unknown.into_inner(), ["tool".to_owned()].into());
    }
}
