//! The tree of a new image: the text of the base's tree with the changes merged in.
//!
//! Unchanged entries are copied exactly, with the keys that pfimg does not know.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::text::{Place, Text, order};
use crate::layers::FormatError;
use crate::layers::world::{Entry, FORMAT, Kind, MAX_NAME, Root};
use crate::store::SplicedDocument;

/// An entry that is new or changed. The group says which entries are one file, in numbers of the caller.
pub(super) struct NewEntry {
    /// The entry without its path, its name and its group.
    pub(super) entry: Entry<'static>,
    pub(super) group: Option<u64>,
}

/// The changes of a tree. Paths are bytes, relative to the tree's root.
#[derive(Default)]
pub(super) struct TreeChanges {
    /// Removed paths, each with everything below it.
    pub(super) removed: Vec<Vec<u8>>,
    /// Entries that are new or changed.
    pub(super) put: BTreeMap<Vec<u8>, NewEntry>,
    /// The root folder, if it changed.
    pub(super) root: Option<Root>,
}

impl TreeChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.put.is_empty() && self.root.is_none()
    }
}

/// A new tree under construction.
pub(super) struct Merged<'b> {
    pub(super) draft: SplicedDocument<'b>,
    /// Everything about its text except its bytes.
    pub(super) text: Text,
    /// The position of the text of each new entry, by its path.
    pub(super) placed: HashMap<Vec<u8>, Range<usize>>,
}

/// An entry of the base with its path as in the text.
struct Old<'a> {
    path: Cow<'a, str>,
    place: Place,
}

fn wrong(error: &serde_json::Error) -> FormatError {
    FormatError::new(FORMAT, "", error.to_string())
}

/// Merges changes into the text of a tree; without a base, makes one. If the base is sorted and all names are
/// UTF-8, the cost grows with the changes, apart from copying the text.
pub(super) fn merge(base: &Text, mut changes: TreeChanges) -> Result<Merged<'_>, FormatError> {
    let named = base.named || changes.put.keys().any(|path| std::str::from_utf8(path).is_err());
    let quick = base.sorted && !named;
    let mut olds = [const { Vec::new() }; 2];
    if !quick {
        for (olds, places) in olds.iter_mut().zip(base.lists()) {
            *olds = places
                .iter()
                .map(|place| Ok(Old { path: base.path(*place)?, place: *place }))
                .collect::<Result<Vec<_>, FormatError>>()?;
            olds.sort_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()));
        }
    }
    let [entries, specials] = olds;
    let shown = if named { Shown::new(base, &entries, &specials, &changes)? } else { Shown::default() };
    let next_group = highest_group(&base.bytes, &changes).saturating_add(1);
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
    let text = Text { named, sorted: true, ..Text::default() };
    let mut out = Merged { draft: SplicedDocument::of(&base.bytes), text, placed: HashMap::new() };
    out.draft.put(b"{\"kind\":\"fs.tree.v1\",\"entries\":[");
    for new in &mut new {
        new.sort_by(|a: &(_, Entry<'_>), b| order(a.1.path.as_bytes(), b.1.path.as_bytes()));
    }
    let [new_entries, new_specials] = new;
    // A replaced path is replaced in both lists: a file may have become a fifo.
    let replaced: HashSet<Vec<u8>> =
        new_entries.iter().chain(&new_specials).map(|(path, _)| path.clone()).collect();
    let gone = Gone::new(&changes.removed);
    let mut lists = [(entries, new_entries), (specials, new_specials)].into_iter().zip(base.lists());
    let mut list = |out: &mut Merged<'_>, opening| {
        let Some(((olds, new), places)) = lists.next() else { return Ok(Vec::new()) };
        let mut list = List { out, opening, places: Vec::with_capacity(places.len() + new.len()) };
        if quick {
            quick_list(&mut list, base, places, new, &changes.removed, &replaced)?;
        } else {
            any_list(&mut list, &base.bytes, &olds, new, &shown, &gone, &replaced)?;
        }
        Ok(list.places)
    };
    out.text.entries = list(&mut out, b"")?;
    out.draft.put(b"]");
    let from = |out: &mut Merged<'_>, before: &[u8]| {
        out.draft.put(before);
        out.draft.len()
    };
    if let Some(root) = &changes.root {
        let from = from(&mut out, b",\"root\":");
        serde_json::to_writer(&mut out.draft, root).map_err(|e| wrong(&e))?;
        out.text.root = Some(Place::new(from, out.draft.len()));
    } else if let Some(root) = base.root {
        let from = from(&mut out, b",\"root\":");
        out.draft.put(base.raw(root));
        out.text.root = Some(Place::new(from, out.draft.len()));
    }
    out.text.specials = list(&mut out, b",\"specials\":[")?;
    if !out.text.specials.is_empty() {
        out.draft.put(b"]");
    }
    for (key, value) in &base.extra {
        out.draft.put(b",");
        serde_json::to_writer(&mut out.draft, key).map_err(|e| wrong(&e))?;
        let from = from(&mut out, b":");
        out.draft.put(base.raw(*value));
        out.text.extra.push((key.clone(), Place::new(from, out.draft.len())));
    }
    out.draft.put(b"}");
    Ok(out)
}

