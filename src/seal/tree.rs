//! The tree of a new image: the text of the base's tree with the changes merged in.
//!
//! Entries that did not change are taken over as they stand, with the keys this program does not know.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::layers::FormatError;
use crate::layers::world::{Entry, FORMAT, Kind, MAX_NAME, Root};
use crate::store::Taken;

/// An entry that is new or changed. The group says which entries are one file, in numbers of the caller's.
pub(super) struct NewEntry {
    /// What it says but for its path, its name and its group.
    pub(super) entry: Entry<'static>,
    pub(super) group: Option<u64>,
}

/// What became of a tree. Paths are bytes, relative to the tree's root.
#[derive(Default)]
pub(super) struct TreeChanges {
    /// Paths that are gone, each with everything below it.
    pub(super) removed: Vec<Vec<u8>>,
    /// Entries that are new or changed.
    pub(super) put: BTreeMap<Vec<u8>, NewEntry>,
    /// The root folder, if that changed.
    pub(super) root: Option<Root>,
}

impl TreeChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.put.is_empty() && self.root.is_none()
    }
}

/// A tree's text, and which stretches of it are those of the base.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) text: Vec<u8>,
    /// In the order of the text.
    pub(super) taken: Vec<Taken>,
    /// Where the text of each entry is that was put, by its path.
    pub(super) placed: HashMap<Vec<u8>, Range<usize>>,
}

impl Merged {
    /// Takes over a stretch of the base.
    fn take(&mut self, base: &[u8], from: usize, len: usize) {
        let at = self.text.len();
        self.text.extend_from_slice(&base[from..from + len]);
        match self.taken.last_mut() {
            Some(last) if last.at + last.len == at && last.from + last.len == from => last.len += len,
            _ => self.taken.push(Taken { at, from, len }),
        }
    }
}

/// A base's text, taken apart.
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

/// An entry of the base with its path as it stands in the text.
struct Old<'a> {
    path: std::borrow::Cow<'a, str>,
    raw: &'a str,
}

/// Only the path of an entry.
struct PathOf;

impl<'de> DeserializeSeed<'de> for PathOf {
    type Value = (String, Option<String>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        #[derive(Deserialize)]
        struct Named {
            path: String,
            #[serde(default)]
            name_b64: Option<String>,
        }
        Named::deserialize(deserializer).map(|named| (named.path, named.name_b64))
    }
}

fn wrong(error: &serde_json::Error) -> FormatError {
    FormatError::new(FORMAT, "", error.to_string())
}

fn old(raw: &RawValue) -> Result<Old<'_>, FormatError> {
    let raw = raw.get();
    // As this program and `pf` write it.
    if let Some(rest) = raw.strip_prefix("{\"path\":\"")
        && let Some(end) = rest.find(['"', '\\'])
        && rest.as_bytes()[end] == b'"'
    {
        return Ok(Old { path: rest[..end].into(), raw });
    }
    let mut deserializer = serde_json::Deserializer::from_str(raw);
    let (path, _) = PathOf.deserialize(&mut deserializer).map_err(|e| wrong(&e))?;
    Ok(Old { path: path.into(), raw })
}

/// The order of `pf`'s entries: by component.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    // Up to the first byte that differs the components are the same; a slash there ends a shorter component.
    let rank = |byte: Option<&u8>| match byte {
        None => 0,
        Some(b'/') => 1,
        Some(byte) => 2 + u16::from(*byte),
    };
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    rank(a.get(at)).cmp(&rank(b.get(at)))
}

