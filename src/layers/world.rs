//! The world layer's file tree: `fs.tree.v1`, as `pf-world` 1.0 writes it, with optional keys of pfimg.
//!
//! ```json
//! {"kind":"fs.tree.v1","entries":[
//!  {"path":"src","mode":"0755","size":0,"kind":"dir"},
//!  {"path":"src/a.rs","mode":"0644","size":3,"kind":"file","blob":"sha256:…"},
//!  {"path":"l","mode":"0777","size":8,"kind":"symlink","blob":"sha256:…","link_target":"src/a.rs"}]}
//! ```
//! pfimg's keys, which `pf` skips: in an entry `mtime_ns` (nanoseconds since 1970), `uid`, `gid`, `hardlink`
//! (entries with the same number are one file) and `name_b64` (base64 of the last component where that is not
//! UTF-8); next to `entries` `root` (mode, time and owner of the tree's top folder) and `specials` (fifos, sockets
//! and devices, as entries).

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json::Unknown;
use crate::digest::Digest;

/// The value of a tree's `kind`.
pub const FORMAT: &str = "fs.tree.v1";

/// Longest name of a file, in bytes: what Linux allows.
pub const MAX_NAME: usize = 255;

/// Longest link target, in bytes: `PATH_MAX` less its NUL.
pub const MAX_TARGET: usize = 4095;

/// Deepest path, in components. Any path of `PATH_MAX` bytes has fewer.
pub const MAX_DEPTH: usize = 2048;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Regular file.
    File,
    /// Folder.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe; only among `specials`.
    Fifo,
    /// Socket; only among `specials`.
    Socket,
    /// Character device; only among `specials`.
    Chardev,
    /// Block device; only among `specials`.
    Blockdev,
}

/// One entry of a tree. Borrows from the parsed bytes where it can.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    /// Path relative to the tree's root, `/` between components. Not checked; see [`refuse_path`].
    pub path: Cow<'a, str>,
    /// Permission bits, at most `0o7777`.
    pub mode: u16,
    /// Length of the content in bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
    /// The content; for symlinks the target's text, if at all.
    pub blob: Option<Digest>,
    /// Target of a symlink.
    pub link_target: Option<Cow<'a, str>>,
    /// Target of a symlink where it is not UTF-8 (`link_target_b64`, added by pfimg).
    pub link_target_b64: Option<Vec<u8>>,
    /// Modification time in nanoseconds since 1970, where recorded.
    pub mtime_ns: Option<i64>,
    /// Owner, where recorded.
    pub uid: Option<u32>,
    /// Group, where recorded.
    pub gid: Option<u32>,
    /// Entries with the same number are the same file.
    pub hardlink: Option<u64>,
    /// The last component's bytes, where they are not UTF-8.
    pub name_b64: Option<Vec<u8>>,
    /// Device number, of devices.
    pub rdev: Option<u64>,
    /// Keys this program does not know.
    pub extra: Map<String, Value>,
}

impl<'a> Entry<'a> {
    /// An entry with only the required keys.
    pub fn new(path: impl Into<Cow<'a, str>>, kind: Kind, mode: u16) -> Self {
        Self {
            path: path.into(),
            mode,
            size: 0,
            kind,
            blob: None,
            link_target: None,
            link_target_b64: None,
            mtime_ns: None,
            uid: None,
            gid: None,
            hardlink: None,
            name_b64: None,
            rdev: None,
            extra: Map::new(),
        }
    }

    /// The entry with nothing borrowed.
    pub fn into_owned(self) -> Entry<'static> {
        Entry {
            path: Cow::Owned(self.path.into_owned()),
            link_target: self.link_target.map(|target| Cow::Owned(target.into_owned())),
            mode: self.mode,
            size: self.size,
            kind: self.kind,
            blob: self.blob,
            link_target_b64: self.link_target_b64,
            mtime_ns: self.mtime_ns,
            uid: self.uid,
            gid: self.gid,
            hardlink: self.hardlink,
            name_b64: self.name_b64,
            rdev: self.rdev,
            extra: self.extra,
        }
    }

    /// The link's target in bytes, if it has one.
    pub fn target(&self) -> Option<&[u8]> {
        self.link_target_b64.as_deref().or_else(|| self.link_target.as_deref().map(str::as_bytes))
    }
}

/// The attributes that a tree records for its root folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// Octal permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Modification time in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<i64>,
    /// Owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The parts of a tree apart from its entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// The root folder, where recorded.
    pub root: Option<Root>,
    /// Keys this program does not know.
    pub extra: Map<String, Value>,
}

