//! Operations on names: create, link, rename and remove.

use std::collections::BTreeMap;

use super::files::Files;
use super::policy;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::errors::{not_found, posix};
use crate::fork::frame::{fixed_ino, is_record};
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, Body, Inode, Name, Protection};
use crate::fork::live::Live;
use crate::fork::record::{Attrs, Create, Record, Whiteout};
use crate::fork::state::DirEntry;
use crate::layers::acl::{self, Acl};
use crate::layers::world::{Kind, MAX_DEPTH, MAX_TARGET};

/// The most links that a file can have, as on ext4.
pub const MAX_LINKS: usize = 65_000;

/// The attributes of a new file.
#[derive(Clone, Debug)]
pub struct NewFile<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group, unless the folder's sgid bit says otherwise.
    pub gid: u32,
    /// Device number, of devices.
    pub rdev: u64,
    /// Target, of symlinks.
    pub target: &'a [u8],
    /// The umask, given if it is ignored in a folder with a default access control list. Otherwise the kernel
    /// has applied it.
    pub umask: Option<u16>,
}

impl NewFile<'_> {
    /// A file, folder or special.
    pub fn new(kind: Kind, mode: u16, uid: u32, gid: u32) -> Self {
        Self { kind, mode, uid, gid, rdev: 0, target: &[], umask: None }
    }
}

/// How to rename.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    /// A file that has the new name is replaced.
    #[default]
    Replace,
    /// The new name must be free.
    NoReplace,
    /// The two names change places.
    Exchange,
    /// The old name becomes a whiteout, a character device 0/0; an overlay uses it to hide the file below.
    Whiteout {
        /// Whether a file that has the new name is replaced.
        replace: bool,
        /// The whiteout's owner.
        uid: u32,
        /// The whiteout's group, unless the folder's sgid bit says otherwise.
        gid: u32,
    },
}

/// The folder's child, which must be there.
fn child(live: &Live, parent: Ino, name: &[u8]) -> Result<Ino> {
    folder(live, parent)?;
    live.shown_child(parent, name).ok_or_else(not_found)
}

/// Checks that `parent` is a folder that still has a place.
fn folder(live: &Live, parent: Ino) -> Result<()> {
    match live.state.kind(parent) {
        // A folder that was removed while it is a program's working directory.
        Some(Kind::Dir) if live.hidden.has_ino(parent) => Err(not_found()),
        Some(Kind::Dir) => Ok(()),
        Some(_) => Err(posix(Posix::NotADirectory, "the path does not name a directory")),
        None => Err(not_found()),
    }
}

/// Checks that a name can be given in `parent`.
fn free(live: &Live, parent: Ino, name: &[u8]) -> Result<()> {
    folder(live, parent)?;
    policy::check_name(name)?;
    if live.shown_child(parent, name).is_some() {
        return Err(Error::new(ErrorKind::AlreadyExists, "the name exists already"));
    }
    Ok(())
}

/// The attributes of a file, which must be there.
fn attr(live: &Live, ino: Ino) -> Result<Attr> {
    Ok(live.attr_of(ino, &*live.inode_or_stale(ino)?))
}

/// The depth in `world/fs`, in folders, of a file in `folder`, which is a path in a fork.
fn depth(folder: &[u8]) -> usize {
    folder.split(|byte| *byte == b'/').count().saturating_sub(1)
}