/// Merges changes into the text of a tree; without a base, makes one.
pub(super) fn merge(base: Option<&[u8]>, mut changes: TreeChanges) -> Result<Merged, FormatError> {
    let base = base.unwrap_or(b"{}");
    let parts: Parts<'_> = serde_json::from_slice(base).map_err(|e| wrong(&e))?;
    let mut olds = [parts.entries, parts.specials]
        .map(|list| list.into_iter().map(old).collect::<Result<Vec<_>, FormatError>>());
    let mut sorted = [const { Vec::new() }; 2];
    for (sorted, olds) in sorted.iter_mut().zip(&mut olds) {
        let olds = std::mem::replace(olds, Ok(Vec::new()))?;
        *sorted = olds;
        if !sorted.is_sorted_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()).is_le()) {
            sorted.sort_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()));
        }
    }
    let [entries, specials] = sorted;
    let shown = Shown::new(base, &entries, &specials, &changes)?;
    let next_group = highest_group(base, &changes).saturating_add(1);
    let mut groups: HashMap<u64, u64> = HashMap::new();
    let mut new = [const { Vec::new() }; 2];
    for (path, NewEntry { mut entry, group }) in std::mem::take(&mut changes.put) {
        shown.name(&path, &mut entry);
        entry.hardlink = group.map(|group| {
            let number = groups.len() as u64;
            next_group + *groups.entry(group).or_insert(number)
        });
        let special = !matches!(entry.kind, Kind::File | Kind::Dir | Kind::Symlink);
        new[usize::from(special)].push((path, entry));
    }
    let gone = Gone::new(&changes.removed);
    let mut out = Merged::default();
    out.text.reserve(base.len() + 256 * (new[0].len() + new[1].len()) + 64);
    out.text.extend_from_slice(b"{\"kind\":\"fs.tree.v1\",\"entries\":[");
    let [new_entries, new_specials] = new;
    // A path that is replaced is replaced among both: a file may have become a fifo.
    let replaced: HashSet<Vec<u8>> =
        new_entries.iter().chain(&new_specials).map(|(path, _)| path.clone()).collect();
    list(&mut out, base, &entries, new_entries, &shown, &gone, &replaced)?;
    out.text.push(b']');
    match (&changes.root, parts.root) {
        (Some(root), _) => {
            out.text.extend_from_slice(b",\"root\":");
            serde_json::to_writer(&mut out.text, root).map_err(|e| wrong(&e))?;
        }
        (None, Some(root)) => {
            out.text.extend_from_slice(b",\"root\":");
            out.text.extend_from_slice(root.get().as_bytes());
        }
        (None, None) => {}
    }
    let before = out.text.len();
    out.text.extend_from_slice(b",\"specials\":[");
    let start = out.text.len();
    list(&mut out, base, &specials, new_specials, &shown, &gone, &replaced)?;
    if out.text.len() == start {
        out.text.truncate(before);
    } else {
        out.text.push(b']');
    }
    for (key, value) in parts.extra {
        out.text.push(b',');
        serde_json::to_writer(&mut out.text, &key).map_err(|e| wrong(&e))?;
        out.text.push(b':');
        out.text.extend_from_slice(value.get().as_bytes());
    }
    out.text.push(b'}');
    Ok(out)
}

fn list(
    out: &mut Merged,
    base: &[u8],
    olds: &[Old<'_>],
    mut new: Vec<(Vec<u8>, Entry<'static>)>,
    shown: &Shown,
    gone: &Gone<'_>,
    replaced: &HashSet<Vec<u8>>,
) -> Result<(), FormatError> {
    new.sort_by(|a, b| order(a.1.path.as_bytes(), b.1.path.as_bytes()));
    let mut new = new.into_iter().peekable();
    let start = out.text.len();
    let put = |out: &mut Merged, path: Vec<u8>, entry: &Entry<'_>| {
        if out.text.len() > start {
            out.text.push(b',');
        }
        let from = out.text.len();
        serde_json::to_writer(&mut out.text, entry).map_err(|e| wrong(&e))?;
        out.placed.insert(path, from..out.text.len());
        Ok::<(), FormatError>(())
    };
    for old in olds {
        while let Some((path, entry)) =
            new.next_if(|(_, new)| order(new.path.as_bytes(), old.path.as_bytes()).is_lt())
        {
            put(out, path, &entry)?;
        }
        let path = shown.bytes(old);
        if (!replaced.is_empty() && replaced.contains(&*path)) || gone.covers(&path) {
            continue;
        }
        let mut from = old.raw.as_ptr() as usize - base.as_ptr() as usize;
        let mut len = old.raw.len();
        if out.text.len() > start {
            // The comma goes along where it stands right before the entry: so the stretch stays whole.
            if from > 0 && base[from - 1] == b',' {
                from -= 1;
                len += 1;
            } else {
                out.text.push(b',');
            }
        }
        out.take(base, from, len);
    }
    for (path, entry) in new {
        put(out, path, &entry)?;
    }
    Ok(())
}

/// The highest group number of a tree, or a higher one.
fn highest_group(base: &[u8], changes: &TreeChanges) -> u64 {
    if changes.put.values().all(|new| new.group.is_none()) {
        return 0;
    }
    // What stands in a name counts as well, which does no harm.
    let text = String::from_utf8_lossy(base);
    let number = |(at, key): (usize, &str)| {
        let rest = text[at + key.len()..].trim_start_matches([':', ' ', '\t', '\n', '\r']);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse::<u64>().ok()
    };
    text.match_indices("\"hardlink\"").filter_map(number).max().unwrap_or(0)
}

/// Paths that are gone.
struct Gone<'a> {
    few: &'a [Vec<u8>],
    many: HashSet<&'a [u8]>,
}

/// Up to this many are looked through one by one.
const FEW: usize = 8;

impl<'a> Gone<'a> {
    fn new(removed: &'a [Vec<u8>]) -> Self {
        if removed.len() <= FEW {
            Self { few: removed, many: HashSet::new() }
        } else {
            Self { few: &[], many: removed.iter().map(Vec::as_slice).collect() }
        }
    }

