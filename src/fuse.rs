//! The thin adapter between the kernel and the [`Vfs`]: decode, call, reply. No meaning lives here, and no type of
//! the FUSE library leaves this module.

mod mount;
mod mountinfo;
mod options;
mod session;
mod watch;
mod workers;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

pub use mount::{Unmounted, unmount};
pub use mountinfo::{Mounted, mounts};
pub use options::MountOptions;
pub use session::{SessionConfig, serve};

use crate::error::{ErrorKind, Posix};
use crate::layers::world::Kind;
use crate::vfs::{Attr, Data, Entry, Op, Patience, Step, Vfs};
use workers::Workers;

/// Largest write or read in one request, in bytes: what the kernel's `max_pages_limit` allows.
const MAX_REQUEST: u32 = 1 << 20;

/// Requests the kernel may have under way without anyone waiting for them (readahead, mostly).
const MAX_BACKGROUND: u16 = 64;

struct Adapter {
    vfs: Arc<Vfs>,
    workers: Workers,
}

fn errno(kind: ErrorKind) -> Errno {
    Errno::from_i32(kind.errno())
}

/// Runs a handler. A panic must not end the event loop: the reply it dropped answers EIO.
fn guarded(op: Op, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!(
            "a {} request failed by a fault of this program; it was answered with EIO",
            op.name()
        );
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Chardev => FileType::CharDevice,
        Kind::Blockdev => FileType::BlockDevice,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = system_time(attr.mtime_ns);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        // cp looks for holes where this is less than the size.
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn reply_entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &file_attr(&entry.attr), Generation(0));
}

fn reply_data(reply: ReplyData, data: &Data) {
    reply.data(data.bytes());
    data.sent();
}

impl Adapter {
    fn new(vfs: Arc<Vfs>) -> io::Result<Self> {
        Ok(Self { vfs, workers: Workers::start()? })
    }

    fn count(&self, op: Op) {
        self.vfs.metrics().count(op);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One by one: a kernel that lacks one of them works without.
        for wanted in [
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // The daemon alone changes what it shows and says so: sizes need not be asked to drop pages.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!("this kernel lacks {wanted:?}");
            }
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Op::Lookup);
        guarded(Op::Lookup, || match self.vfs.lookup(parent.0, name.as_bytes(), Patience::Brief) {
            Ok(Step::Done(entry)) => reply_entry(reply, &entry),
            Err(kind) => reply.error(errno(kind)),
            Ok(Step::Blocks) => {
                let (vfs, name) = (Arc::clone(&self.vfs), name.as_bytes().to_vec());
                self.workers.run(move || match vfs.lookup(parent.0, &name, Patience::Blocking) {
                    Ok(Step::Done(entry)) => reply_entry(reply, &entry),
                    Ok(Step::Blocks) => reply.error(Errno::EIO),
                    Err(kind) => reply.error(errno(kind)),
                });
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.count(Op::Forget);
        guarded(Op::Forget, || self.vfs.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Op::Getattr);
        guarded(Op::Getattr, || match self.vfs.getattr(ino.0, Patience::Brief) {
            Ok(Step::Done((attr, ttl))) => reply.attr(&ttl, &file_attr(&attr)),
            Err(kind) => reply.error(errno(kind)),
            Ok(Step::Blocks) => {
                let vfs = Arc::clone(&self.vfs);
                self.workers.run(move || match vfs.getattr(ino.0, Patience::Blocking) {
                    Ok(Step::Done((attr, ttl))) => reply.attr(&ttl, &file_attr(&attr)),
                    Ok(Step::Blocks) => reply.error(Errno::EIO),
                    Err(kind) => reply.error(errno(kind)),
                });
            }
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Op::Setattr);
        guarded(Op::Setattr, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Op::Readlink);
        guarded(Op::Readlink, || match self.vfs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Op::Mknod);
        guarded(Op::Mknod, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Op::Mkdir);
        guarded(Op::Mkdir, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::Unlink);
        guarded(Op::Unlink, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::Rmdir);
        guarded(Op::Rmdir, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        self.count(Op::Symlink);
        guarded(Op::Symlink, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Rename);
        guarded(Op::Rename, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn link(&self, _req: &Request, ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        self.count(Op::Link);
        guarded(Op::Link, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::Open);
        // Once, and the kernel opens without asking from then on.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Op::Read);
        guarded(Op::Read, || match self.vfs.read(ino.0, offset, size, Patience::Brief) {
            Ok(Step::Done(data)) => reply_data(reply, &data),
            Err(kind) => reply.error(errno(kind)),
            Ok(Step::Blocks) => {
                let vfs = Arc::clone(&self.vfs);
                self.workers.run(move || match vfs.read(ino.0, offset, size, Patience::Blocking) {
                    Ok(Step::Done(data)) => reply_data(reply, &data),
                    Ok(Step::Blocks) => reply.error(Errno::EIO),
                    Err(kind) => reply.error(errno(kind)),
                });
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Op::Write);
        guarded(Op::Write, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Release);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Op::Fsync);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::Opendir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Op::Readdir);
        guarded(Op::Readdir, || {
            let listed = self.vfs.readdir(ino.0, offset, false, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(kind) => reply.error(errno(kind)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(Op::Readdirplus);
        guarded(Op::Readdirplus, || {
            let listed = self.vfs.readdir(ino.0, offset, true, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                let (attr, ttl) = match &entry.entry {
                    // One lifetime for both is all that can be told here.
                    Some(found) => (file_attr(&found.attr), found.entry_ttl.min(found.attr_ttl)),
                    None => (name_only(entry.ino, entry.kind), Duration::ZERO),
                };
                !reply.add(INodeNo(entry.ino), entry.cookie, name, &ttl, &attr, Generation(0))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(kind) => reply.error(errno(kind)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Releasedir);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Op::Fsyncdir);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Op::Statfs);
        guarded(Op::Statfs, || match self.vfs.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                255,
                s.f_frsize as u32,
            ),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Setxattr);
        guarded(Op::Setxattr, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        self.count(Op::Getxattr);
        // ENOSYS once, and the kernel does not ask again: `ls -l` would, for every file, every time.
        reply.error(if self.vfs.xattrs() {
            errno(ErrorKind::Posix(Posix::NoAttribute))
        } else {
            Errno::ENOSYS
        });
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Op::Listxattr);
        match (self.vfs.xattrs(), size) {
            (false, _) => reply.error(Errno::ENOSYS),
            (true, 0) => reply.size(0),
            (true, _) => reply.data(&[]),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::Removexattr);
        guarded(Op::Removexattr, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Op::Create);
        guarded(Op::Create, || reply.error(errno(self.vfs.refuse_change(parent.0))));
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Fallocate);
        guarded(Op::Fallocate, || reply.error(errno(self.vfs.refuse_change(ino.0))));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Op::CopyFileRange);
        guarded(Op::CopyFileRange, || reply.error(errno(self.vfs.refuse_change(ino_out.0))));
    }
}

/// `.` and `..`: the kernel wants an inode for them and looks at nothing else.
fn name_only(ino: u64, kind: Kind) -> FileAttr {
    file_attr(&Attr { ino, kind, mode: 0, nlink: 0, size: 0, mtime_ns: 0, uid: 0, gid: 0, rdev: 0 })
}
