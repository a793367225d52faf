//! Makes the view of a command: the machine's files, read-only and partly hidden, with a fork in them.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change, move_mount, unmount,
};

use super::mounts::{protect, protect_tree, tree, write_protect};
use super::process::tell;
use super::ssh::Settings;
use super::{namespaces, sys};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::silent::mode_known;

/// The folder of the command's temporary files, which only it sees.
pub(super) const TMP: &str = "/tmp";

/// Devices that any program may expect, and that give no access to the machine.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that any program may expect in /dev.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What covers a path in the view.
enum Cover {
    /// An empty folder with this mode, writable or not.
    Empty { mode: u32, writable: bool },
    /// A folder or file that was there before, or is elsewhere.
    Shown(OwnedFd),
    /// The command's own terminals.
    Terminals,
}

/// The order of covers: a folder before the paths below it, and at the same path a hidden one before a shown one.
type Place = (usize, PathBuf, bool);

struct Plan {
    /// The covers, by path.
    covers: BTreeMap<Place, Cover>,
    /// Links to create in empty folders, and their targets.
    links: Vec<(PathBuf, PathBuf)>,
}

/// Parts of the machine that a view needs.
pub(super) struct Found {
    /// A private folder for sockets, which the view creates.
    pub(super) runtime: PathBuf,
    /// Sockets, and files that belong to them, that the command can reach.
    pub(super) sockets: Vec<PathBuf>,
    /// Settings files of `ssh` that must belong to the user.
    pub(super) settings: Vec<Settings>,
}

/// The view of a command: what it sees, and what it may write.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Where the store is mounted. Everything in it except the fork is hidden.
    pub mountpoint: PathBuf,
    /// The fork's name.
    pub fork: String,
    /// A further place where the fork's `world/fs` is shown, over the folder there: the path of its project.
    pub at: Option<PathBuf>,
    /// The folder below the fork's `world/fs` in which the command starts. If it does not exist, the command starts in the
    /// nearest existing folder above it.
    pub start: PathBuf,
    /// Further files, folders and devices that the command may write.
    pub write: Vec<PathBuf>,
    /// Paths in hidden folders that the command may read.
    pub read: Vec<PathBuf>,
    /// Further paths to hide. A hidden folder or file looks empty.
    pub hide: Vec<PathBuf>,
    /// Files and folders with credentials. They are hidden unless `write` or `read` names them.
    pub keys: Vec<PathBuf>,
    /// Variables with credentials that the command gets. If one names a socket, the command can reach it.
    pub variables: Vec<OsString>,
}

impl View {
    /// The fork's folder in the mount.
    pub(super) fn fork_folder(&self) -> PathBuf {
        self.mountpoint.join("forks").join(&self.fork)
    }

    /// The folder of the fork's files in the mount.
    pub fn work(&self) -> PathBuf {
        self.fork_folder().join("world/fs")
    }

    /// The folder in which the command finds the fork's files.
    pub(super) fn files(&self) -> PathBuf {
        self.at.clone().unwrap_or_else(|| self.work())
    }

    /// Returns the folder in which the command starts. Must be called in the finished view.
    pub(super) fn start_folder(&self) -> PathBuf {
        let files = self.files();
        // Joining an empty path would leave a slash at the end.
        let wanted = self.start.components().fold(files.clone(), |path, name| path.join(name));
        let start = wanted.ancestors().take_while(|path| **path != files).find(|path| path.is_dir());
        let start = start.map_or(files, Path::to_owned);
        if start != wanted {
            let (wanted, start) = (wanted.display(), start.display());
            tell(&format_args!(
                "{wanted} is not a directory of fork {:?}: the command starts in {start}",
                self.fork
            ));
        }
        start
    }

    /// The shorter path of the fork's files in the mount.
    fn shown_work(&self) -> PathBuf {
        self.mountpoint.join("work").join(&self.fork)
    }
}

