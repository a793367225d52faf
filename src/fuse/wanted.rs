//! What the kernel is asked to do for a connection.

use fuser::InitFlags;

use super::adapter::Adapter;

impl Adapter {
    /// What is asked for beyond what the library asks for itself.
    pub(super) fn wanted(&self) -> Vec<InitFlags> {
        let mut wanted = vec![
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // A file handle names an inode that the kernel may forget, and most numbers of inodes are hashes, which lead to no file. So
            // the kernel hands out no handles, rather than some that are stale when its memory is short.
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        if self.vfs.xattrs() {
            // The kernel then goes by access control lists, and leaves the umask to the daemon: a list that a folder hands on counts
            // in its place.
            wanted.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        if self.writeback {
            // The kernel would take writes to what cannot be written, and own the size of it from then on: every
            // open has to be asked for.
            wanted.push(InitFlags::FUSE_WRITEBACK_CACHE);
            // What is opened past its cache can be mapped all the same.
            wanted.push(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        } else {
            wanted.push(InitFlags::FUSE_NO_OPEN_SUPPORT);
        }
        // Not FUSE_HANDLE_KILLPRIV. With it the kernel leaves set-user-id bits to the daemon, and goes on with the mode it knows: a
        // program that another user has just written to would still run with the rights of its owner. Without it the kernel takes
        // the bits away itself, by a request before the write.
        wanted
    }
}
