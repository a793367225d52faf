//! The features that a connection asks the kernel for.

use fuser::InitFlags;

use super::adapter::Adapter;

impl Adapter {
    /// Lists the features to ask for, in addition to those that the library asks for itself.
    pub(super) fn wanted(&self) -> Vec<InitFlags> {
        let mut wanted = vec![
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // A file handle names an inode that the kernel may forget, and most inode numbers are hashes, which cannot be looked
            // up. So the kernel hands out no handles. Otherwise some would become stale when its memory is short.
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        if self.vfs.xattrs() {
            // With these the kernel checks access control lists, and leaves the umask to the daemon: a folder's default list
            // replaces the umask.
            wanted.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        if self.writeback {
            // A kernel that caches writes would accept them for files that cannot be written, and keep its own size of those.
            // So it has to ask for every open.
            wanted.push(InitFlags::FUSE_WRITEBACK_CACHE);
            // Allows a program to map a file that is opened without the kernel's cache.
            wanted.push(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        } else {
            wanted.push(InitFlags::FUSE_NO_OPEN_SUPPORT);
        }
        // Does not ask for FUSE_HANDLE_KILLPRIV. With it the kernel leaves set-user-id bits to the daemon, and continues to use
        // the mode that it knows: a program that another user has just changed would still run with the rights of its owner.
        // Without it the kernel clears the bits itself, by a request before the write.
        wanted
    }
}