/// A list under construction.
struct List<'o, 'b> {
    out: &'o mut Merged<'b>,
    /// The text before its first entry.
    opening: &'static [u8],
    places: Vec<Place>,
}

impl List<'_, '_> {
    /// Adds a new entry.
    fn put(&mut self, path: Vec<u8>, entry: &Entry<'_>) -> Result<(), FormatError> {
        let draft = &mut self.out.draft;
        draft.put(if self.places.is_empty() { self.opening } else { b"," });
        let from = draft.len();
        serde_json::to_writer(&mut *draft, entry).map_err(|e| wrong(&e))?;
        let to = draft.len();
        self.out.placed.insert(path, from..to);
        self.places.push(Place::new(from, to));
        Ok(())
    }

    /// Adds entries of the base that are consecutive in its text.
    fn take(&mut self, base: &[u8], run: &[Place]) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let draft = &mut self.out.draft;
        let mut from = first.start();
        if self.places.is_empty() {
            draft.put(self.opening);
        } else if from > 0 && base[from - 1] == b',' {
            // A comma right before the entry is copied with it, so that the stretch stays in one piece.
            from -= 1;
        } else {
            draft.put(b",");
        }
        let at = draft.len();
        draft.take(from, last.end() - from);
        self.places
            .extend(run.iter().map(|place| Place::new(place.start() - from + at, place.end() - from + at)));
    }
}