    /// Whether a path or a folder above it is gone.
    fn covers(&self, path: &[u8]) -> bool {
        let below =
            |gone: &Vec<u8>| path.starts_with(gone) && (path.len() == gone.len() || path[gone.len()] == b'/');
        self.few.iter().any(below)
            || (!self.many.is_empty()
                && (self.many.contains(path)
                    || (0..path.len()).any(|i| path[i] == b'/' && self.many.contains(&path[..i]))))
    }
}

/// How paths are written that are not UTF-8: each component as text that no neighbour has, its bytes beside it.
#[derive(Default)]
struct Shown {
    /// Only where there is any such name: the text of each path whose text is another.
    text: HashMap<Vec<u8>, String>,
    /// And the other way round.
    bytes: HashMap<String, Vec<u8>>,
}

fn parent_and_name(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Bytes of a name that leave room for what tells it from its neighbours.
const ROOM: usize = MAX_NAME - 16;

/// A name as text. Three bytes stand for one that cannot be shown: it must not become longer than a name may be.
fn readable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.len() > MAX_NAME { cut(&text, ROOM).to_owned() } else { text.into_owned() }
}

/// The start of a text, at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

impl Shown {
    fn new(
        base: &[u8],
        entries: &[Old<'_>],
        specials: &[Old<'_>],
        changes: &TreeChanges,
    ) -> Result<Self, FormatError> {
        let mut shown = Self::default();
        let named = base.windows(10).any(|w| w == b"\"name_b64\"");
        if !named && changes.put.keys().all(|path| std::str::from_utf8(path).is_ok()) {
            return Ok(shown);
        }
        let mut olds: Vec<&Old<'_>> = entries.iter().chain(specials).collect();
        // Folders before what is in them.
        olds.sort_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()));
        let mut taken: HashSet<&str> = HashSet::new();
        let gone = Gone::new(&changes.removed);
        for old in olds {
            let mut deserializer = serde_json::Deserializer::from_str(old.raw);
            let (_, name) = PathOf.deserialize(&mut deserializer).map_err(|e| wrong(&e))?;
            let name = name.and_then(|name| data_encoding::BASE64.decode(name.as_bytes()).ok());
            let (folder, plain) = parent_and_name(old.path.as_bytes());
            let folder = String::from_utf8_lossy(folder);
            let real_folder = shown.bytes.get(&*folder).cloned();
            if real_folder.is_some() || name.is_some() {
                let mut real = real_folder.unwrap_or_else(|| folder.as_bytes().to_vec());
                if !real.is_empty() {
                    real.push(b'/');
                }
                real.extend_from_slice(name.as_deref().unwrap_or(plain));
                shown.bytes.insert(old.path.to_string(), real.clone());
                // What is gone leaves its text to others.
                if !gone.covers(&real) {
                    shown.text.insert(real, old.path.to_string());
                }
            }
            let real = shown.bytes.get(&*old.path).map_or(old.path.as_bytes(), Vec::as_slice);
            if !gone.covers(real) {
                taken.insert(&old.path);
            }
        }
        let mut given: HashSet<String> = HashSet::new();
        // Sorted by bytes, a folder comes before what is in it.
        for path in changes.put.keys() {
            let (folder, name) = parent_and_name(path);
            let folder_text = shown.text_of(folder);
            let mut text = join(&folder_text, &readable(name));
            // An entry that is put again keeps its text.
            let before = shown.text.get(path).cloned();
            if let Some(before) =
                before.filter(|before| parent_and_name(before.as_bytes()).0 == folder_text.as_bytes())
            {
                text = before;
            } else {
                let own = std::str::from_utf8(path).is_ok_and(|path| path == text)
                    && !shown.bytes.contains_key(&text);
                let mut number = 1;
                while given.contains(&text) || (!(own && number == 1) && taken.contains(text.as_str())) {
                    number += 1;
                    text = join(&folder_text, &format!("{}~{number}", cut(&readable(name), ROOM)));
                }
            }
            given.insert(text.clone());
            if text.as_bytes() != path.as_slice() {
                shown.text.insert(path.clone(), text);
            }
        }
        Ok(shown)
    }

    fn text_of(&self, path: &[u8]) -> String {
        match self.text.get(path) {
            Some(text) => text.clone(),
            None => String::from_utf8_lossy(path).into_owned(),
        }
    }

    /// Fills in an entry's path and name.
    fn name(&self, path: &[u8], entry: &mut Entry<'static>) {
        let text = self.text_of(path);
        let name = parent_and_name(path).1;
        entry.name_b64 = (parent_and_name(text.as_bytes()).1 != name).then(|| name.to_vec());
        entry.path = text.into();
    }

    /// The path that an entry of the base means.
    fn bytes<'a>(&'a self, old: &'a Old<'_>) -> std::borrow::Cow<'a, [u8]> {
        self.bytes.get(&*old.path).map_or(old.path.as_bytes(), Vec::as_slice).into()
    }
}
