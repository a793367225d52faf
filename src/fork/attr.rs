//! Operations on attributes, and fsync.

use std::fs::File;

use super::caller::{Caller, mode_after_chown, mode_after_write};
use super::content::MAX_SIZE;
use super::ino::Ino;
use super::live::{CAPABILITY, Fork, posix};
use super::node::{Attr, Guard};
use super::record::{Attrs, Record};
use super::records::may_clear;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::layers::acl::{self, Acl};
use crate::layers::world::Kind;
use crate::sync::atomic::Ordering;
use crate::sync::wait;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time at which the operation happens.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// Attributes to set; an unset one stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits. The kernel has removed the sgid bit if the caller may not set it.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time; the present without it.
    pub ctime: Option<i64>,
}

/// Whether an extended attribute may, must or must not exist before it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// It may exist or not.
    #[default]
    Any,
    /// It must not exist: `XATTR_CREATE`.
    Create,
    /// It must exist: `XATTR_REPLACE`.
    Replace,
}

/// Longest extended attribute in bytes, as in Linux.
const MAX_XATTR: usize = 65_536;

impl Fork {
    /// Sets attributes, as root does. A new owner clears suid and sgid.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.setattr_by(ino, set, false)
    }

    /// Sets attributes. A new owner or length clears suid and sgid.
    pub fn setattr_by(&self, ino: Ino, set: &SetAttr, by: impl Caller) -> Result<Attr> {
        self.may_write()?;
        self.settle(ino)?;
        let time = self.now();
        let at = |set: Option<SetTime>| {
            set.map(|set| match set {
                SetTime::Now => time,
                SetTime::At(time) => time,
            })
        };
        let mut live = self.live.write();
        let inode = live.need(ino)?;
        let mut mode = set.mode.map(|mode| mode & 0o7777);
        let (mut mtime, mut keeps) = (at(set.mtime), false);
        if let Some(size) = set.size {
            match inode.content() {
                Some(content) => may_clear(&inode, size.min(content.known_size()), u64::MAX)?,
                None if inode.is_dir() => {
                    return Err(posix(Posix::IsADirectory, "a directory has no length to set"));
                }
                None => {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        "only a regular file has a length to set",
                    ));
                }
            }
            if size > MAX_SIZE {
                return Err(posix(Posix::TooLarge, "the file would be larger than a fork's file can be"));
            }
            // A kernel that sets the times sets none if the length is the same, and continues to show the old
            // ones.
            keeps = self.shared.late_writes && inode.content().is_some_and(|c| c.known_size() == size);
            mtime = mtime.or((!keeps).then_some(time));
        }
        if inode.guard == Guard::Fixed && mode.is_some_and(|mode| mode & 0o222 != 0) {
            return Err(posix(Posix::NotPermitted, "a fork's manifest cannot be changed"));
        }
        let (mut uid, mut gid) = (set.uid, set.gid);
        let owner = uid.is_some() || gid.is_some();
        if mode.is_some_and(|mode| mode & 0o6000 != 0) {
            // These bits give the rights of the owner. The owner must be the one who is shown, who set the
            // bits.
            let shown = live.state.attr(ino, &inode);
            let recorded = live.state.recorded(ino, &inode);
            uid = uid.or((shown.uid != recorded.uid).then_some(shown.uid));
            gid = gid.or((shown.gid != recorded.gid).then_some(shown.gid));
        }
        if (owner || set.size.is_some()) && !inode.is_dir() {
            let (before, group) = (mode.unwrap_or(inode.mode), live.state.attr(ino, &inode).gid);
            let after =
                if owner { mode_after_chown(before, group, by) } else { mode_after_write(before, group, by) };
            // An unchanged mode is not recorded.
            mode = if after != inode.mode || mode.is_some() { Some(after) } else { None };
        }
        if uid.is_some() || gid.is_some() || set.size.is_some() {
            live.drop_capability(ino, &inode, time)?;
        }
        if let (Some(mode), Some(acl)) = (mode, inode.xattrs.get(acl::ACCESS))
            && let Some(acl) = Acl::parse(acl)
        {
            // It would restore the permissions that are removed here.
            let (name, value) = (acl::ACCESS.to_vec(), Some(acl.with_mode(mode).value()));
            live.commit(Record::Xattr { ino, name, value, time })?;
        }
        live.commit(Record::Attr(Attrs {
            ino,
            mode,
            uid,
            gid,
            size: set.size,
            atime: at(set.atime),
            mtime,
            ctime: set.ctime.or(inode.ctime.filter(|_| keeps)).unwrap_or(time),
        }))?;
        let inode = live.need(ino)?;
        Ok(live.attr_of(ino, &inode))
    }

    /// An extended attribute's value.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.live.read().need(ino)?;
        inode.xattrs.get(name).cloned().ok_or_else(|| no_attribute(name))
    }

    /// Names of a file's extended attributes, sorted.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.live.read().need(ino)?.xattrs.keys().cloned().collect())
    }

    /// Sets an extended attribute, as root does.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.setxattr_by(ino, name, value, mode, false)
    }

    /// Sets an extended attribute. An access control list sets the permission bits as well.
    pub fn setxattr_by(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        by: impl Caller,
    ) -> Result<()> {
        self.may_write()?;
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(posix(Posix::Range, "an attribute's name has 1 to 255 bytes, without NUL"));
        }
        if value.len() > MAX_XATTR {
            return Err(posix(Posix::Range, "the attribute's value is longer than 64 KiB"));
        }
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(ino, name, value, by);
        }
        if is_bare_prefix(name) {
            return Err(no_attribute(name));
        }
        if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "forks support only attributes named user.…, trusted.… and security.…",
            ));
        }
        if name == CAPABILITY && is_of_confined_root(value) {
            return Err(posix(
                Posix::NotPermitted,
                "root can give files capabilities only outside of user namespaces",
            ));
        }
        let mut live = self.live.write();
        let inode = live.need(ino)?;
        match (mode, inode.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => {
                return Err(Error::new(ErrorKind::AlreadyExists, "the attribute exists already"));
            }
            (XattrMode::Replace, false) => return Err(no_attribute(name)),
            _ => {}
        }
        live.commit(Record::Xattr { ino, name: name.to_vec(), value: Some(value.to_vec()), time: self.now() })
    }

    /// Sets an access control list, and the mode that results from it. A list that is equal to a mode is not
    /// kept.
    fn set_acl(&self, ino: Ino, name: &[u8], value: &[u8], by: impl Caller) -> Result<()> {
        let acl = Acl::parse(value)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the value is not an access control list"))?;
        let mut live = self.live.write();
        let inode = live.need(ino)?;
        let (name, time) = (name.to_vec(), self.now());
        if name == acl::DEFAULT {
            if !inode.is_dir() {
                return Err(Error::new(
                    ErrorKind::PermissionDenied,
                    "only directories have a default access control list",
                ));
            }
            return live.commit(Record::Xattr { ino, name, value: Some(acl.value()), time });
        }
        match inode.kind() {
            Kind::Symlink => {
                return Err(Error::new(ErrorKind::Unsupported, "a symbolic link has no access control list"));
            }
            _ if inode.guard == Guard::Fixed => {
                return Err(posix(Posix::NotPermitted, "a fork's manifest cannot be changed"));
            }
            _ => {}
        }
        let mut mode = inode.mode & !0o777 | acl.mode();
        let group = live.state.attr(ino, &inode).gid;
        if mode & 0o2000 != 0 && !by.is_in(group) && !by.keeps_bits() {
            mode &= !0o2000;
        }
        let value = Some(acl.value()).filter(|_| !acl.is_mode());
        if value.is_some() || inode.xattrs.contains_key(&name) {
            live.commit(Record::Xattr { ino, name, value, time })?;
        }
        live.commit(Record::Attr(Attrs { mode: Some(mode), ..Attrs::of(ino, time) }))
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.may_write()?;
        let mut live = self.live.write();
        if !live.need(ino)?.xattrs.contains_key(name) {
            return Err(no_attribute(name));
        }
        live.commit(Record::Xattr { ino, name: name.to_vec(), value: None, time: self.now() })
    }

    /// Makes everything that was acknowledged durable: all of the fork, since a durable journal must not
    /// refer to data that is not durable. Writers continue during the call.
    pub fn fsync(&self) -> Result<()> {
        wait::required()?;
        let generations = self.live.read().generations.clone();
        for generation in &generations {
            generation
                .sync()
                .map_err(|e| Error::io(e, format!("cannot make {} durable", generation.path().display())))?;
        }
        let _turn = self.syncing.lock();
        if self.head_unsynced.swap(false, Ordering::AcqRel)
            && let Err(e) = self.sync_head()
        {
            self.head_unsynced.store(true, Ordering::Release);
            return Err(e);
        }
        // Data without a durable reference can be removed now.
        Ok(())
    }

    /// Like [`Fork::fsync`], but succeeds without doing anything once another thread has discarded the fork.
    pub(super) fn fsync_unless_discarded(&self) -> Result<()> {
        self.fsync().or_else(|error| if self.is_discarded() { Ok(()) } else { Err(error) })
    }

    fn sync_head(&self) -> Result<()> {
        let head = self.head.lock();
        let dir = self.shared.forks.join("heads");
        let path = dir.join(format!("{}.json", head.name));
        let failed = |e| Error::io(e, format!("cannot make {} durable", path.display()));
        let io = &*self.shared.files.io;
        File::open(&path).and_then(|file| io.sync_file(&path, &file)).map_err(failed)?;
        io.sync_dir(&dir).and_then(|()| io.sync_dir(&self.shared.forks)).map_err(failed)
    }

    /// Whether there is data without references.
    pub fn has_trash(&self) -> bool {
        self.live.read().generations.iter().any(|generation| generation.has_trash())
    }

    /// Frees the space of data without references. Makes the fork durable first, so that no power cut brings
    /// back a name whose data is removed. Returns whether there was anything to do.
    pub fn reap(&self) -> Result<bool> {
        wait::required()?;
        let generations = self.live.read().generations.clone();
        let trash: Vec<_> =
            generations.iter().filter(|g| g.has_trash()).map(|g| (g, g.take_trash())).collect();
        if trash.is_empty() {
            return Ok(false);
        }
        if let Err(e) = self.fsync() {
            for (generation, numbers) in trash {
                generation.put_back(numbers);
            }
            return Err(e);
        }
        for (generation, numbers) in trash {
            generation.remove(numbers);
        }
        Ok(true)
    }
}

/// The kinds of attributes that a fork supports.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Whether a name ends with its kind, such as `user.`.
pub fn is_bare_prefix(name: &[u8]) -> bool {
    PREFIXES.contains(&name)
}

/// The error for a missing attribute. The kernel's filesystems do not accept a kind without a name as an
/// attribute's name.
fn no_attribute(name: &[u8]) -> Error {
    if is_bare_prefix(name) {
        return Error::new(
            ErrorKind::InvalidInput,
            "the attribute's name ends after its kind, such as user.",
        );
    }
    posix(Posix::NoAttribute, "there is no such extended attribute")
}

/// Whether capabilities come from a user namespace whose root is also the machine's root: root ran
/// `pfimg run`, and the command gave them.
///
/// The kernel stores the namespace's root with them (`VFS_CAP_REVISION_3` in linux/capability.h). Outside of
/// the namespace they would count as if the machine's root had given them, since an export restores them.
fn is_of_confined_root(value: &[u8]) -> bool {
    value.get(3) == Some(&3) && value.get(20..24) == Some(&[0; 4])
}