/// Makes a list from a base's list that is sorted; all names in it and among the new entries are UTF-8.
fn quick_list(
    list: &mut List<'_, '_>,
    base: &Text,
    olds: &[Place],
    new: Vec<(Vec<u8>, Entry<'static>)>,
    removed: &[Vec<u8>],
    replaced: &HashSet<Vec<u8>>,
) -> Result<(), FormatError> {
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for path in removed {
        let from = base.find(olds, path)?;
        // Paths below a path come right after it.
        let mut to = from;
        while let Some(old) = olds.get(to)
            && below(path, base.path(*old)?.as_bytes())
        {
            to += 1;
        }
        cuts.push(from..to);
    }
    for path in replaced {
        let at = base.find(olds, path)?;
        if let Some(old) = olds.get(at)
            && base.path(*old)?.as_bytes() == path.as_slice()
        {
            cuts.push(at..at + 1);
        }
    }
    cuts.sort_unstable_by_key(|cut| cut.start);
    cuts.push(olds.len()..olds.len());
    let mut new = new
        .into_iter()
        .map(|(path, entry)| Ok((base.find(olds, &path)?, path, entry)))
        .collect::<Result<Vec<_>, FormatError>>()?
        .into_iter()
        .peekable();
    let mut done = 0;
    for cut in cuts {
        while let Some((at, path, entry)) = new.next_if(|(at, ..)| *at <= cut.start) {
            if at > done {
                list.take(&base.bytes, &olds[done..at]);
                done = at;
            }
            list.put(path, &entry)?;
        }
        if cut.start > done {
            list.take(&base.bytes, &olds[done..cut.start]);
        }
        done = done.max(cut.end);
    }
    Ok(())
}

/// Makes a list from any base's list.
fn any_list(
    list: &mut List<'_, '_>,
    base: &[u8],
    olds: &[Old<'_>],
    new: Vec<(Vec<u8>, Entry<'static>)>,
    shown: &Shown,
    gone: &Gone<'_>,
    replaced: &HashSet<Vec<u8>>,
) -> Result<(), FormatError> {
    let mut new = new.into_iter().peekable();
    for old in olds {
        while let Some((path, entry)) =
            new.next_if(|(_, new)| order(new.path.as_bytes(), old.path.as_bytes()).is_lt())
        {
            list.put(path, &entry)?;
        }
        let path = shown.bytes(old);
        if (!replaced.is_empty() && replaced.contains(&*path)) || gone.covers(&path) {
            continue;
        }
        list.take(base, &[old.place]);
    }
    for (path, entry) in new {
        list.put(path, &entry)?;
    }
    Ok(())
}

/// The highest group number of a tree, or a higher one.
fn highest_group(base: &[u8], changes: &TreeChanges) -> u64 {
    if changes.put.values().all(|new| new.group.is_none()) {
        return 0;
    }
    // Digits in a name count as well, which does no harm.
    let text = String::from_utf8_lossy(base);
    let number = |(at, key): (usize, &str)| {
        let rest = text[at + key.len()..].trim_start_matches([':', ' ', '\t', '\n', '\r']);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse::<u64>().ok()
    };
    text.match_indices("\"hardlink\"").filter_map(number).max().unwrap_or(0)
}

/// Whether `path` is `folder` or lies below it.
fn below(folder: &[u8], path: &[u8]) -> bool {
    path.starts_with(folder) && (path.len() == folder.len() || path[folder.len()] == b'/')
}

/// Removed paths.
struct Gone<'a> {
    few: &'a [Vec<u8>],
    many: HashSet<&'a [u8]>,
}

/// Up to this many are compared one by one.
const FEW: usize = 8;

impl<'a> Gone<'a> {
    fn new(removed: &'a [Vec<u8>]) -> Self {
        if removed.len() <= FEW {
            Self { few: removed, many: HashSet::new() }
        } else {
            Self { few: &[], many: removed.iter().map(Vec::as_slice).collect() }
        }
    }

    /// Whether a path or a folder above it was removed.
    fn covers(&self, path: &[u8]) -> bool {
        self.few.iter().any(|gone| below(gone, path))
            || (!self.many.is_empty()
                && (self.many.contains(path)
                    || (0..path.len()).any(|i| path[i] == b'/' && self.many.contains(&path[..i]))))
    }
}

/// The text of paths that are not UTF-8: each component as text that no neighbour has, with its bytes in
/// another key.
#[derive(Default)]
struct Shown {
    /// Filled only if there is such a name: the text of each path that differs from its bytes.
    text: HashMap<Vec<u8>, String>,
    /// The reverse map.
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

/// Bytes of a name that leave room for a suffix that distinguishes it from its neighbours.
const ROOM: usize = MAX_NAME - 16;

/// A name as text. Three bytes replace one that cannot be shown: the text must not become longer than a name
/// may be.
fn readable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.len() > MAX_NAME { cut(&text, ROOM).to_owned() } else { text.into_owned() }
}

/// The start of a text, at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

impl Shown {
    fn new(
        base: &Text,
        entries: &[Old<'_>],
        specials: &[Old<'_>],
        changes: &TreeChanges,
    ) -> Result<Self, FormatError> {
        let mut shown = Self::default();
        let mut olds: Vec<&Old<'_>> = entries.iter().chain(specials).collect();
        // Folders before their content.
        olds.sort_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()));
        let mut taken: HashSet<&str> = HashSet::new();
        let gone = Gone::new(&changes.removed);
        for old in olds {
            let name = base.name_b64(old.place)?;
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
                // A removed entry leaves its text to others.
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
        // Sorted by bytes, a folder comes before its content.
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

    /// The real path of an entry of the base.
    fn bytes<'a>(&'a self, old: &'a Old<'_>) -> Cow<'a, [u8]> {
        self.bytes.get(&*old.path).map_or(old.path.as_bytes(), Vec::as_slice).into()
    }
}