/// Parses permission bits: octal text, with or without type bits.
pub fn parse_mode(text: &str) -> Option<u16> {
    let valid = !text.is_empty() && text.len() <= 8 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let bits = valid.then(|| u32::from_str_radix(text, 8).ok()).flatten()?;
    u16::try_from(bits & 0o7777).ok()
}

/// Says why `path` cannot be shown in a tree, or nothing if it can.
pub fn refuse_path(path: &str) -> Option<Cow<'static, str>> {
    if path.is_empty() {
        return Some("the path is empty".into());
    }
    if path.starts_with('/') {
        return Some("the path is absolute".into());
    }
    let mut depth = 0;
    for component in path.split('/') {
        depth += 1;
        if let Some(why) = refuse_name(component.as_bytes()) {
            return Some(why);
        }
    }
    (depth > MAX_DEPTH).then(|| format!("the path is {depth} folders deep, more than {MAX_DEPTH}").into())
}

/// Says why `name` cannot be a file's name, or nothing if it can.
pub fn refuse_name(name: &[u8]) -> Option<Cow<'static, str>> {
    match name {
        b"" => Some("a component of the path is empty".into()),
        b"." | b".." => Some("the path contains . or ..".into()),
        _ if name.len() > MAX_NAME => {
            Some(format!("a component of the path is {} bytes long, more than {MAX_NAME}", name.len()).into())
        }
        _ if name.contains(&0) => Some("the path contains a NUL byte".into()),
        _ if name.contains(&b'/') => Some("a name contains a slash".into()),
        _ => None,
    }
}

/// Reads a tree's entries one by one, specials included, without keeping them. Stops at the callback's error.
pub fn visit(
    bytes: &[u8],
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), FormatError>,
) -> Result<Header, FormatError> {
    let mut refused = None;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let header = Tree { each, refused: &mut refused }
        .deserialize(&mut deserializer)
        .and_then(|header| deserializer.end().map(|()| header));
    match (refused, header) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(FormatError::new(FORMAT, "", error.to_string())),
        (None, Ok(header)) => Ok(header),
    }
}

/// A whole tree in memory, for writing or changing it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FsTree {
    /// The parts apart from the entries.
    pub header: Header,
    /// Files, folders and symlinks.
    pub entries: Vec<Entry<'static>>,
    /// Fifos, sockets and devices.
    pub specials: Vec<Entry<'static>>,
}

impl FsTree {
    /// Reads a tree.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut tree = Self::default();
        tree.header = visit(bytes, &mut |entry| {
            match entry.kind {
                Kind::File | Kind::Dir | Kind::Symlink => tree.entries.push(entry.into_owned()),
                _ => tree.specials.push(entry.into_owned()),
            }
            Ok(())
        })?;
        Ok(tree)
    }

    /// Writes it: compact JSON, keys in `pf`'s order, then pfimg's; unneeded keys are left out.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        serde_json::to_vec(self).map_err(|e| FormatError::new(FORMAT, "", e.to_string()))
    }
}

impl Serialize for FsTree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", FORMAT)?;
        map.serialize_entry("entries", &self.entries)?;
        if let Some(root) = &self.header.root {
            map.serialize_entry("root", root)?;
        }
        if !self.specials.is_empty() {
            map.serialize_entry("specials", &self.specials)?;
        }
        for (key, value) in &self.header.extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("path", &self.path)?;
        map.serialize_entry("mode", &format_args!("{:04o}", self.mode).to_string())?;
        map.serialize_entry("size", &self.size)?;
        map.serialize_entry("kind", &self.kind)?;
        macro_rules! optional {
            ($($key:literal: $value:expr),* $(,)?) => {$(
                if let Some(value) = &$value {
                    map.serialize_entry($key, value)?;
                }
            )*};
        }
        optional! {
            "blob": self.blob,
            "link_target": self.link_target,
            "link_target_b64": self.link_target_b64.as_deref().map(to_base64),
            "mtime_ns": self.mtime_ns,
            "uid": self.uid,
            "gid": self.gid,
            "hardlink": self.hardlink,
            "name_b64": self.name_b64.as_deref().map(to_base64),
            "rdev": self.rdev,
        }
        for (key, value) in &self.extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

fn to_base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

