//! Extended attributes in a tree: the key `xattrs` of an entry (ours), an object of names and base64 values. A name
//! that is not UTF-8 stands in `xattrs_b64`, in base64 itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

const KEY: &str = "xattrs";
const KEY_B64: &str = "xattrs_b64";

/// Names and values.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The attribute with a file's access control list.
pub const ACL: &[u8] = b"system.posix_acl_access";

/// An access control list as chmod(2) leaves it, in the form of `linux/posix_acl_xattr.h`: 32 bits of version, then entries of 16
/// bits of tag, 16 of permissions and 32 of id, all with the low byte first. Nothing if it is no such list.
pub fn acl_with_mode(acl: &[u8], mode: u16) -> Option<Vec<u8>> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const OWNER: u16 = 0x01;
    const GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHERS: u16 = 0x20;
    let entries = acl.strip_prefix(&VERSION).filter(|entries| entries.len() % 8 == 0)?;
    let tag = |entry: &[u8]| u16::from_le_bytes([entry[0], entry[1]]);
    // With a mask the group's bits of the mode are those of the mask.
    let masked = entries.chunks_exact(8).any(|entry| tag(entry) == MASK);
    let mut new = VERSION.to_vec();
    for entry in entries.chunks_exact(8) {
        let permissions = match tag(entry) {
            OWNER => Some(mode >> 6 & 7),
            MASK => Some(mode >> 3 & 7),
            GROUP if !masked => Some(mode >> 3 & 7),
            OTHERS => Some(mode & 7),
            _ => None,
        };
        new.extend_from_slice(&entry[..2]);
        new.extend_from_slice(&permissions.map_or([entry[2], entry[3]], u16::to_le_bytes));
        new.extend_from_slice(&entry[4..]);
    }
    Some(new)
}

/// Reads what an entry's unknown keys say. What has another form is somebody else's, and says nothing.
pub fn read(extra: &Map<String, Value>) -> Xattrs {
    let decode = |text: &str| data_encoding::BASE64.decode(text.as_bytes()).ok();
    let mut found = Xattrs::new();
    for key in [KEY, KEY_B64] {
        for (name, value) in extra.get(key).and_then(Value::as_object).into_iter().flatten() {
            let name = if key == KEY { Some(name.as_bytes().to_vec()) } else { decode(name) };
            if let (Some(name), Some(value)) = (name, value.as_str().and_then(decode)) {
                found.insert(name, value);
            }
        }
    }
    found
}

/// Puts attributes among an entry's keys.
pub fn write(xattrs: &Xattrs, extra: &mut Map<String, Value>) {
    let encode = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let (mut plain, mut odd) = (Map::new(), Map::new());
    for (name, value) in xattrs {
        match std::str::from_utf8(name) {
            Ok(name) => plain.insert(name.to_owned(), encode(value).into()),
            Err(_) => odd.insert(encode(name), encode(value).into()),
        };
    }
    for (key, map) in [(KEY, plain), (KEY_B64, odd)] {
        if !map.is_empty() {
            extra.insert(key.to_owned(), map.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_changed_as_chmod_changes_it() {
        let entry = |tag: u16, permissions: u16, id: u32| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let list = |entries: &[Vec<u8>]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let none = u32::MAX;
        let of = |owner, user, mask, others| {
            list(&[
                entry(1, owner, none),
                entry(2, user, 1234),
                entry(4, 4, none),
                entry(0x10, mask, none),
                entry(0x20, others, none),
            ])
        };
        assert_eq!(acl_with_mode(&of(7, 6, 6, 4), 0o600), Some(of(6, 6, 0, 0)));
        let plain = |owner, group, others| {
            list(&[entry(1, owner, none), entry(4, group, none), entry(0x20, others, none)])
        };
        assert_eq!(acl_with_mode(&plain(6, 4, 4), 0o751), Some(plain(7, 5, 1)));
        for odd in [&b""[..], b"\x01\0\0\0", b"\x02\0\0\0abc"] {
            assert_eq!(acl_with_mode(odd, 0o600), None);
        }
        // The kernel itself, where the filesystem of temporary files has such lists.
        let file = tempfile::NamedTempFile::new().unwrap();
        let (name, before) = (ACL.escape_ascii().to_string(), of(7, 6, 6, 4));
        if rustix::fs::setxattr(file.path(), &name, &before, rustix::fs::XattrFlags::empty()).is_ok() {
            rustix::fs::chmod(file.path(), 0o640.into()).unwrap();
            let mut after = vec![0; 200];
            let length = rustix::fs::getxattr(file.path(), &name, &mut after).unwrap();
            assert_eq!(acl_with_mode(&before, 0o640).as_deref(), Some(&after[..length]));
        }
    }

    #[test]
    fn attributes_come_back_whatever_their_names_and_values() {
        let xattrs = Xattrs::from([
            (b"user.text".to_vec(), b"x".to_vec()),
            (b"user.\xff".to_vec(), vec![0, 255]),
            (b"user.empty".to_vec(), Vec::new()),
        ]);
        let mut extra = Map::new();
        write(&xattrs, &mut extra);
        assert_eq!(extra["xattrs"]["user.text"], "eA==");
        assert_eq!(read(&extra), xattrs);
        assert_eq!(read(&Map::new()), Xattrs::new());
    }

    #[test]
    fn what_somebody_else_means_by_the_key_is_left_alone() {
        let mut extra = Map::new();
        extra.insert("xattrs".into(), serde_json::json!({"user.a": "no base64", "user.b": 7}));
        assert_eq!(read(&extra), Xattrs::new());
        extra.insert("xattrs".into(), "text".into());
        assert_eq!(read(&extra), Xattrs::new());
    }
}
