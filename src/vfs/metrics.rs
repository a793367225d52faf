//! Counters of requests by kind.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ops {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A kind of request from the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Op { $($variant),* }

        impl Op {
            /// All kinds, in the order of their counters.
            pub const ALL: &[Op] = &[$(Op::$variant),*];

            /// The name under which it is counted, that of the FUSE request.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$variant => $name),* }
            }
        }
    };
}

ops! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Setattr "setattr", Readlink "readlink", Symlink "symlink",
    Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Rename "rename", Link "link", Open "open",
    Read "read", Write "write", Statfs "statfs", Release "release", Fsync "fsync", Setxattr "setxattr",
    Getxattr "getxattr", Listxattr "listxattr", Removexattr "removexattr", Flush "flush", Opendir "opendir",
    Readdir "readdir", Readdirplus "readdirplus", Releasedir "releasedir", Fsyncdir "fsyncdir", Create "create",
    Fallocate "fallocate", Lseek "lseek", CopyFileRange "copy_file_range", Ioctl "ioctl",
    Access "access",
}

/// The counters of one mount.
#[derive(Debug)]
pub struct Metrics {
    requests: Vec<AtomicU64>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self { requests: Op::ALL.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts a request.
    pub fn count(&self, op: Op) {
        self.requests[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of one kind so far.
    pub fn requests(&self, op: Op) -> u64 {
        self.requests[op as usize].load(Ordering::Relaxed)
    }
}