fn from_base64<E: de::Error>(text: &str) -> Result<Vec<u8>, E> {
    data_encoding::BASE64.decode(text.as_bytes()).map_err(|e| E::custom(format!("bad base64: {e}")))
}

/// A string that borrows from the input where it holds no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The document: an object whose `entries` and `specials` go to the callback.
struct Tree<'c, 'r> {
    each: &'c mut dyn FnMut(Entry<'_>) -> Result<(), FormatError>,
    refused: &'r mut Option<FormatError>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_, '_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_, '_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an fs.tree.v1 object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let (mut kind, mut entries, mut specials) = (false, false, false);
        let mut left = Unknown::ALL;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key.0 {
                "kind" => {
                    let Text(value) = map.next_value()?;
                    if value != FORMAT {
                        return Err(de::Error::custom(format!("kind is {value:?}")));
                    }
                    kind = true;
                }
                // With two `entries`, pf would use the last and pfimg would show both: refused.
                "entries" if !entries => {
                    entries = true;
                    map.next_value_seed(Entries { each: self.each, refused: self.refused, specials: false })?;
                }
                "specials" if !specials => {
                    specials = true;
                    map.next_value_seed(Entries { each: self.each, refused: self.refused, specials: true })?;
                }
                "entries" | "specials" => return Err(de::Error::custom("it lists its entries twice")),
                "root" => {
                    let root = map.next_value_seed(Unknown::of(&mut left))?;
                    header.root = Some(serde_json::from_value(root).map_err(de::Error::custom)?);
                }
                other => {
                    let other = other.to_owned();
                    header.extra.insert(other, map.next_value_seed(Unknown::of(&mut left))?);
                }
            }
        }
        if !kind {
            return Err(de::Error::missing_field("kind"));
        }
        if !entries {
            return Err(de::Error::missing_field("entries"));
        }
        Ok(header)
    }
}

struct Entries<'c, 'r> {
    each: &'c mut dyn FnMut(Entry<'_>) -> Result<(), FormatError>,
    refused: &'r mut Option<FormatError>,
    specials: bool,
}

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<Entry<'de>>()? {
            let special = !matches!(entry.kind, Kind::File | Kind::Dir | Kind::Symlink);
            if special != self.specials {
                let place = if special { "entries" } else { "specials" };
                return Err(de::Error::custom(format!("{:?} cannot be among the {place}", entry.kind)));
            }
            if let Err(error) = (self.each)(entry) {
                *self.refused = Some(error);
                return Err(de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entry<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an entry")
            }

            // Written by hand: derive would need `flatten` for the unknown keys, which buffers every entry.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry<'de>, A::Error> {
                let (mut path, mut mode, mut kind) = (None, None, None);
                let mut entry = Entry::new("", Kind::File, 0);
                let mut left = Unknown::ALL;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        "path" => path = Some(map.next_value::<Text<'de>>()?.0),
                        "mode" => {
                            let Text(text) = map.next_value()?;
                            mode =
                                Some(parse_mode(&text).ok_or_else(|| {
                                    de::Error::custom(format!("mode {text:?} is not octal"))
                                })?);
                        }
                        "size" => entry.size = map.next_value()?,
                        "kind" => kind = Some(map.next_value()?),
                        "blob" => entry.blob = map.next_value()?,
                        "link_target" => {
                            entry.link_target = map.next_value::<Option<Text<'de>>>()?.map(|t| t.0);
                        }
                        "link_target_b64" => {
                            entry.link_target_b64 = Some(from_base64(&map.next_value::<Text<'de>>()?.0)?);
                        }
                        "mtime_ns" => entry.mtime_ns = map.next_value()?,
                        "uid" => entry.uid = map.next_value()?,
                        "gid" => entry.gid = map.next_value()?,
                        "hardlink" => entry.hardlink = map.next_value()?,
                        "name_b64" => {
                            entry.name_b64 = Some(from_base64(&map.next_value::<Text<'de>>()?.0)?);
                        }
                        "rdev" => entry.rdev = map.next_value()?,
                        other => {
                            let other = other.to_owned();
                            entry.extra.insert(other, map.next_value_seed(Unknown::of(&mut left))?);
                        }
                    }
                }
                entry.path = path.ok_or_else(|| de::Error::missing_field("path"))?;
                entry.kind = kind.ok_or_else(|| de::Error::missing_field("kind"))?;
                entry.mode = mode.ok_or_else(|| de::Error::missing_field("mode"))?;
                Ok(entry)
            }
        }
        deserializer.deserialize_map(EntryVisitor)
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
