//! Decides which owner a file shows: the recorded one, or the mounting user instead of another user.
//!
//! This changes only the shown owner, and with it what the kernel allows the user to do. The recorded owner, which a seal
//! writes, stays the same until a program changes it.

/// Whether an operation has set a file's owner and group since the store was mounted. If so, they are shown as set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The owner.
    pub uid: bool,
    /// The group.
    pub gid: bool,
}

/// How recorded owners are shown.
#[derive(Clone, Debug)]
pub struct Owners {
    user: u32,
    group: u32,
    /// The groups of the user, if other users' files are shown as the user's own.
    groups: Option<Vec<u32>>,
}

impl Owners {
    /// Shows recorded owners. Files without one belong to the user.
    pub fn kept(user: u32, group: u32) -> Self {
        Self { user, group, groups: None }
    }

    /// Shows recorded owners. Files without one belong to the user of this program.
    pub(super) fn of_process() -> Self {
        Self::kept(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    /// Shows the user as the owner of other users' files.
    pub fn mine(user: u32, group: u32) -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        let groups = groups.into_iter().map(rustix::process::Gid::as_raw).chain([group]).collect();
        Self { user, group, groups: Some(groups) }
    }

    /// Whether other users' files are shown as the user's.
    pub fn are_mine(&self) -> bool {
        self.groups.is_some()
    }

    /// The recorded owner and group, or the user and group for an unset one.
    pub fn recorded(&self, uid: Option<u32>, gid: Option<u32>) -> (u32, u32) {
        (uid.unwrap_or(self.user), gid.unwrap_or(self.group))
    }

    /// The owner and group that are shown.
    pub fn shown(&self, uid: Option<u32>, gid: Option<u32>, given: Given) -> (u32, u32) {
        let (owner, group) = self.recorded(uid, gid);
        let Some(groups) = &self.groups else { return (owner, group) };
        if owner == self.user {
            return (owner, group);
        }
        // A group that the user is in is kept. Any other number may belong to an unrelated group on this machine.
        let keeps_group = given.gid || groups.contains(&group);
        (if given.uid { owner } else { self.user }, if keeps_group { group } else { self.group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_users_files_are_shown_as_the_users_until_their_owner_is_changed() {
        let mine = Owners { user: 10, group: 20, groups: Some(vec![20, 21]) };
        let given = |uid, gid| Given { uid, gid };
        let none = Given::default();
        assert_eq!(mine.shown(None, None, none), (10, 20));
        assert_eq!(mine.shown(Some(0), Some(0), none), (10, 20));
        assert_eq!(mine.shown(Some(0), Some(21), none), (10, 21));
        assert_eq!(mine.shown(Some(10), Some(99), none), (10, 99), "it is the user's own");
        assert_eq!(mine.shown(Some(5), Some(6), given(true, true)), (5, 6));
        assert_eq!(mine.shown(Some(5), Some(6), given(false, true)), (10, 6));
        assert_eq!(mine.shown(Some(5), Some(6), given(true, false)), (5, 20));
        assert_eq!(mine.recorded(Some(0), None), (0, 20));
        let kept = Owners::kept(10, 20);
        assert_eq!(kept.shown(Some(0), Some(0), none), (0, 0));
        assert_eq!(kept.shown(None, Some(3), none), (10, 3));
    }
}
