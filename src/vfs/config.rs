//! The settings of a mounted store.

use std::time::Duration;

use crate::control::Numbering;
use crate::layers::effects::Secret;

/// How the filesystem behaves.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a separate option")]
pub struct VfsConfig {
    /// Owner of files without a recorded owner.
    pub uid: u32,
    /// Group of files without a recorded group.
    pub gid: u32,
    /// Whether files of other users are shown as this user's.
    pub mine: bool,
    /// Whether ledgers are shown with the session secret that some of them hold.
    pub reveal_secrets: bool,
    /// Whether extended attributes are answered at all.
    pub xattrs: bool,
    /// How inodes are numbered.
    pub inodes: Numbering,
    /// Whether nothing may be written, forks included.
    pub read_only: bool,
    /// Whether the kernel caches writes, and sets their times itself.
    pub writeback: bool,
    /// Bytes of parsed file trees to keep in memory.
    pub tree_bytes: u64,
    /// When the mount seals forks automatically.
    pub seal: SealPolicy,
    /// The secret that chains ledgers at a seal. Without it each ledger has its own.
    pub session_secret: Option<Secret>,
}

/// When the mount seals forks automatically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealPolicy {
    /// After this time without writes, and when the mount ends.
    Idle(Duration),
    /// This time after the first unsealed change, and when the mount ends.
    Interval(Duration),
    /// Never.
    Manual,
}

impl SealPolicy {
    /// One word for why the mount seals a fork automatically.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Interval(_) => "interval",
            Self::Manual => "",
        }
    }
}