impl Files {
    /// Finds a name in a folder.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > crate::layers::world::MAX_NAME {
            return Err(posix(Posix::NameTooLong, "the name is longer than 255 bytes"));
        }
        let found = {
            let live = self.core.live.read();
            let ino = child(&live, parent, name)?;
            let inode = live.inode_or_stale(ino)?;
            if inode.content().is_none_or(|content| content.unsettled().is_none()) {
                return Ok(live.attr_of(ino, &inode));
            }
            ino
        };
        self.getattr(found)
    }

    /// The attributes that `stat` shows of a file.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.core.settle(ino)?;
        attr(&self.core.live.read(), ino)
    }

    /// A symlink's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.core.live.read().inode_or_stale(ino)?.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the path does not name a symbolic link")),
        }
    }

    /// The end of a listing of a folder that begins now, for [`Files::readdir_to`].
    pub fn end_of_listing(&self, ino: Ino) -> u64 {
        self.core.live.read().state.end_of_list(ino)
    }

    /// Lists a folder from `cookie` on (0: from the start), without `.` and `..`, until `each` returns false.
    /// The fork is locked during the call: `each` must not call it.
    pub fn readdir(&self, ino: Ino, cookie: u64, each: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        self.readdir_to(ino, cookie, None, each)
    }

    /// Does the same without files that were made or moved there since the listing began; with them it might
    /// never end.
    pub fn readdir_to(
        &self,
        ino: Ino,
        cookie: u64,
        end: Option<u64>,
        each: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let live = self.core.live.read();
        if let Some(inode) = live.orphans.get(&ino) {
            // A removed folder is empty.
            return if inode.is_dir() {
                Ok(())
            } else {
                Err(posix(Posix::NotADirectory, "the path does not name a directory"))
            };
        }
        live.inode_or_stale(ino)?;
        if live.hidden.has_ino(ino) {
            return Ok(());
        }
        let mut each = |entry: DirEntry| !live.is_listed(ino, &entry.name) || each(entry);
        live.state
            .list_to(ino, cookie, end, &mut each)
            .ok_or_else(|| posix(Posix::NotADirectory, "the path does not name a directory"))
    }

    /// The parent of a folder; the fork's top folder is its own parent.
    pub fn parent(&self, ino: Ino) -> Ino {
        self.core.live.read().state.parent(ino)
    }

    /// A path of a file, from the fork's top folder.
    pub fn path(&self, ino: Ino) -> Option<Vec<u8>> {
        self.core.live.read().state.path(ino)
    }

    /// Finds a path from the fork's top folder.
    pub fn resolve(&self, path: &[u8]) -> Option<Ino> {
        let live = self.core.live.read();
        let mut names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
        names.try_fold(Ino::TOP, |folder, name| live.shown_child(folder, name))
    }

    /// Makes a file, folder, symlink or special.
    pub fn create(&self, parent: Ino, name: &[u8], new: &NewFile<'_>) -> Result<Attr> {
        self.core.may_write()?;
        let is_dir = new.kind == Kind::Dir;
        if new.kind == Kind::Symlink {
            if new.target.is_empty() {
                return Err(not_found());
            }
            if new.target.len() > MAX_TARGET {
                return Err(posix(Posix::NameTooLong, "the target is longer than 4095 bytes"));
            }
        }
        let mut live = self.core.live.write();
        free(&live, parent, name)?;
        policy::admit(parent, name, new.kind)?;
        if let Some(ino) = live.show(parent, name, self.core.now())? {
            // The file never left the state, and is made again with its content.
            drop(live);
            return self.getattr(ino);
        }
        // No other file can take the place of a sealed one.
        let sealed = policy::is_frame(parent)
            && live
                .baseline
                .child(parent, name)
                .and_then(|ino| live.baseline.inode(ino))
                .is_some_and(|inode| inode.guard != Protection::None);
        if sealed {
            return Err(policy::recorded());
        }
        let folder = live.inode_or_stale(parent)?;
        if is_dir && live.state.path(parent).is_some_and(|path| depth(&path) >= MAX_DEPTH) {
            return Err(posix(Posix::NameTooLong, "the directory would be deeper than an image can hold"));
        }
        let fixed = if is_dir { fixed_ino(parent, name) } else { None };
        let ino = fixed.unwrap_or_else(|| live.fresh(parent, name));
        if live.inode(ino).is_some() {
            return Err(Error::new(ErrorKind::Busy, "programs still use the removed directory of this name"));
        }
        let (mut gid, mut mode) = (new.gid, new.mode & 0o7777);
        if folder.mode & 0o2000 != 0 {
            gid = live.state.attr(parent, &folder).gid;
            if is_dir {
                mode |= 0o2000;
            }
        }
        let mut lists = Vec::new();
        if new.kind == Kind::Symlink {
            mode = 0o777;
        } else if let Some(umask) = new.umask {
            match folder.xattrs.get(acl::DEFAULT).and_then(|list| Acl::parse(list)) {
                Some(default) => {
                    let (access, bits) = default.handed_on(mode);
                    mode = mode & !0o777 | bits;
                    lists.extend((!access.is_mode()).then(|| (acl::ACCESS, access.value())));
                    lists.extend(is_dir.then(|| (acl::DEFAULT, default.value())));
                }
                None => mode &= !umask,
            }
        }
        // A map that nothing else holds is changed in place.
        drop(folder);
        let time = self.core.now();
        let rdev = if matches!(new.kind, Kind::Chardev | Kind::Blockdev) { new.rdev } else { 0 };
        live.commit(Record::Create(Create {
            parent,
            name: name.to_vec(),
            ino,
            kind: new.kind,
            // Before it has its list, a file belongs to its owner alone.
            mode: if lists.is_empty() { mode } else { mode & !0o077 },
            uid: new.uid,
            gid,
            rdev,
            target: if new.kind == Kind::Symlink { new.target.to_vec() } else { Vec::new() },
            time,
        }))?;
        if !lists.is_empty() {
            for (name, value) in lists {
                live.commit(Record::Xattr { ino, name: name.to_vec(), value: Some(value), time })?;
            }
            live.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, time) }))?;
        }
        attr(&live, ino)
    }

    /// Gives a file one more name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.core.may_write()?;
        let mut live = self.core.live.write();
        free(&live, parent, name)?;
        let inode = live.state.inode(ino).ok_or_else(not_found)?;
        if inode.is_dir() {
            return Err(posix(Posix::NotPermitted, "a directory cannot have a second name"));
        }
        if policy::is_frame(parent) || inode.links.iter().any(|(parent, _)| policy::is_frame(*parent)) {
            return Err(posix(Posix::NotPermitted, "the file of a layer cannot have a second name"));
        }
        if inode.links.len() >= MAX_LINKS {
            return Err(posix(Posix::TooManyLinks, "the file already has the maximum number of names"));
        }
        drop(inode);
        live.commit(Record::Link { ino, parent, name: name.to_vec(), time: self.core.now() })?;
        attr(&live, ino)
    }

    /// Removes a name of a file. Returns the file; if that was its last name it stays usable until
    /// [`Files::forget`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        self.core.may_write()?;
        let ino = {
            let mut live = self.core.live.write();
            let ino = child(&live, parent, name)?;
            let inode = live.inode_or_stale(ino)?;
            if inode.is_dir() {
                return Err(posix(Posix::IsADirectory, "the path names a directory: remove it with rmdir"));
            }
            if self.guarded() {
                policy::may_unlink(ino, &inode)?;
            }
            drop(inode);
            if is_record(parent, name) {
                live.hide(parent, name, ino, self.core.now())?;
            } else {
                live.commit(Record::Remove { parent, name: name.to_vec(), time: self.core.now() })?;
            }
            ino
        };
        Ok(ino)
    }

    /// Removes an empty folder, which stays usable until [`Files::forget`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        self.core.may_write()?;
        let mut live = self.core.live.write();
        let ino = child(&live, parent, name)?;
        let inode = live.inode_or_stale(ino)?;
        let Body::Dir(dir) = &inode.body else {
            return Err(posix(Posix::NotADirectory, "the path does not name a directory"));
        };
        if self.guarded() {
            policy::may_unlink(ino, &inode)?;
        }
        if live.entries(ino) > 0 {
            return Err(posix(Posix::NotEmpty, "the directory is not empty"));
        }
        if dir.len > 0 {
            // The folder still holds a record.
            live.hide(parent, name, ino, self.core.now())?;
            return Ok(ino);
        }
        drop(inode);
        live.commit(Record::Remove { parent, name: name.to_vec(), time: self.core.now() })?;
        Ok(ino)
    }

    /// Renames a file. Returns the replaced file if it has no name now; it stays usable until
    /// [`Files::forget`].
    pub fn rename(
        &self,
        from: Ino,
        name: &[u8],
        to: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<Option<Ino>> {
        self.core.may_write()?;
        let mut live = self.core.live.write();
        let ino = child(&live, from, name)?;
        folder(&live, to)?;
        policy::check_name(new_name)?;
        let target = live.shown_child(to, new_name);
        let inode = live.inode_or_stale(ino)?;
        let other = target.map(|target| live.inode_or_stale(target)).transpose()?;
        match (mode, target) {
            (RenameMode::NoReplace | RenameMode::Whiteout { replace: false, .. }, Some(_)) => {
                return Err(Error::new(ErrorKind::AlreadyExists, "the name exists already"));
            }
            (RenameMode::Exchange, None) => return Err(not_found()),
            _ => {}
        }
        let places = [(from, name), (to, new_name)];
        self.rename_in_frame(places, (ino, &inode), target.zip(other.as_deref()), mode)?;
        if target == Some(ino) {
            // Two names of one file: POSIX requires that nothing happens.
            return Ok(None);
        }
        if inode.is_dir() && live.state.is_below(to, ino) {
            return Err(Error::new(ErrorKind::InvalidInput, "a directory cannot be moved into itself"));
        }
        if let (Some(target), Some(other)) = (target, &other) {
            if mode == RenameMode::Exchange {
                if other.is_dir() && live.state.is_below(from, target) {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "a directory cannot be moved into itself",
                    ));
                }
            } else {
                match (inode.is_dir(), other.is_dir()) {
                    (true, false) => {
                        return Err(posix(Posix::NotADirectory, "a directory cannot replace a file"));
                    }
                    (false, true) => {
                        return Err(posix(Posix::IsADirectory, "a file cannot replace a directory"));
                    }
                    (true, true) if live.entries(target) > 0 => {
                        return Err(posix(
                            Posix::NotEmpty,
                            "the directory that the rename would replace is not empty",
                        ));
                    }
                    _ => {}
                }
            }
        }
        let (name, new_name, time) = (name.to_vec(), new_name.to_vec(), self.core.now());
        let exchange = mode == RenameMode::Exchange;
        let record = match mode {
            RenameMode::Whiteout { uid, gid, .. } => {
                let folder = live.inode_or_stale(from)?;
                let inherited = folder.mode & 0o2000 != 0;
                let gid = if inherited { live.state.attr(from, &folder).gid } else { gid };
                let (ino, kind) = (live.fresh(from, &name), Kind::Chardev);
                let (mode, rdev, target) = (0, 0, Vec::new());
                let device = Create { parent: from, name, ino, kind, mode, uid, gid, rdev, target, time };
                Record::Whiteout(Whiteout { to, new_name, device })
            }
            _ => Record::Rename { from, name, to, new_name, exchange, time },
        };
        drop((inode, other));
        live.commit(record)?;
        Ok(target.filter(|target| live.orphans.contains_key(target)))
    }

    /// The rules for layers' names. A rename between `world/fs` and a layer is refused, as between two disks:
    /// tools then copy.
    fn rename_in_frame(
        &self,
        [(from, name), (to, new_name)]: [(Ino, &[u8]); 2],
        (ino, inode): (Ino, &Inode),
        other: Option<(Ino, &Inode)>,
        mode: RenameMode,
    ) -> Result<()> {
        let frames = (policy::is_frame(from), policy::is_frame(to));
        if frames == (false, false) {
            return Ok(());
        }
        if self.guarded() {
            policy::may_unlink(ino, inode)?;
            if let Some((ino, inode)) = other {
                policy::may_unlink(ino, inode)?;
            }
        }
        if frames != (true, true) {
            return Err(posix(
                Posix::CrossesDevices,
                "a rename or a link cannot join world/fs and the layers around it",
            ));
        }
        policy::may_move((from, name), (to, new_name), [Some(ino), other.map(|(ino, _)| ino)])?;
        policy::admit(to, new_name, inode.kind())?;
        // The name of a folder of the frame decides its number.
        if inode.is_dir() && fixed_ino(to, new_name).is_some_and(|fixed| fixed != ino) {
            return Err(posix(
                Posix::NotPermitted,
                "the directories of a fork around world/fs cannot be moved or removed",
            ));
        }
        if matches!(mode, RenameMode::Whiteout { .. }) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a rename outside of world/fs cannot leave a whiteout",
            ));
        }
        if mode == RenameMode::Exchange && (from != to || inode.is_dir()) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a rename cannot exchange files of different layers",
            ));
        }
        Ok(())
    }

    /// Lists the files in a folder, by name.
    pub fn listed(&self, folder: Ino) -> Result<BTreeMap<Name, (Ino, Kind)>> {
        let mut listed = BTreeMap::new();
        self.readdir(folder, 0, &mut |entry| {
            listed.insert(entry.name, (entry.ino, entry.kind));
            true
        })?;
        Ok(listed)
    }
}
