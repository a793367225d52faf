//! The files of a fork: attributes, and what the kernel knows of files.

use std::sync::Arc;

use super::caller::{Caller, mode_after_chown, mode_after_write};
use super::making::Making;
use super::policy::{self, may_clear};
use super::store::{MAX_SIZE, drop_capability};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::core::Core;
use crate::fork::errors::posix;
use crate::fork::ino::Ino;
use crate::fork::inode::{Attr, CAPABILITY, Name, Protection};
use crate::fork::record::{Attrs, Record};
use crate::layers::acl::{self, Acl};
use crate::layers::world::Kind;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::tree::{NodeId, Tree};

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

/// The files of a fork, with POSIX operations on them. A [`Fork`](crate::fork::Fork) dereferences to its files.
pub struct Files {
    pub(in crate::fork) core: Arc<Core>,
    /// Whether sealed files keep their names; see [`Files::set_guarded`].
    guarded: AtomicBool,
    /// The source that they are being copied from, while that lasts.
    pub(super) making: Mutex<Making>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("fork", &self.core.uid).finish_non_exhaustive()
    }
}

impl Files {
    pub(in crate::fork) fn new(core: Core) -> Self {
        Self { core: Arc::new(core), guarded: AtomicBool::new(true), making: Mutex::default() }
    }

