//! The text of a tree, and the positions of its entries. The last sealed text is kept: the next seal need not
//! read it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::layers::FormatError;
use crate::layers::world::FORMAT;
use crate::store::Packed;
use crate::sync::Mutex;

/// Bytes of texts that are kept at most. A larger text is not kept.
const KEPT: usize = 128 << 20;

/// The order of `pf`'s entries: by component.
pub(super) fn order(a: &[u8], b: &[u8]) -> Ordering {
    // Up to the first byte that differs the components are the same; a slash there ends a shorter component.
    let rank = |byte: Option<&u8>| match byte {
        None => 0,
        Some(b'/') => 1,
        Some(byte) => 2 + u16::from(*byte),
    };
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    rank(a.get(at)).cmp(&rank(b.get(at)))
}

/// A position in a text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    start: u32,
    end: u32,
}

impl Place {
    /// No text is longer than 4 GiB: metadata is refused long before.
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    pub(super) fn start(self) -> usize {
        self.start as usize
    }

    pub(super) fn end(self) -> usize {
        self.end as usize
    }
}

/// A tree's text.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<Place>,
    pub(super) specials: Vec<Place>,
    pub(super) root: Option<Place>,
    /// Keys this program does not know.
    pub(super) extra: Vec<(String, Place)>,
    /// Whether a name may be other than UTF-8.
    pub(super) named: bool,
    /// Whether both lists are in `pf`'s order, and no path is in one twice.
    pub(super) sorted: bool,
    /// Its stored form, if it is known.
    pub(super) packed: Option<Packed>,
}

/// The parts of a text.
#[derive(Default)]
struct Parts<'a> {
    entries: Vec<&'a RawValue>,
    specials: Vec<&'a RawValue>,
    root: Option<&'a RawValue>,
    extra: Vec<(String, &'a RawValue)>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Parts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PartsVisitor;
        impl<'de> Visitor<'de> for PartsVisitor {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an fs.tree.v1 object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts<'de>, A::Error> {
                let mut parts = Parts::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "kind" => drop(map.next_value::<String>()?),
                        "entries" => parts.entries = map.next_value()?,
                        "specials" => parts.specials = map.next_value()?,
                        "root" => parts.root = Some(map.next_value()?),
                        _ => parts.extra.push((key, map.next_value()?)),
                    }
                }
                Ok(parts)
            }
        }
        deserializer.deserialize_map(PartsVisitor)
    }
}

/// The name fields of an entry.
#[derive(Deserialize)]
struct Named {
    path: String,
    #[serde(default)]
    name_b64: Option<String>,
}

fn wrong(error: &serde_json::Error) -> FormatError {
    FormatError::new(FORMAT, "", error.to_string())
}

impl Text {
    /// The text of an unknown tree.
    pub(super) fn nothing() -> Self {
        Self { sorted: true, ..Self::default() }
    }

