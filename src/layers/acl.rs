//! Access control lists, acl(5), in the form of their extended attributes (`linux/posix_acl_xattr.h`).
//!
//! A list gives permissions to single users and groups, apart from the owner, the owning group and all
//! others. If it has a mask, the group bits of the mode are the mask's.

/// The attribute with the list of a file or folder.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The attribute with the list that a folder passes on to new files in it.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = [2, 0, 0, 0];

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads an attribute: 32 bits of version, then entries of 16 bits of tag, 16 of permissions and 32 of
    /// id, all with the low byte first. [`None`] if it is not a list: a list has an entry each for the owner,
    /// the group and the others.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let entries = value.strip_prefix(&VERSION).filter(|entries| entries.len() % 8 == 0)?;
        let number = |entry: &[u8], at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let read = |entry: &[u8]| Entry {
            tag: number(entry, 0),
            permissions: number(entry, 2),
            id: u32::from(number(entry, 4)) | u32::from(number(entry, 6)) << 16,
        };
        let list = Self(entries.chunks_exact(8).map(read).collect());
        let once = |tag| list.0.iter().filter(|entry| entry.tag == tag).count() == 1;
        let known = |entry: &Entry| {
            let tags = [OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHERS];
            tags.contains(&entry.tag) && entry.permissions <= 7
        };
        let sound = [OWNER, GROUP, OTHERS].into_iter().all(once) && list.0.iter().all(known);
        // The mask limits single users and groups.
        let masked = once(MASK) || (list.of(MASK).is_none() && list.is_mode());
        (sound && masked).then_some(list)
    }

    /// The attribute.
    pub fn value(&self) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for Entry { tag, permissions, id } in &self.0 {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn of(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// Whether a mode has the same meaning.
    pub fn is_mode(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, OWNER | GROUP | OTHERS))
    }

    /// The nine permission bits of the mode of a file with this list.
    pub fn mode(&self) -> u16 {
        let group = self.of(MASK).or_else(|| self.of(GROUP));
        let [owner, group, others] = [self.of(OWNER), group, self.of(OTHERS)].map(Option::unwrap_or_default);
        owner << 6 | group << 3 | others
    }

    /// The same for a file that loses the list: the group bits are the owning group's permissions.
    pub fn mode_alone(&self) -> u16 {
        self.mode() & (self.of(GROUP).unwrap_or_default() << 3 | 0o707)
    }

    /// The list as chmod(2) leaves it.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        self.each(|tag, masked, permissions| match tag {
            OWNER => mode >> 6 & 7,
            MASK => mode >> 3 & 7,
            GROUP if !masked => mode >> 3 & 7,
            OTHERS => mode & 7,
            _ => permissions,
        })
    }

    /// The list and the nine permission bits of a new file with `mode` in a folder with this default list.
    /// The umask is ignored then.
    pub fn handed_on(&self, mode: u16) -> (Self, u16) {
        let list = self.each(|tag, masked, permissions| match tag {
            OWNER => permissions & mode >> 6,
            MASK => permissions & mode >> 3,
            GROUP if !masked => permissions & mode >> 3,
            OTHERS => permissions & mode,
            _ => permissions,
        });
        let mode = list.mode();
        (list, mode)
    }

    /// Computes new permissions from an entry's tag, whether there is a mask, and its permissions.
    fn each(&self, new: impl Fn(u16, bool, u16) -> u16) -> Self {
        let masked = self.of(MASK).is_some();
        let change =
            |entry: &Entry| Entry { permissions: new(entry.tag, masked, entry.permissions), ..*entry };
        Self(self.0.iter().map(change).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_ID: u32 = u32::MAX;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect()).value()
    }

    fn plain(owner: u16, group: u16, others: u16) -> Vec<u8> {
        list(&[(OWNER, owner, NO_ID), (GROUP, group, NO_ID), (OTHERS, others, NO_ID)])
    }

    fn masked(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
        list(&[
            (OWNER, owner, NO_ID),
            (USER, user, 1234),
            (GROUP, group, NO_ID),
            (MASK, mask, NO_ID),
            (OTHERS, others, NO_ID),
        ])
    }

    fn changed(value: &[u8], mode: u16) -> Vec<u8> {
        Acl::parse(value).unwrap().with_mode(mode).value()
    }

    #[test]
    fn a_list_is_changed_as_chmod_changes_it() {
        let before = masked(7, 6, 4, 6, 4);
        assert_eq!(changed(&before, 0o600), masked(6, 6, 4, 0, 0));
        assert_eq!(changed(&plain(6, 4, 4), 0o751), plain(7, 5, 1));
        // Compared with the kernel, where the filesystem of temporary files has such lists.
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = ACCESS.escape_ascii().to_string();
        if rustix::fs::setxattr(file.path(), &name, &before, rustix::fs::XattrFlags::empty()).is_ok() {
            rustix::fs::chmod(file.path(), 0o640.into()).unwrap();
            let mut after = vec![0; 200];
            let length = rustix::fs::getxattr(file.path(), &name, &mut after).unwrap();
            assert_eq!(changed(&before, 0o640), after[..length]);
        }
    }

    #[test]
    fn a_mode_says_what_its_list_says_as_far_as_it_can() {
        let parse = |value: &[u8]| Acl::parse(value).unwrap();
        assert!(parse(&plain(6, 4, 0)).is_mode() && parse(&plain(6, 4, 0)).mode() == 0o640);
        let shared = parse(&masked(6, 6, 4, 6, 4));
        assert!(!shared.is_mode() && shared.mode() == 0o664 && shared.mode_alone() == 0o644);
        assert_eq!(parse(&masked(6, 6, 7, 4, 0)).mode_alone(), 0o640);
    }

    #[test]
    fn new_files_have_the_rights_that_both_directory_and_maker_allow() {
        let handed_on = |value: &[u8], mode| {
            let (list, mode) = Acl::parse(value).unwrap().handed_on(mode);
            (list.value(), mode)
        };
        assert_eq!(handed_on(&masked(7, 7, 5, 7, 5), 0o640), (masked(6, 7, 5, 4, 0), 0o640));
        assert_eq!(handed_on(&plain(7, 5, 0), 0o666), (plain(6, 4, 0), 0o640));
    }

    #[test]
    fn an_invalid_access_list_is_refused() {
        let short = list(&[(OWNER, 7, NO_ID), (GROUP, 7, NO_ID)]);
        let twice = list(&[(OWNER, 7, 0), (OWNER, 7, 0), (GROUP, 7, 0), (OTHERS, 7, 0)]);
        let unmasked = list(&[(OWNER, 7, 0), (USER, 7, 5), (GROUP, 7, 0), (OTHERS, 7, 0)]);
        let odd = [plain(8, 0, 0), list(&[(OWNER, 7, 0), (GROUP, 7, 0), (OTHERS, 7, 0), (64, 7, 0)])];
        for value in [short, twice, unmasked].iter().chain(&odd) {
            assert_eq!(Acl::parse(value), None, "{value:?}");
        }
        for value in [&b""[..], b"\x01\0\0\0", b"\x02\0\0\0abc", b"\x02\0\0\0"] {
            assert_eq!(Acl::parse(value), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_that_comes_back_or_none(rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let value = [&VERSION[..], &rest].concat();
            if let Some(acl) = Acl::parse(&value) {
                prop_assert_eq!(acl.value(), value);
            }
        }
    }
}