    /// Sets attributes, as root does. A new owner clears suid and sgid.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.setattr_by(ino, set, false)
    }

    /// Sets attributes. A new owner or length clears suid and sgid.
    pub fn setattr_by(&self, ino: Ino, set: &SetAttr, by: impl Caller) -> Result<Attr> {
        self.core.may_write()?;
        self.core.settle(ino)?;
        let time = self.core.now();
        let at = |set: Option<SetTime>| {
            set.map(|set| match set {
                SetTime::Now => time,
                SetTime::At(time) => time,
            })
        };
        let mut live = self.core.live.write();
        let inode = live.inode_or_stale(ino)?;
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
            keeps = self.core.shared.writeback && inode.content().is_some_and(|c| c.known_size() == size);
            mtime = mtime.or((!keeps).then_some(time));
        }
        if inode.guard == Protection::Fixed && mode.is_some_and(|mode| mode & 0o222 != 0) {
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
            drop_capability(&mut live, ino, &inode, time)?;
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
        let inode = live.inode_or_stale(ino)?;
        Ok(live.attr_of(ino, &inode))
    }

    /// An extended attribute's value.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.core.live.read().inode_or_stale(ino)?;
        inode.xattrs.get(name).cloned().ok_or_else(|| no_attribute(name))
    }

    /// Names of a file's extended attributes, sorted.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.core.live.read().inode_or_stale(ino)?.xattrs.keys().cloned().collect())
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
        self.core.may_write()?;
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
        let mut live = self.core.live.write();
        let inode = live.inode_or_stale(ino)?;
        match (mode, inode.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => {
                return Err(Error::new(ErrorKind::AlreadyExists, "the attribute exists already"));
            }
            (XattrMode::Replace, false) => return Err(no_attribute(name)),
            _ => {}
        }
        live.commit(Record::Xattr {
            ino,
            name: name.to_vec(),
            value: Some(value.to_vec()),
            time: self.core.now(),
        })
    }

    /// Sets an access control list, and the mode that results from it. A list that is equal to a mode is not
    /// kept.
    fn set_acl(&self, ino: Ino, name: &[u8], value: &[u8], by: impl Caller) -> Result<()> {
        let acl = Acl::parse(value)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the value is not an access control list"))?;
        let mut live = self.core.live.write();
        let inode = live.inode_or_stale(ino)?;
        let (name, time) = (name.to_vec(), self.core.now());
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
            _ if inode.guard == Protection::Fixed => {
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
        self.core.may_write()?;
        let mut live = self.core.live.write();
        if !live.inode_or_stale(ino)?.xattrs.contains_key(name) {
            return Err(no_attribute(name));
        }
        live.commit(Record::Xattr { ino, name: name.to_vec(), value: None, time: self.core.now() })
    }

    /// Fails if a file, or the whole fork, cannot be written at all. The sealed part of an append-only file is not checked.
    pub fn may_be_written(&self, ino: Ino) -> Result<()> {
        self.core.may_write()?;
        let inode = self.core.live.read().inode_or_stale(ino)?;
        if inode.guard == Protection::Fixed { policy::may_change(&inode, 0) } else { Ok(()) }
    }

    /// Notes that the kernel no longer knows the number. A file without a name is then removed, and its space freed.
    pub fn forget(&self, ino: Ino) {
        {
            let live = self.core.live.read();
            if !live.orphans.contains_key(&ino) {
                live.state.forget(ino);
                return;
            }
        }
        // Dropped after the lock is released: the data file may be large.
        let _gone = self.core.live.write().orphans.remove(&ino);
    }

    /// Counts the numbers of unchanged files that are remembered, and the files without a name.
    pub fn remembered(&self) -> (usize, usize) {
        let live = self.core.live.read();
        (live.state.intern.len(), live.orphans.len())
    }

    /// The tree that a file comes from and its place there, if it has one.
    pub fn base_place(&self, ino: Ino) -> Option<(Arc<Tree>, NodeId)> {
        let live = self.core.live.read();
        let node = live.state.base_node(ino)?;
        Some((Arc::clone(&live.state.base.tree), node))
    }

    /// All names of a file: the folder, and the name there.
    pub fn links(&self, ino: Ino) -> Vec<(Ino, Name)> {
        self.core.live.read().inode(ino).map(|inode| inode.links.to_vec()).unwrap_or_default()
    }

    /// Whether it is `effects/ledger.jsonl`, whose entries a seal chains.
    pub fn is_ledger(&self, ino: Ino) -> bool {
        self.core.live.read().state.child(Ino::EFFECTS, b"ledger.jsonl") == Some(ino)
    }

    /// Notes that the kernel may have an outdated length of the ledger.
    pub fn resize(&self) {
        self.core.live.write().resized += 1;
    }

    /// Counts how often the ledger's length has changed without the kernel's knowledge since the fork was read back: by a
    /// seal, or noted by [`Files::resize`]. For any other file it returns 0.
    pub fn resized(&self, ino: Ino) -> u32 {
        let live = self.core.live.read();
        let is_ledger = live.resized > 0 && live.state.child(Ino::EFFECTS, b"ledger.jsonl") == Some(ino);
        if is_ledger { live.resized } else { 0 }
    }

    /// Returns which changes a file allows, and the length from which on bytes can be appended.
    pub fn guard(&self, ino: Ino) -> Result<(Protection, u64)> {
        self.core.settle(ino)?;
        let inode = self.core.live.read().inode_or_stale(ino)?;
        Ok((inode.guard, inode.sealed_len()))
    }

    /// Shows all removed names of the records again. Returns the folders that list more now.
    pub(crate) fn show_records(&self) -> Vec<Ino> {
        // Most forks have none, so this first looks under the read lock, which holds up no readers.
        if self.core.live.read().hidden.is_empty() {
            return Vec::new();
        }
        let mut live = self.core.live.write();
        let epoch = live.state.epoch;
        live.hidden.show_all(epoch)
    }

    /// Counts how often a folder of the records was shown again after its name was removed. Each time it needs a new number,
    /// since the kernel takes the old folder for removed. For any other file this is 0.
    pub fn shown_again(&self, ino: Ino) -> u32 {
        self.core.live.read().hidden.shown_again(ino)
    }

    /// Whether sealed files keep their names.
    pub(super) fn guarded(&self) -> bool {
        self.guarded.load(Ordering::Acquire)
    }

    /// Allows the fork to be removed file by file (`rm -rf`), including the records and the layers' folders.
    /// The content of the records stays (`records`). Not kept over a restart.
    pub fn set_guarded(&self, guarded: bool) {
        self.guarded.store(guarded, Ordering::Release);
    }

    /// Whether the file can never be changed.
    pub fn is_fixed(&self, ino: Ino) -> bool {
        self.core.live.read().inode(ino).is_some_and(|inode| inode.guard == Protection::Fixed)
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