    /// Splits a text into its parts.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, FormatError> {
        let parts: Parts<'_> = serde_json::from_slice(&bytes).map_err(|e| wrong(&e))?;
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - bytes.as_ptr() as usize;
            Place::new(start, start + raw.get().len())
        };
        let places = |list: Vec<&RawValue>| list.into_iter().map(place).collect::<Vec<_>>();
        let (entries, specials) = (places(parts.entries), places(parts.specials));
        let root = parts.root.map(place);
        let extra = parts.extra.into_iter().map(|(key, raw)| (key, place(raw))).collect();
        let named = bytes.windows(10).any(|w| w == b"\"name_b64\"");
        let mut text = Self { bytes, entries, specials, root, extra, named, sorted: false, packed: None };
        text.sorted = text.is_sorted(&text.entries)? && text.is_sorted(&text.specials)?;
        Ok(text)
    }

    fn is_sorted(&self, list: &[Place]) -> Result<bool, FormatError> {
        let mut last: Option<Cow<'_, str>> = None;
        for place in list {
            let path = self.path(*place)?;
            if last.is_some_and(|last| !order(last.as_bytes(), path.as_bytes()).is_lt()) {
                return Ok(false);
            }
            last = Some(path);
        }
        Ok(true)
    }

    /// The entries, and those of specials.
    pub(super) fn lists(&self) -> [&[Place]; 2] {
        [&self.entries, &self.specials]
    }

    pub(super) fn raw(&self, place: Place) -> &[u8] {
        &self.bytes[place.start()..place.end()]
    }

    /// An entry's path, exactly as in the text.
    pub(super) fn path(&self, place: Place) -> Result<Cow<'_, str>, FormatError> {
        let raw = self.raw(place);
        // The form that pfimg and `pf` write.
        if let Some(rest) = raw.strip_prefix(b"{\"path\":\"")
            && let Some(end) = rest.iter().position(|b| matches!(b, b'"' | b'\\'))
            && rest[end] == b'"'
            && let Ok(path) = std::str::from_utf8(&rest[..end])
        {
            return Ok(path.into());
        }
        Ok(self.named(place)?.path.into())
    }

    /// The bytes of an entry's name in base64, if its path does not give them.
    pub(super) fn name_b64(&self, place: Place) -> Result<Option<String>, FormatError> {
        Ok(self.named(place)?.name_b64)
    }

    fn named(&self, place: Place) -> Result<Named, FormatError> {
        serde_json::from_slice(self.raw(place)).map_err(|e| wrong(&e))
    }

    /// The index of a path in a sorted list, or where it would be inserted.
    pub(super) fn find(&self, list: &[Place], path: &[u8]) -> Result<usize, FormatError> {
        let (mut low, mut high) = (0, list.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if order(self.path(list[middle])?.as_bytes(), path).is_lt() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn bytes_kept(&self) -> usize {
        let packed = self.packed.as_ref().map_or(0, Packed::heap_bytes);
        self.bytes.len() + (self.entries.len() + self.specials.len()) * size_of::<Place>() + packed
    }
}

/// The texts that were used last, the latest at the end.
#[derive(Debug, Default)]
pub(super) struct Texts(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    tree: Digest,
    text: Arc<Text>,
    /// Whether it was read from the store: then other forks may have the same base.
    read: bool,
}

impl Texts {
    /// The text of a tree, or the parsed blob that `read` returns. The latter is kept: several forks may have
    /// this base.
    pub(super) fn get(
        &self,
        tree: &Digest,
        read: impl FnOnce() -> crate::Result<Result<Text, FormatError>>,
    ) -> crate::Result<Result<Arc<Text>, FormatError>> {
        if let Some(text) = self.kept(tree) {
            return Ok(Ok(text));
        }
        Ok(read()?.map(|text| self.put(*tree, text, true)))
    }

    /// The text of a tree, if it was kept.
    pub(super) fn kept(&self, tree: &Digest) -> Option<Arc<Text>> {
        let mut kept = self.0.lock();
        let at = kept.iter().position(|known| known.tree == *tree)?;
        let used = kept.remove(at);
        let text = Arc::clone(&used.text);
        kept.push(used);
        Some(text)
    }

    /// Keeps the text of a tree that was just sealed, in place of its base's text, which the fork no longer needs.
    pub(super) fn keep(&self, tree: Digest, text: Text, base: Option<&Digest>) {
        self.0.lock().retain(|known| known.read || Some(&known.tree) != base);
        self.put(tree, text, false);
    }

    /// Keeps a text in place of the least recently used ones.
    fn put(&self, tree: Digest, text: Text, read: bool) -> Arc<Text> {
        let text = Arc::new(text);
        let mut kept = self.0.lock();
        kept.retain(|known| known.tree != tree);
        kept.push(Known { tree, text: Arc::clone(&text), read });
        while kept.iter().map(|known| known.text.bytes_kept()).sum::<usize>() > KEPT {
            kept.remove(0);
        }
        text
    }
}
