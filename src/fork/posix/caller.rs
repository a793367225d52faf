//! Decides when a change of a file clears its set-user-id and set-group-id bits.
//!
//! The rules are those of the kernel (`setattr_should_drop_suidgid` in its fs/attr.c). A filesystem has to follow them itself:
//! the kernel never asks a FUSE daemon to clear a set-group-id bit without group execution.

use crate::fork::inode::stripped;

/// What the rules for set-user-id and set-group-id bits have to know of the process that changes a file.
///
/// `true` stands for a process that is in no group, and `false` for root.
pub trait Caller: Copy {
    /// Whether these bits stay when the caller changes a file's content (`CAP_FSETID`).
    fn keeps_bits(self) -> bool;

    /// Whether the caller is in a group.
    fn is_in(self, gid: u32) -> bool;
}

impl Caller for bool {
    fn keeps_bits(self) -> bool {
        !self
    }

    fn is_in(self, _gid: u32) -> bool {
        false
    }
}

/// Returns the mode of a regular file of group `gid` after `caller` has changed its content.
pub(super) fn mode_after_write(mode: u16, gid: u32, caller: impl Caller) -> u16 {
    // Most files have no such bits; then the caller's groups are not looked up.
    if mode & 0o6000 == 0 || caller.keeps_bits() { mode } else { mode_after_chown(mode, gid, caller) }
}

/// Returns the mode of a regular file of group `gid` after `caller` has changed its owner or group. Root clears the bits as
/// well.
pub(super) fn mode_after_chown(mode: u16, gid: u32, caller: impl Caller) -> u16 {
    let after = stripped(mode);
    if after & 0o2000 != 0 && !caller.is_in(gid) && !caller.keeps_bits() { after & !0o2000 } else { after }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller with one group.
    #[derive(Clone, Copy)]
    struct Member(u32);

    impl Caller for Member {
        fn keeps_bits(self) -> bool {
            false
        }

        fn is_in(self, gid: u32) -> bool {
            gid == self.0
        }
    }

    #[test]
    fn bits_fall_as_in_the_kernel() {
        const STRANGER: bool = true;
        const ROOT: bool = false;
        for (mode, stranger, member) in [
            (0o0777, 0o0777, 0o0777),
            (0o4777, 0o0777, 0o0777),
            (0o2777, 0o0777, 0o0777),
            (0o6777, 0o0777, 0o0777),
            (0o2767, 0o0767, 0o2767),
            (0o6767, 0o0767, 0o2767),
            (0o1666, 0o1666, 0o1666),
        ] {
            assert_eq!(mode_after_write(mode, 7, STRANGER), stranger, "{mode:o}");
            assert_eq!(mode_after_write(mode, 7, Member(7)), member, "{mode:o}");
            assert_eq!(mode_after_write(mode, 7, Member(8)), stranger, "{mode:o}");
            assert_eq!(mode_after_write(mode, 7, ROOT), mode, "{mode:o}");
            assert_eq!(mode_after_chown(mode, 7, ROOT), member, "{mode:o}");
        }
    }
}
