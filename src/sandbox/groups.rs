//! Control groups of a run.
//!
//! A process that makes a namespace of control groups may mount the groups below its own. There it may end or freeze the
//! processes in groups that its user may change. So a run that could change its caller's group is moved into a separate group.
//! If that fails, the run can make no such namespace.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::Pid;

/// Start of the name of a run's group. The id of the process that made it follows.
const NAME: &str = "pfimg-run-";

/// Number of groups to check. If none of them can be changed, it is assumed that a further one can.
const MAX_GROUPS: usize = 10_000;

/// The files of a group that move, end or freeze processes.
const POWERS: [&str; 5] = ["cgroup.procs", "tasks", "cgroup.kill", "cgroup.freeze", "freezer.state"];

/// Attempts to remove a group, and the pause between them: the kernel empties it shortly after its last process has ended.
const TRIES: usize = 20;
const APART: Duration = Duration::from_millis(5);

/// The group of this process in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlGroup {
    /// Its folder, if the hierarchy is mounted.
    pub folder: Option<PathBuf>,
    /// Whether the hierarchy is that of cgroup v2.
    pub unified: bool,
}

/// A mounted hierarchy, from `/proc/self/mountinfo`.
#[derive(Clone, Copy, Debug)]
pub struct Hierarchy<'a> {
    /// `cgroup` or `cgroup2`; others are ignored.
    pub fs_type: &'a str,
    /// Mount options, which include the controllers of a `cgroup`.
    pub options: &'a str,
    /// The group that is mounted.
    pub root: &'a Path,
    /// Its mountpoint.
    pub path: &'a Path,
}

/// Returns the groups that `/proc/self/cgroup` names.
pub fn control_groups(text: &str, mounted: &[Hierarchy]) -> Vec<ControlGroup> {
    let groups = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let unified = controllers.is_empty();
        let folder = mounted.iter().find_map(|mounted| {
            let is_meant = if unified {
                mounted.fs_type == "cgroup2"
            } else {
                let has = |controller| mounted.options.split(',').any(|option| option == controller);
                mounted.fs_type == "cgroup" && controllers.split(',').all(has)
            };
            let below = Path::new(path).strip_prefix(mounted.root).ok().filter(|_| is_meant)?;
            Some(below.components().fold(mounted.path.to_owned(), |path, name| path.join(name)))
        });
        Some(ControlGroup { folder, unified })
    });
    groups.collect()
}

/// The control group of a run. Dropping it removes the group.
pub(super) struct Groups {
    own: Option<PathBuf>,
    /// Whether the run may make namespaces of groups once it is in its own group.
    free: bool,
}

impl Groups {
    /// Makes a group for the run if it needs one.
    pub(super) fn prepare(groups: &[ControlGroup]) -> Self {
        let mut this = Self { own: None, free: true };
        for group in groups {
            match &group.folder {
                Some(folder) if !can_change(folder, &mut MAX_GROUPS.clone()) => {}
                Some(folder) if group.unified => this.own = Some(folder.clone()),
                _ => this.free = false,
            }
        }
        let own = this.own.take().filter(|_| this.free);
        if let Some(parent) = own {
            sweep(&parent);
            let own = parent.join(format!("{NAME}{}", std::process::id()));
            this.free = fs::create_dir(&own).is_ok();
            this.own = this.free.then_some(own);
        }
        this
    }

    /// Moves a process into the group. Returns whether it may make namespaces of groups.
    pub(super) fn take_in(&self, process: Pid) -> bool {
        let moved =
            |own: &PathBuf| fs::write(own.join("cgroup.procs"), process.as_raw_nonzero().to_string()).is_ok();
        self.free && self.own.as_ref().is_none_or(moved)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let Some(own) = &self.own else { return };
        for _ in 0..TRIES {
            match remove(own) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(APART),
                _ => return,
            }
        }
    }
}

/// Removes a group and the groups in it.
fn remove(group: &Path) -> io::Result<()> {
    for inner in fs::read_dir(group)?.flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&inner.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes groups that killed runs left behind.
fn sweep(parent: &Path) {
    for group in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = group.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = remove(&group.path());
        }
    }
}

/// Whether this user may change a group or one in it. Checks modes instead of access(2): the group may also be mounted elsewhere
/// without write protection.
fn can_change(group: &Path, left: &mut usize) -> bool {
    let user = rustix::process::geteuid();
    let may_write = |path: &Path| {
        fs::metadata(path).is_ok_and(|metadata| {
            metadata.uid() == user.as_raw()
                || metadata.mode() & 0o002 != 0
                || metadata.mode() & 0o020 != 0 && is_in_group(metadata.gid())
        })
    };
    if user.is_root()
        || *left == 0
        || may_write(group)
        || POWERS.iter().any(|name| may_write(&group.join(name)))
    {
        return true;
    }
    *left -= 1;
    let Ok(inner) = fs::read_dir(group) else { return true };
    inner
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .any(|entry| can_change(&entry.path(), left))
}

fn is_in_group(group: u32) -> bool {
    rustix::process::getegid().as_raw() == group
        || rustix::process::getgroups().is_ok_and(|groups| groups.iter().any(|own| own.as_raw() == group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_groups_are_found_in_both_versions() {
        let mounted = |fs_type, options, root: &'static str, path: &'static str| Hierarchy {
            fs_type,
            options,
            root: Path::new(root),
            path: Path::new(path),
        };
        let all = [
            mounted("tmpfs", "rw", "/", "/sys/fs/cgroup"),
            mounted("cgroup", "rw,cpu,cpuacct", "/", "/c/cpu"),
            mounted("cgroup2", "rw", "/box", "/c/unified"),
        ];
        let group =
            |folder: Option<&str>, unified| ControlGroup { folder: folder.map(PathBuf::from), unified };
        assert_eq!(
            control_groups("4:cpu,cpuacct:/\n3:pids:/a\n0::/box/user/a:b\nodd\n", &all),
            [group(Some("/c/cpu"), false), group(None, false), group(Some("/c/unified/user/a:b"), true)]
        );
        assert_eq!(control_groups("0::/other\n", &all), [group(None, true)]);
    }

    #[test]
    fn a_group_that_is_not_mounted_or_cannot_be_made_gives_no_namespaces() {
        let process = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        let missing = ControlGroup { folder: None, unified: true };
        assert!(!Groups::prepare(&[missing]).take_in(process));
        assert!(Groups::prepare(&[]).take_in(process));
        let dir = tempfile::tempdir().unwrap();
        let old = ControlGroup { folder: Some(dir.path().to_owned()), unified: false };
        assert!(!Groups::prepare(&[old]).take_in(process));
        let own = ControlGroup { folder: Some(dir.path().join("none")), unified: true };
        assert!(!Groups::prepare(&[own]).take_in(process));
    }

    #[test]
    fn a_run_has_its_own_group_which_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("{NAME}4194305"));
        fs::create_dir_all(left.join("inner")).unwrap();
        let group = ControlGroup { folder: Some(dir.path().to_owned()), unified: true };
        let groups = Groups::prepare(&[group]);
        let own = dir.path().join(format!("{NAME}{}", std::process::id()));
        assert!(own.is_dir() && !left.exists());
        drop(groups);
        assert!(!own.exists());
    }
}