/// Makes the view in the mount namespace of this process.
pub(super) fn make(view: &View, found: &Found) -> Result<()> {
    // Separates the mounts. Later changes here do not reach the machine, and later mounts there do not appear here, where they
    // would be writable.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| namespaces::explain(e.into(), "cannot separate mounts from those of the machine"))?;
    // The plan copies the mounts to show before they are hidden or write-protected.
    let plan = Plan::of(view, found)?;
    protect(CWD, Path::new("/"), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV, true)
        .map_err(|e| namespaces::explain(e, "cannot write-protect the machine's files"))?;
    for ((_, path, _), cover) in &plan.covers {
        match cover {
            Cover::Empty { mode, .. } => empty_folder(path, *mode),
            Cover::Shown(tree) => show(tree, path),
            Cover::Terminals => terminals(path),
        }
        .map_err(|e| Error::io(e, format!("cannot prepare {} for the command", path.display())))?;
    }
    for (path, target) in &plan.links {
        // Ignores errors: if another folder is shown in place of the empty one, it may already have the name.
        let _ = fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| symlink(target, path));
    }
    for ((_, path, _), cover) in &plan.covers {
        if matches!(cover, Cover::Empty { writable: false, .. }) && !plan.is_shown(path) {
            write_protect(path)
                .map_err(|e| Error::io(e, format!("cannot write-protect {}", path.display())))?;
        }
    }
    Ok(())
}

impl Plan {
    fn of(view: &View, found: &Found) -> Result<Self> {
        let mut plan = Self { covers: BTreeMap::new(), links: Vec::new() };
        let at = plan.files(view)?;
        // The first cover of a path counts. So the command's temporary folders stay writable, and the caller's options come before
        // the covers of the view itself.
        for tmp in [TMP, "/var/tmp"] {
            plan.empty(Path::new(tmp), 0o1777, true);
        }
        for path in &view.hide {
            let path = real(path)?;
            match at.as_deref().and_then(|at| path.strip_prefix(at).ok()) {
                // The fork already covers this path.
                Some(below) if below.as_os_str().is_empty() => {}
                Some(below) => plan.hide_like(&view.work().join(below), &path)?,
                None => plan.hide(path)?,
            }
        }
        for path in &view.read {
            let path = real(path)?;
            if at.as_ref() != Some(&path) {
                plan.read_only(&path, true)?;
            }
        }
        for path in &view.write {
            let path = real(path)?;
            if at.as_ref() == Some(&path) {
                let what = format!(
                    "{} is where the fork is shown, and cannot be written as a whole",
                    path.display()
                );
                return Err(Error::new(ErrorKind::InvalidInput, what)
                    .with_hint("name a directory in it, or show the fork elsewhere with --at"));
            }
            if plan.is_shown(&path) {
                let what = format!("options ask to show or hide {} and also to write it", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, what).with_hint("name it in one option only"));
            }
            let shown = tree(&path, true)?;
            plan.show(path, shown);
        }
        plan.devices()?;
        plan.services(&found.runtime)?;
        for path in &found.sockets {
            plan.socket(path)?;
        }
        plan.keys(view, at.as_deref())?;
        plan.settings(&found.settings)?;
        plan.empty(&view.mountpoint, 0o755, false);
        let fork = view.fork_folder();
        // Includes mounts in the fork's folder. These belong to the machine, so they stay read-only.
        let shown = tree(&fork, true)?;
        protect_tree(&shown, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
        sys::change_mount(shown.as_fd(), c"", (0, libc::MOUNT_ATTR_RDONLY), false)
            .map_err(|e| Error::io(e, format!("cannot show {}", fork.display())))?;
        plan.show(fork, shown);
        plan.links.push((view.shown_work(), Path::new("../forks").join(&view.fork).join("world/fs")));
        Ok(plan)
    }

