//! What a command sees: the machine's files, read-only, with some of it hidden, and a fork in it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};

use super::ssh::Settings;
use super::{View, namespaces, sys};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::silent::mode_known;

/// Where the command keeps temporary files, which only it sees.
pub(super) const TMP: &str = "/tmp";

/// Devices that any program may expect, and that give access to nothing.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that any program may expect in /dev.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What is put over a path.
enum Cover {
    /// An empty folder: with this mode and for good, or to be written.
    Empty { mode: u32, writable: bool },
    /// Something that was there before, or elsewhere.
    Shown(OwnedFd),
    /// Terminals of the command's own.
    Terminals,
}

/// A folder comes before what is below it, and at the same path what is hidden before what is shown.
type Place = (usize, PathBuf, bool);

struct Plan {
    /// What lies over each path.
    covers: BTreeMap<Place, Cover>,
    /// Links in emptied folders, and where they lead.
    links: Vec<(PathBuf, PathBuf)>,
}

/// What was found on the machine for a view.
pub(super) struct Found {
    /// A private folder for sockets, to be made.
    pub(super) runtime: PathBuf,
    /// Sockets, and files beside them, that the command is to reach.
    pub(super) sockets: Vec<PathBuf>,
    /// Settings of `ssh` that have to be the user's own.
    pub(super) settings: Vec<Settings>,
}

