//! Extended attributes in a tree: the key `xattrs` of an entry (added by pfimg), an object of names and
//! base64 values.
//!
//! A name that is not UTF-8 is in `xattrs_b64`, itself in base64.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

const KEY: &str = "xattrs";
const KEY_B64: &str = "xattrs_b64";

/// Names and values.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads the attributes from an entry's unknown keys. A value of another form belongs to another program and
/// is ignored.
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
    fn another_programs_value_under_the_key_is_left_alone() {
        let mut extra = Map::new();
        extra.insert("xattrs".into(), serde_json::json!({"user.a": "no base64", "user.b": 7}));
        assert_eq!(read(&extra), Xattrs::new());
        extra.insert("xattrs".into(), "text".into());
        assert_eq!(read(&extra), Xattrs::new());
    }
}
