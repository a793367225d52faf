//! One method for each kind of request: decode, call, reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::Adapter;
use super::reply::{
    answer_attr, answer_data, answer_empty, answer_entry, answer_xattr, kind_of, name_only, permissions,
    process, set_time,
};
use super::watch::tell;
use super::{errno, file_attr, file_type, guarded, nanoseconds};
use crate::vfs::{Allocate, Kind, NewFile, RenameMode, SetAttr, XattrMode};
use crate::vfs::{Op, Vfs, Writer};

/// Largest write or read in one request, in bytes: what the kernel's `max_pages_limit` allows.
const MAX_REQUEST: u32 = 1 << 20;

/// Requests the kernel may have under way without anyone waiting for them (readahead, mostly).
const MAX_BACKGROUND: u16 = 64;

/// Copies of more bytes are left to a worker: they may have to be read.
const INLINE_COPY: u64 = 4 << 20;

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One by one: a kernel that lacks one of them works without.
        for flag in self.wanted() {
            if config.add_capabilities(flag).is_err() {
                tracing::info!("this kernel lacks {flag:?}");
            }
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Owned for the sake of a worker; names are short.
        let name = name.as_bytes().to_vec();
        if self.announces(req) {
            let call = move |vfs: &Vfs| vfs.lookup_announced(parent.0, &name);
            return self.announced((Op::Lookup, req), reply, call, answer_entry);
        }
        self.patiently(
            Op::Lookup,
            req,
            reply,
            move |vfs, patience| vfs.lookup(parent.0, &name, patience),
            answer_entry,
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // Nobody waits for the answer.
        self.vfs.metrics().count(Op::Forget);
        guarded(Op::Forget, || self.vfs.forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.patiently(
            Op::Getattr,
            req,
            reply,
            move |vfs, patience| vfs.getattr(ino.0, patience),
            answer_attr,
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _turn = self.turn(Op::Setattr, req);
        let set = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(nanoseconds),
        };
        guarded(Op::Setattr, || answer_attr(reply, self.vfs.setattr(ino.0, &set, process(req))));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _turn = self.turn(Op::Readlink, req);
        guarded(Op::Readlink, || match self.vfs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of(mode) else {
            return reply.error(Errno::EINVAL);
        };
        let new = NewFile { rdev: u64::from(rdev), ..self.new_file(req, kind, mode, umask) };
        self.make(Op::Mknod, req, parent, name, &new, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let new = self.new_file(req, Kind::Dir, mode, umask);
        if self.announces(req) {
            return self.make(Op::Mkdir, req, parent, name, &new, reply);
        }
        if self.vfs.seals(parent.0) {
            return self.seal(req, parent, name, reply);
        }
        if Vfs::branches(parent.0, name.as_bytes()) {
            return self.branch(req, name, &new, reply);
        }
        self.make(Op::Mkdir, req, parent, name, &new, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.announces(req) {
            return self.removed(Op::Unlink, req, parent, name, reply);
        }
        let _turn = self.turn(Op::Unlink, req);
        guarded(Op::Unlink, || answer_empty(reply, self.vfs.unlink(parent.0, name.as_bytes())));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.announces(req) {
            return self.removed(Op::Rmdir, req, parent, name, reply);
        }
        let _turn = self.turn(Op::Rmdir, req);
        guarded(Op::Rmdir, || answer_empty(reply, self.vfs.rmdir(parent.0, name.as_bytes())));
        self.forks_changed(parent);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let new = NewFile { target, ..NewFile::new(Kind::Symlink, 0o777, req.uid(), req.gid()) };
        self.make(Op::Symlink, req, parent, name, &new, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        const WHITEOUT_NOREPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;
        let _turn = self.turn(Op::Rename, req);
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            libc::RENAME_WHITEOUT | WHITEOUT_NOREPLACE => RenameMode::Whiteout {
                replace: flags.bits() == libc::RENAME_WHITEOUT,
                uid: req.uid(),
                gid: req.gid(),
            },
            _ => return reply.error(Errno::EINVAL),
        };
        guarded(Op::Rename, || {
            let renamed = self.vfs.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), mode);
            answer_empty(reply, renamed);
            if renamed.is_ok() && newparent.0 == Vfs::CONTROL {
                self.fork_discarded(newname);
            }
        });
        self.forks_changed(parent);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _turn = self.turn(Op::Link, req);
        guarded(Op::Link, || answer_entry(reply, self.vfs.link(ino.0, newparent.0, newname.as_bytes())));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.turn(Op::Open, req);
        if !self.writeback {
            // Once, and the kernel opens without asking from then on.
            return reply.error(Errno::ENOSYS);
        }
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        guarded(Op::Open, || match self.vfs.open(ino.0, writes) {
            Ok(()) => reply.opened(FileHandle(0), self.opened(ino.0, writes)),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.patiently(
            Op::Read,
            req,
            reply,
            move |vfs, patience| vfs.read(ino.0, offset, size, patience),
            answer_data,
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _turn = self.turn(Op::Write, req);
        // Pages that the kernel writes for a mapping come from nobody in particular.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let by = if cached { Writer::Pages } else { Writer::Call(process(req)) };
        guarded(Op::Write, || match self.vfs.write(ino.0, offset, data, by) {
            Ok(written) => reply.written(written as u32),
            Err(kind) => {
                reply.error(errno(kind));
                // The kernel may hold pages now that say otherwise than the daemon. Without OPEN nobody was asked
                // whether the file can be written at all. One that writes back holds another length as well, and forgets
                // it once nobody has the file open if no name leads to it.
                let names = if self.writeback { self.vfs.names_of(ino.0) } else { Vec::new() };
                self.notify(move |notifier| {
                    let _ = notifier.inval_inode(ino, 0, 0);
                    tell(notifier, &names);
                });
            }
        });
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turn(Op::Flush, req);
        if self.writeback {
            // A kernel whose daemon is gone drops late writes and has no error for close(2): only this request, which
            // it cannot get rid of either, has one. What was written before it has been answered.
            return reply.ok();
        }
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turn(Op::Release, req);
        reply.ok();
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _turn = self.turn(Op::Fsync, req);
        let vfs = Arc::clone(&self.vfs);
        self.workers.run(move || answer_empty(reply, vfs.fsync(ino.0)));
    }

    fn opendir(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.turn(Op::Opendir, req);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.list(Op::Readdir, req, ino, move |vfs| {
            let listed = vfs.readdir(ino.0, offset, false, &mut |entry| {
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
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let writeback = self.writeback;
        self.list(Op::Readdirplus, req, ino, move |vfs| {
            let listed = vfs.readdir(ino.0, offset, true, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                let (attr, ttl) = match &entry.entry {
                    // A kernel that writes back believes the first length it is told for ever.
                    Some(found) if writeback && entry.kind == Kind::File && found.attr_ttl.is_zero() => {
                        (name_only(entry.ino, entry.kind), Duration::ZERO)
                    }
                    // One lifetime for both is all that can be told here.
                    Some(found) => (file_attr(&found.attr), found.entry_ttl.min(found.attr_ttl)),
                    // Of `.` and `..` the kernel takes the name alone.
                    None if matches!(entry.name, b"." | b"..") => {
                        (name_only(entry.ino, entry.kind), Duration::ZERO)
                    }
                    // Not looked up, and not to be forgotten either.
                    None => (name_only(vfs.nobody(), entry.kind), Duration::ZERO),
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
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turn(Op::Releasedir, req);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _turn = self.turn(Op::Fsyncdir, req);
        let vfs = Arc::clone(&self.vfs);
        self.workers.run(move || answer_empty(reply, vfs.fsync(ino.0)));
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _turn = self.turn(Op::Statfs, req);
        guarded(Op::Statfs, || match self.vfs.statfs() {
            Ok(s) => {
                let (bsize, frsize) = (s.f_bsize as u32, s.f_frsize as u32);
                reply.statfs(s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, bsize, 255, frsize);
            }
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turn(Op::Setxattr, req);
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let by = process(req);
        guarded(Op::Setxattr, || {
            answer_empty(reply, self.vfs.setxattr(ino.0, name.as_bytes(), value, mode, by));
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _turn = self.turn(Op::Getxattr, req);
        // ENOSYS once, and the kernel does not ask again: `ls -l` would, for every file, every time.
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Getxattr, || answer_xattr(reply, size, self.vfs.getxattr(ino.0, name.as_bytes())));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _turn = self.turn(Op::Listxattr, req);
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Listxattr, || {
            let names = self
                .vfs
                .listxattr(ino.0)
                .map(|names| names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect());
            answer_xattr(reply, size, names);
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.turn(Op::Removexattr, req);
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Removexattr, || answer_empty(reply, self.vfs.removexattr(ino.0, name.as_bytes())));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _turn = self.turn(Op::Create, req);
        let new = self.new_file(req, Kind::File, mode, umask);
        guarded(Op::Create, || match self.vfs.create(parent.0, name.as_bytes(), &new) {
            Ok(entry) => {
                let attr = file_attr(&entry.attr);
                let flags = self.opened(entry.attr.ino, true);
                reply.created(&entry.entry_ttl, &attr, Generation(0), FileHandle(0), flags);
            }
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let _turn = self.turn(Op::Fallocate, req);
        let what = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::KeepSize,
            PUNCH => Allocate::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::ZeroRange { keep_size: false },
            ZERO_KEEP => Allocate::ZeroRange { keep_size: true },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let (vfs, by) = (Arc::clone(&self.vfs), process(req));
        let allocate = move || answer_empty(reply, vfs.fallocate(ino.0, offset, length, what, by));
        if length > INLINE_COPY {
            // The disk may have to look for the space.
            self.workers.run(allocate);
        } else {
            guarded(Op::Fallocate, allocate);
        }
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _turn = self.turn(Op::Lseek, req);
        if !self.holes {
            // The kernel never asks again, and takes all of a file for data. One that keeps writes for a while asks without handing
            // them in first.
            return reply.error(Errno::ENOSYS);
        }
        let (Ok(offset), libc::SEEK_DATA | libc::SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return reply.error(Errno::EINVAL);
        };
        guarded(Op::Lseek, || match self.vfs.seek(ino.0, offset, whence == libc::SEEK_DATA) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (runs, writes) = (mask.contains(AccessFlags::X_OK), mask.contains(AccessFlags::W_OK));
        self.patiently(
            Op::Access,
            req,
            reply,
            move |vfs, patience| vfs.access_by_root(ino.0, runs, writes, patience),
            answer_empty,
        );
    }

    /// There are none. Asked all the same, and each time: Python wants to know of every file it opens whether it is a terminal.
    fn ioctl(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _turn = self.turn(Op::Ioctl, req);
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _turn = self.turn(Op::CopyFileRange, req);
        // The reply has room for 32 bits.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let (vfs, by) = (Arc::clone(&self.vfs), process(req));
        let copy = move || match vfs.copy_range(ino_in.0, offset_in, ino_out.0, offset_out, len, by) {
            Ok(copied) => reply.written(copied as u32),
            Err(kind) => reply.error(errno(kind)),
        };
        if len > INLINE_COPY {
            self.workers.run(copy);
        } else {
            guarded(Op::CopyFileRange, copy);
        }
    }
}