/// Makes the view in the mount namespace of this process.
pub(super) fn make(view: &View, found: &Found) -> Result<()> {
    // Nothing of this reaches the machine, and nothing that is mounted there later is seen here, writable.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| namespaces::explain(e.into(), "cannot have mounts of its own"))?;
    // What is shown is taken before it is hidden or write-protected.
    let plan = Plan::of(view, found)?;
    protect(CWD, Path::new("/"), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV, true)
        .map_err(|e| namespaces::explain(e, "cannot write-protect the machine's files"))?;
    for ((_, path, _), cover) in &plan.covers {
        match cover {
            Cover::Empty { mode, .. } => empty_folder(path, *mode),
            Cover::Shown(tree) => show(tree, path),
            Cover::Terminals => terminals(path),
        }
        .map_err(|e| Error::io(e, format!("cannot put together what is shown at {}", path.display())))?;
    }
    for (path, target) in &plan.links {
        // Where something else is shown in place of the empty folder, that has what it has.
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
        // The first word on a path counts: folders that the command needs stay writable, and what was asked for is done.
        for tmp in [TMP, "/var/tmp"] {
            plan.empty(Path::new(tmp), 0o1777, true);
        }
        for path in &view.hide {
            let path = real(path)?;
            match at.as_deref().and_then(|at| path.strip_prefix(at).ok()) {
                // The fork lies over it.
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
                let what =
                    format!("{} is where the fork is shown, and cannot be written itself", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, what)
                    .with_hint("name a folder in it, or show the fork elsewhere with --at"));
            }
            if plan.is_shown(&path) {
                let what = format!("{} is to be shown or hidden and to be written", path.display());
                return Err(Error::new(ErrorKind::InvalidInput, what).with_hint("name it once"));
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
        // With what is mounted in it, which is the machine's.
        let shown = tree(&fork, true)?;
        protect_tree(&shown, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
        sys::change_mount(shown.as_fd(), c"", (0, libc::MOUNT_ATTR_RDONLY), false)
            .map_err(|e| Error::io(e, format!("cannot show {}", fork.display())))?;
        plan.show(fork, shown);
        plan.links.push((view.shown_work(), Path::new("../forks").join(&view.fork).join("world/fs")));
        Ok(plan)
    }

    /// Shows the fork's files over its project, if they are to show there. Gives the path without links.
    fn files(&mut self, view: &View) -> Result<Option<PathBuf>> {
        let Some(at) = &view.at else { return Ok(None) };
        let refused =
            |what: String| Error::new(ErrorKind::InvalidInput, what).with_hint("name a folder with --at");
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
                "run `pfimg umount {mountpoint}`: `pfimg run` mounts the store elsewhere by itself"
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

    /// Hides the machine's devices, but for a few.
    fn devices(&mut self) -> Result<()> {
        let dev = Path::new("/dev");
        self.empty(dev, 0o755, false);
        for name in DEVICES {
            let path = dev.join(name);
            if path.exists() {
                let device = tree(&path, false)?;
                // Of a device this protects mode and times: it can be written to all the same.
                protect_tree(&device, libc::MOUNT_ATTR_RDONLY)?;
                self.show(path, device);
            }
        }
        // By this name the terminal is found that has none in the command's own /dev/pts.
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

    /// Hides the sockets through which programs outside can be told to do something, but not how names are looked up.
    fn services(&mut self, runtime: &Path) -> Result<()> {
        self.put(runtime.to_owned(), Cover::Empty { mode: 0o700, writable: true });
        let run = Path::new("/run");
        if !run.is_dir() {
            return Ok(());
        }
        self.empty(run, 0o755, false);
        // NixOS has its programs behind one.
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

    /// Shows a socket, or a file beside one, under the path by which the command knows it.
    fn socket(&mut self, path: &Path) -> Result<()> {
        let real = real(path)?;
        self.read_only(&real, false)?;
        // Its path may lead through a link that is hidden.
        if real != path && matches!(self.nearest(path), Some(Cover::Empty { .. })) {
            self.links.push((path.to_owned(), real));
        }
        Ok(())
    }

    /// Hides files with credentials, but for those that the caller named, and those in folders that are hidden as a whole.
    fn keys(&mut self, view: &View, at: Option<&Path>) -> Result<()> {
        for key in &view.keys {
            // It may have gone since it was found.
            let Ok(key) = real(key) else { continue };
            // The fork is the command's, also where it is a home folder.
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

    /// Shows copies of files in their place, which belong to the user.
    fn settings(&mut self, settings: &[Settings]) -> Result<()> {
        let mut settings: Vec<_> = settings.iter().collect();
        settings.retain(|settings| {
            !self.is_shown(&settings.path)
                && !matches!(self.nearest(&settings.path), Some(Cover::Empty { .. }))
        });
        if settings.is_empty() {
            return Ok(());
        }
        // The mount goes at once, and its files stay as long as they are shown.
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

    /// Lays an empty folder over a folder, or an empty file over a file.
    fn hide(&mut self, path: PathBuf) -> Result<()> {
        // A mount whose daemon does not answer is hidden as any other.
        let mode = mode_known(&path);
        self.hide_as(path, mode)
    }

    /// Hides what the fork has at a path below the folder it is shown at; nothing where it has nothing there.
    fn hide_like(&mut self, own: &Path, path: &Path) -> Result<()> {
        // What a link leads to is hidden by its own path.
        if fs::canonicalize(own).is_ok_and(|real| real == own) {
            self.hide_as(path.to_owned(), mode_known(own))?;
        }
        Ok(())
    }

    fn hide_as(&mut self, path: PathBuf, mode: Option<u32>) -> Result<()> {
        if let Some(mode) = mode
            && mode & libc::S_IFMT == libc::S_IFDIR
        {
            // Programs look at the modes of folders that hold their keys.
            self.put(path, Cover::Empty { mode: mode & 0o777 | 0o500, writable: false });
            return Ok(());
        }
        let nothing = tree(Path::new("/dev/null"), false)?;
        protect_tree(&nothing, libc::MOUNT_ATTR_RDONLY)?;
        self.show(path, nothing);
        Ok(())
    }

    /// What lies over a path, or over the nearest folder above it.
    fn nearest(&self, path: &Path) -> Option<&Cover> {
        path.ancestors().find_map(|path| {
            let cover = |shown| self.covers.get(&(depth(path), path.to_owned(), shown));
            cover(true).or_else(|| cover(false))
        })
    }

    /// Puts an empty folder over one, if it is there.
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
        return Err(
            invalid("the root folder cannot be shown or hidden as a whole").with_hint("name folders in it")
        );
    }
    if real.starts_with("/proc") {
        return Err(invalid("what is in /proc is the command's own, and can neither be shown nor hidden"));
    }
    Ok(real)
}

/// The same for a folder that need not be there: below the nearest one that is.
fn real_place(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return real(path);
    }
    let (parent, name) = path
        .parent()
        .zip(path.file_name())
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("{} names no folder", path.display())))?;
    Ok(real_place(parent)?.join(name))
}

/// A copy of the mount that has `path`, with `path` for its root and, if told so, with all that is mounted below it.
pub(super) fn tree(path: &Path, whole: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, whole);
    open_tree(CWD, path, flags).map_err(|e| Error::io(e.into(), format!("cannot show {}", path.display())))
}

pub(super) fn protect_tree(tree: &OwnedFd, attributes: u64) -> Result<()> {
    protect(tree.as_fd(), Path::new(""), attributes, true)
        .map_err(|e| Error::io(e, "cannot write-protect what is shown"))
}

fn protect(dir: BorrowedFd<'_>, path: &Path, attributes: u64, whole: bool) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    sys::change_mount(dir, &path, (attributes | libc::MOUNT_ATTR_NOSUID, 0), whole)
}

/// Lets nothing be written to the mount at `path`.
pub(super) fn write_protect(path: &Path) -> io::Result<()> {
    protect(CWD, path, libc::MOUNT_ATTR_RDONLY, false)
}

/// Mounts an empty folder that is kept in memory. What is not there is made, in one that is.
fn empty_folder(path: &Path, mode: u32) -> io::Result<()> {
    if mode_known(path).is_none() {
        fs::create_dir_all(path)?;
    }
    let options = CString::new(format!("mode={mode:o}"))?;
    Ok(mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, &*options)?)
}

/// Mounts terminals of which there is none yet.
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
