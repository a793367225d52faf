//! What a daemon and commands share: how a mount is asked, forks on disk, and the directories of a user.

pub(crate) mod calls;
pub(crate) mod dirs;
pub(crate) mod forks;
