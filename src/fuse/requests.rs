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
use super::convert::{
    errno, file_attr, file_type, kind_of, name_only, nanoseconds, permissions, process, set_time,
};
use super::guard::guarded;
use super::reply::{
    answer_attr, answer_created, answer_data, answer_empty, answer_entry, answer_xattr, opened,
};
use crate::sync::wait;
use crate::vfs::{Allocate, Kind, NewFile, Op, Outcome, RenameMode, SetAttr, Vfs, Writer, XattrMode};

/// The largest read or write in one request, in bytes: the limit of the kernel's `max_pages_limit`.
const MAX_REQUEST: u32 = 1 << 20;

/// The most requests in the kernel's background queue, for which no program waits (mostly readahead).
const MAX_BACKGROUND: u16 = 64;

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Adds the flags one by one, since a kernel may lack some of them.
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
        // A copy that can go to a worker; names are short.
        let name = name.as_bytes().to_vec();
        if self.announces(req) {
            let call = move |vfs: &Vfs| vfs.lookup_announced(parent.0, &name);
            return self.announced((Op::Lookup, req), reply, call, answer_entry);
        }
        let call = move |vfs: &Vfs| vfs.lookup(parent.0, &name);
        self.attempt(Op::Lookup, req, reply, call, answer_entry);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        // The request has no answer, but the event loop must not wait either.
        wait::never();
        self.vfs.metrics().count(Op::Forget);
        guarded(Op::Forget, || {
            let forgotten = self.vfs.forget(ino.0, nlookup);
            if forgotten.is_of_a_discarded_fork() {
                // Dropping a fork's last inode removes its files.
                self.workers.run(move || drop(forgotten));
            }
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.attempt(Op::Getattr, req, reply, move |vfs: &Vfs| vfs.getattr(ino.0), answer_attr);
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
        let _request = self.begin(Op::Setattr, req);
        let set = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(nanoseconds),
        };
        let by = process(req);
        let call = move |vfs: &Vfs| vfs.setattr(ino.0, &set, by);
        guarded(Op::Setattr, || self.finish(Op::Setattr, reply, call(&self.vfs), || call, answer_attr));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let answer = |reply: ReplyData, target: Outcome<Vec<u8>>| match target {
            Ok(target) => reply.data(&target),
            Err(kind) => reply.error(errno(kind)),
        };
        self.attempt(Op::Readlink, req, reply, move |vfs: &Vfs| vfs.readlink(ino.0), answer);
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
        let _request = self.begin(Op::Unlink, req);
        guarded(Op::Unlink, || {
            let attempt = self.vfs.unlink(parent.0, name.as_bytes());
            let again = || {
                let name = name.as_bytes().to_vec();
                move |vfs: &Vfs| vfs.unlink(parent.0, &name)
            };
            self.finish(Op::Unlink, reply, attempt, again, answer_empty);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.announces(req) {
            return self.removed(Op::Rmdir, req, parent, name, reply);
        }
        let _request = self.begin(Op::Rmdir, req);
        self.removed_folder(parent, name, reply);
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
        if self.announces(req) {
            let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
            let call = move |vfs: &Vfs| vfs.rename_for_command(parent.0, &name, newparent.0, &newname);
            return self.announced((Op::Rename, req), reply, call, answer_empty);
        }
        let _request = self.begin(Op::Rename, req);
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
        self.renamed((parent, name), (newparent, newname), mode, reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _request = self.begin(Op::Link, req);
        guarded(Op::Link, || {
            let attempt = self.vfs.link(ino.0, newparent.0, newname.as_bytes());
            let again = || {
                let newname = newname.as_bytes().to_vec();
                move |vfs: &Vfs| vfs.link(ino.0, newparent.0, &newname)
            };
            self.finish(Op::Link, reply, attempt, again, answer_entry);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.begin(Op::Open, req);
        if !self.writeback {
            // After one such answer the kernel opens files without asking.
            return reply.error(Errno::ENOSYS);
        }
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        guarded(Op::Open, || match self.vfs.open(ino.0, writes) {
            Ok(()) => reply.opened(FileHandle(0), opened(&self.vfs, self.writeback, ino.0, writes)),
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
        self.attempt(Op::Read, req, reply, move |vfs: &Vfs| vfs.read(ino.0, offset, size), answer_data);
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
        let _request = self.begin(Op::Write, req);
        // The kernel does not say which process changed the pages of a mapping that it writes.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let by = if cached { Writer::Pages } else { Writer::Call(process(req)) };
        guarded(Op::Write, || match self.vfs.write(ino.0, offset, data, by) {
            Ok(written) => reply.written(written as u32),
            attempt => self.write_unfinished(attempt, (ino, offset, data, by), reply),
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
        let _request = self.begin(Op::Flush, req);
        if self.writeback {
            // Nothing to do: earlier writes have been answered. Without this request close(2) would succeed on a dead daemon.
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
        let _request = self.begin(Op::Release, req);
        reply.ok();
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.attempt(Op::Fsync, req, reply, move |vfs: &Vfs| vfs.fsync(ino.0), answer_empty);
    }

    fn opendir(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.begin(Op::Opendir, req);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let fill = move |vfs: &Vfs, reply: &mut ReplyDirectory| {
            vfs.readdir(ino.0, offset, false, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name)
            })
        };
        self.list(Op::Readdir, req, reply, fill, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(kind) => reply.error(errno(kind)),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let writeback = self.writeback;
        let fill = move |vfs: &Vfs, reply: &mut ReplyDirectoryPlus| {
            vfs.readdir(ino.0, offset, true, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                let (attr, ttl) = match &entry.entry {
                    // A kernel that writes back keeps the first length that it gets for ever.
                    Some(found) if writeback && entry.kind == Kind::File && found.attr_ttl.is_zero() => {
                        (name_only(entry.ino, entry.kind), Duration::ZERO)
                    }
                    // This answer has room for one lifetime, for both name and attributes.
                    Some(found) => (file_attr(&found.attr), found.entry_ttl.min(found.attr_ttl)),
                    // For `.` and `..` the kernel uses only the name.
                    None if matches!(entry.name, b"." | b"..") => {
                        (name_only(entry.ino, entry.kind), Duration::ZERO)
                    }
                    // The entry was not looked up, so the kernel must not forget it either.
                    None => (name_only(vfs.unused(), entry.kind), Duration::ZERO),
                };
                !reply.add(INodeNo(entry.ino), entry.cookie, name, &ttl, &attr, Generation(0))
            })
        };
        self.list(Op::Readdirplus, req, reply, fill, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(kind) => reply.error(errno(kind)),
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
        let _request = self.begin(Op::Releasedir, req);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.attempt(Op::Fsyncdir, req, reply, move |vfs: &Vfs| vfs.fsync(ino.0), answer_empty);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.attempt(Op::Statfs, req, reply, Vfs::statfs, |reply: ReplyStatfs, space| match space {
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
        let _request = self.begin(Op::Setxattr, req);
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
            let attempt = self.vfs.setxattr(ino.0, name.as_bytes(), value, mode, by);
            let again = || {
                let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
                move |vfs: &Vfs| vfs.setxattr(ino.0, &name, &value, mode, by)
            };
            self.finish(Op::Setxattr, reply, attempt, again, answer_empty);
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _request = self.begin(Op::Getxattr, req);
        // After ENOSYS the kernel does not ask again. Otherwise `ls -l` would make it ask for every file, every time.
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Getxattr, || {
            let attempt = self.vfs.getxattr(ino.0, name.as_bytes());
            let again = || {
                let name = name.as_bytes().to_vec();
                move |vfs: &Vfs| vfs.getxattr(ino.0, &name)
            };
            self.finish(Op::Getxattr, reply, attempt, again, move |reply, value| {
                answer_xattr(reply, size, value);
            });
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _request = self.begin(Op::Listxattr, req);
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Listxattr, || {
            let call = move |vfs: &Vfs| vfs.listxattr(ino.0);
            self.finish(
                Op::Listxattr,
                reply,
                call(&self.vfs),
                || call,
                move |reply, names| {
                    let joined = names.map(|names| {
                        names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect()
                    });
                    answer_xattr(reply, size, joined);
                },
            );
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.begin(Op::Removexattr, req);
        if !self.vfs.xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        guarded(Op::Removexattr, || {
            let attempt = self.vfs.removexattr(ino.0, name.as_bytes());
            let again = || {
                let name = name.as_bytes().to_vec();
                move |vfs: &Vfs| vfs.removexattr(ino.0, &name)
            };
            self.finish(Op::Removexattr, reply, attempt, again, answer_empty);
        });
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
        let _request = self.begin(Op::Create, req);
        let new = self.new_file(req, Kind::File, mode, umask);
        guarded(Op::Create, || match self.vfs.create(parent.0, name.as_bytes(), &new) {
            Ok(entry) => {
                let flags = opened(&self.vfs, self.writeback, entry.attr.ino, true);
                answer_created(reply, &entry, flags);
            }
            attempt => {
                let again = || {
                    let name = name.as_bytes().to_vec();
                    move |vfs: &Vfs| vfs.create(parent.0, &name, &new)
                };
                let (vfs, writeback) = (Arc::clone(&self.vfs), self.writeback);
                self.finish(Op::Create, reply, attempt, again, move |reply, made| match made {
                    Ok(entry) => {
                        answer_created(reply, &entry, opened(&vfs, writeback, entry.attr.ino, true));
                    }
                    Err(kind) => reply.error(errno(kind)),
                });
            }
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
        let _request = self.begin(Op::Fallocate, req);
        let what = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::KeepSize,
            PUNCH => Allocate::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::ZeroRange { keep_size: false },
            ZERO_KEEP => Allocate::ZeroRange { keep_size: true },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let by = process(req);
        let call = move |vfs: &Vfs| vfs.fallocate(ino.0, offset, length, what, by);
        guarded(Op::Fallocate, || {
            self.finish(Op::Fallocate, reply, call(&self.vfs), || call, answer_empty);
        });
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
        let _request = self.begin(Op::Lseek, req);
        if !self.holes {
            // After ENOSYS the kernel takes all of a file for data. One that caches writes would ask before it hands them in.
            return reply.error(Errno::ENOSYS);
        }
        let (Ok(offset), libc::SEEK_DATA | libc::SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return reply.error(Errno::EINVAL);
        };
        let call = move |vfs: &Vfs| vfs.seek(ino.0, offset, whence == libc::SEEK_DATA);
        let answer = |reply: ReplyLseek, found: Outcome<u64>| match found {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(kind) => reply.error(errno(kind)),
        };
        guarded(Op::Lseek, || self.finish(Op::Lseek, reply, call(&self.vfs), || call, answer));
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (runs, writes) = (mask.contains(AccessFlags::X_OK), mask.contains(AccessFlags::W_OK));
        let call = move |vfs: &Vfs| vfs.access_by_root(ino.0, runs, writes);
        self.attempt(Op::Access, req, reply, call, answer_empty);
    }

    /// Refuses all ioctls. It must answer each time: for every file that Python opens, it asks whether the file is a terminal.
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
        let _request = self.begin(Op::Ioctl, req);
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
        let _request = self.begin(Op::CopyFileRange, req);
        // The reply has 32 bits for the length.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        let by = process(req);
        let call = move |vfs: &Vfs| vfs.copy_range(ino_in.0, offset_in, ino_out.0, offset_out, len, by);
        let answer = |reply: ReplyWrite, copied: Outcome<u64>| match copied {
            Ok(copied) => reply.written(copied as u32),
            Err(kind) => reply.error(errno(kind)),
        };
        guarded(Op::CopyFileRange, || {
            self.finish(Op::CopyFileRange, reply, call(&self.vfs), || call, answer);
        });
    }
}
