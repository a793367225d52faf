//! The features of a connection that a mount chooses.

/// What the kernel and the daemon do for programs on this connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    /// Whether the kernel caches writes (`FUSE_WRITEBACK_CACHE`).
    pub(super) writeback: bool,
    /// Whether a second core may be kept busy while requests come in a row.
    pub(super) spin: bool,
    /// Whether lseek(2) finds holes in files, which costs a request each time.
    pub(super) holes: bool,
}