    /// Shows the fork's files over its project, if the view asks for it. Returns that path without links.
    fn files(&mut self, view: &View) -> Result<Option<PathBuf>> {
        let Some(at) = &view.at else { return Ok(None) };
        let refused =
            |what: String| Error::new(ErrorKind::InvalidInput, what).with_hint("name a directory with --at");
        let at = real_place(at)?;
        let shown = at.display();
        for needed in [Path::new(TMP), Path::new("/var/tmp"), Path::new("/dev"), Path::new("/run")] {
            if fs::canonicalize(needed).is_ok_and(|needed| needed.starts_with(&at)) {
                let what =
                    format!("the fork cannot be shown at {shown}: every command needs {}", needed.display());
                return Err(refused(what));
            }
        }
        if view.mountpoint.starts_with(&at) || at.starts_with(&view.mountpoint) {
            let mountpoint = view.mountpoint.display();
            let what = format!("the fork cannot be shown at {shown}: its store is mounted at {mountpoint}");
            return Err(Error::new(ErrorKind::InvalidInput, what).with_hint(format!(
                "run `pfimg umount {mountpoint}`: `pfimg run` then mounts the store elsewhere"
            )));
        }
        let files = view.work();
        let tree = tree(&files, true)?;
        protect_tree(&tree, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
        sys::change_mount(tree.as_fd(), c"", (0, libc::MOUNT_ATTR_RDONLY), false)
            .map_err(|e| Error::io(e, format!("cannot show {}", files.display())))?;
        self.show(at.clone(), tree);
        Ok(Some(at))
    }

    /// Hides the machine's devices, except a few.
    fn devices(&mut self) -> Result<()> {
        let dev = Path::new("/dev");
        self.empty(dev, 0o755, false);
        for name in DEVICES {
            let path = dev.join(name);
            if path.exists() {
                let device = tree(&path, false)?;
                // Protects the mode and times of the device. Programs can still write to it.
                protect_tree(&device, libc::MOUNT_ATTR_RDONLY)?;
                self.show(path, device);
            }
        }
        // Programs find the caller's terminal by this name, since the command's own /dev/pts does not have it.
        if let Ok(terminal) = rustix::termios::ttyname(io::stdin(), Vec::new()) {
            let terminal = tree(Path::new(OsStr::from_bytes(terminal.as_bytes())), false)?;
            protect_tree(&terminal, libc::MOUNT_ATTR_RDONLY)?;
            self.show(dev.join("console"), terminal);
        }
        self.put(dev.join("shm"), Cover::Empty { mode: 0o1777, writable: true });
        self.put(dev.join("pts"), Cover::Terminals);
        self.links.extend(DEVICE_LINKS.map(|(name, target)| (dev.join(name), target.into())));
        Ok(())
    }

    /// Hides the sockets through which a command could control programs outside. Keeps the files for looking up host names.
    fn services(&mut self, runtime: &Path) -> Result<()> {
        self.put(runtime.to_owned(), Cover::Empty { mode: 0o700, writable: true });
        let run = Path::new("/run");
        if !run.is_dir() {
            return Ok(());
        }
        self.empty(run, 0o755, false);
        // Keeps links: on NixOS one leads to the system's programs.
        let entries = fs::read_dir(run).map_err(|e| Error::io(e, "cannot list /run"))?;
        for entry in entries.flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                self.links.push((entry.path(), target));
            }
        }
        let names = fs::canonicalize("/etc/resolv.conf").ok().filter(|path| path.starts_with(run));
        if let Some(folder) = names.as_deref().and_then(Path::parent).filter(|folder| *folder != run) {
            self.read_only(folder, false)?;
        }
        Ok(())
    }

    /// Shows a socket, or a file that belongs to one, at the path that the command knows.
    fn socket(&mut self, path: &Path) -> Result<()> {
        let real = real(path)?;
        self.read_only(&real, false)?;
        // The path may lead through a hidden link.
        if real != path && matches!(self.nearest(path), Some(Cover::Empty { .. })) {
            self.links.push((path.to_owned(), real));
        }
        Ok(())
    }

    /// Hides files with credentials, except those that the caller named, and those in folders that are already hidden.
    fn keys(&mut self, view: &View, at: Option<&Path>) -> Result<()> {
        for key in &view.keys {
            // The file may have been removed since it was found.
            let Ok(key) = real(key) else { continue };
            // The fork belongs to the command, even if it is shown over a home folder.
            if !key.starts_with(&view.mountpoint)
                && !at.is_some_and(|at| key.starts_with(at))
                && !self.is_shown(&key)
                && !matches!(self.nearest(&key), Some(Cover::Empty { .. }))
            {
                self.hide(key)?;
            }
        }
        Ok(())
    }

    /// Shows copies of files in their place. The copies belong to the user.
    fn settings(&mut self, settings: &[Settings]) -> Result<()> {
        let mut settings: Vec<_> = settings.iter().collect();
        settings.retain(|settings| {
            !self.is_shown(&settings.path)
                && !matches!(self.nearest(&settings.path), Some(Cover::Empty { .. }))
        });
        if settings.is_empty() {
            return Ok(());
        }
        // Uses a temporary mount, which is unmounted at once. Its files exist while they are shown.
        let scratch = Path::new("/dev");
        let failed = |e: io::Error| Error::io(e, "cannot copy the settings of ssh");
        empty_folder(scratch, 0o700).map_err(failed)?;
        let copied = settings.iter().enumerate().map(|(number, settings)| {
            let copy = scratch.join(number.to_string());
            fs::write(&copy, &settings.content).map_err(failed)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(settings.mode)).map_err(failed)?;
            let copy = tree(&copy, false)?;
            protect_tree(&copy, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
            Ok((settings.path.clone(), copy))
        });
        let copied: Result<Vec<_>> = copied.collect();
        unmount(scratch, UnmountFlags::DETACH).map_err(|e| failed(e.into()))?;
        for (path, copy) in copied? {
            self.show(path, copy);
        }
        Ok(())
    }

    /// Covers a folder with an empty folder, or a file with an empty file.
    fn hide(&mut self, path: PathBuf) -> Result<()> {
        // Asks only the kernel for the mode, since the daemon of a mount may not answer.
        let mode = mode_known(&path);
        self.hide_as(path, mode)
    }

    /// Hides a file of the fork at a path below the folder where the fork is shown, if there is one.
    fn hide_like(&mut self, own: &Path, path: &Path) -> Result<()> {
        // The target of a link is hidden by its own path.
        if fs::canonicalize(own).is_ok_and(|real| real == own) {
            self.hide_as(path.to_owned(), mode_known(own))?;
        }
        Ok(())
    }

    fn hide_as(&mut self, path: PathBuf, mode: Option<u32>) -> Result<()> {
        if let Some(mode) = mode
            && mode & libc::S_IFMT == libc::S_IFDIR
        {
            // Keeps the mode, since programs check the modes of folders with their keys.
            self.put(path, Cover::Empty { mode: mode & 0o777 | 0o500, writable: false });
            return Ok(());
        }
        let nothing = tree(Path::new("/dev/null"), false)?;
        protect_tree(&nothing, libc::MOUNT_ATTR_RDONLY)?;
        self.show(path, nothing);
        Ok(())
    }

    /// Returns the cover of a path, or of the nearest covered folder above it.
    fn nearest(&self, path: &Path) -> Option<&Cover> {
        path.ancestors().find_map(|path| {
            let cover = |shown| self.covers.get(&(depth(path), path.to_owned(), shown));
            cover(true).or_else(|| cover(false))
        })
    }

    /// Covers a folder with an empty one, if it exists.
    fn empty(&mut self, path: &Path, mode: u32, writable: bool) {
        if let Ok(path) = fs::canonicalize(path)
            && path.is_dir()
        {
            self.put(path, Cover::Empty { mode, writable });
        }
    }

    fn read_only(&mut self, path: &Path, whole: bool) -> Result<()> {
        let shown = tree(path, whole)?;
        protect_tree(&shown, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
        self.show(path.to_owned(), shown);
        Ok(())
    }

    fn show(&mut self, path: PathBuf, tree: OwnedFd) {
        self.put(path, Cover::Shown(tree));
    }

    fn put(&mut self, path: PathBuf, cover: Cover) {
        let shown = matches!(cover, Cover::Shown(_));
        self.covers.entry((depth(&path), path, shown)).or_insert(cover);
    }

    fn is_shown(&self, path: &Path) -> bool {
        self.covers.contains_key(&(depth(path), path.to_owned(), true))
    }
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

fn real(path: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(path).map_err(|e| Error::io(e, format!("cannot find {}", path.display())))?;
    let invalid = |what: &'static str| Error::new(ErrorKind::InvalidInput, what);
    if real.parent().is_none() {
        return Err(invalid("the root directory cannot be shown or hidden as a whole")
            .with_hint("name directories in it"));
    }
    if real.starts_with("/proc") {
        return Err(invalid("files in /proc belong to the command, and can be neither shown nor hidden"));
    }
    Ok(real)
}

/// Like [`real`], for a folder that need not exist: resolves the nearest existing folder above it.
fn real_place(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return real(path);
    }
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("{} does not name a directory", path.display()))
    })?;
    Ok(real_place(parent)?.join(name))
}

/// Mounts an empty folder in memory at `path`. Creates the mountpoint if it lies in such a folder itself.
fn empty_folder(path: &Path, mode: u32) -> io::Result<()> {
    if mode_known(path).is_none() {
        fs::create_dir_all(path)?;
    }
    let options = CString::new(format!("mode={mode:o}"))?;
    Ok(mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, &*options)?)
}

/// Mounts a new instance of terminals, without any terminal yet.
fn terminals(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount("devpts", path, "devpts", flags, c"newinstance,ptmxmode=0666,mode=620")?)
}

fn show(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    if mode_known(path).is_none() {
        let is_dir = rustix::fs::fstat(tree)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if is_dir {
            fs::create_dir_all(path)?;
        } else {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            fs::write(path, "")?;
        }
    }
    Ok(move_mount(tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
