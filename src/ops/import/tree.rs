//! Makes the tree of an image from the listing of a directory. Does not read the disk.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::source::Source;
use super::walk::Meta;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::world::{Entry, FsTree, Header, Kind, MAX_NAME, Root};
use crate::layers::xattrs::{self, Xattrs};

/// The content of a file.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::ops) enum Body {
    /// None: a directory or a special file.
    Nothing,
    /// A file's content.
    Content(Digest),
    /// A link's target and its blob.
    Target(Vec<u8>, Digest),
}

/// A file with everything that a tree records of it.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) body: Body,
    pub(super) xattrs: Xattrs,
    /// The source of its bytes, if it is not the same path of the directory.
    pub(super) source: Option<Arc<Source>>,
}

impl Item {
    /// An item without attributes.
    pub(in crate::ops) fn new(path: Vec<u8>, meta: Meta, body: Body) -> Self {
        Self { path, meta, body, xattrs: Xattrs::new(), source: None }
    }
}

/// The order of `pf`'s entries: by component, so that a directory comes right before its files.
pub(in crate::ops) fn order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        None => 0,
        Some(b'/') => 1,
        Some(byte) => 2 + u16::from(*byte),
    };
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    rank(a.get(at)).cmp(&rank(b.get(at)))
}

/// Makes the tree of a directory with everything below it.
pub(in crate::ops) fn build(root: &Meta, root_xattrs: &Xattrs, mut items: Vec<Item>) -> FsTree {
    items.sort_unstable_by(|a, b| order(&a.path, &b.path));
    let mut texts = Texts::new(&items);
    let groups = groups(&items);
    let mut header_root = Root {
        mode: Some(format!("{:04o}", root.mode)),
        mtime_ns: Some(root.stamp.mtime_ns),
        uid: Some(root.uid),
        gid: Some(root.gid),
        ..Root::default()
    };
    xattrs::write(root_xattrs, &mut header_root.extra);
    let mut tree =
        FsTree { header: Header { root: Some(header_root), ..Header::default() }, ..FsTree::default() };
    for item in items {
        let (path, name_b64) = texts.of(&item.path, item.meta.kind == Kind::Dir);
        let mut entry = entry(item.meta, item.body, &item.xattrs);
        entry.path = path.into();
        entry.name_b64 = name_b64;
        entry.hardlink = groups.get(&(item.meta.stamp.dev, item.meta.stamp.ino)).copied();
        match item.meta.kind {
            Kind::File | Kind::Dir | Kind::Symlink => tree.entries.push(entry),
            _ => tree.specials.push(entry),
        }
    }
    if texts.odd {
        // Sorts again: names that are not UTF-8 were sorted by their bytes, not by their text.
        for list in [&mut tree.entries, &mut tree.specials] {
            list.sort_by(|a, b| order(a.path.as_bytes(), b.path.as_bytes()));
        }
    }
    tree
}

/// Returns the bytes of the tree of a directory.
pub(super) fn text(root: &Meta, root_xattrs: &Xattrs, items: &[Item]) -> Result<Vec<u8>> {
    build(root, root_xattrs, items.to_vec())
        .to_bytes()
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write the tree").with_source(e))
}

fn entry(meta: Meta, body: Body, xattrs: &Xattrs) -> Entry<'static> {
    let mut entry = Entry::new("", meta.kind, meta.mode);
    entry.mtime_ns = Some(meta.stamp.mtime_ns);
    (entry.uid, entry.gid) = (Some(meta.uid), Some(meta.gid));
    match body {
        Body::Nothing => {}
        Body::Content(digest) => {
            entry.size = meta.stamp.size;
            entry.blob = Some(digest);
        }
        Body::Target(target, digest) => {
            entry.size = target.len() as u64;
            entry.blob = Some(digest);
            entry.link_target = Some(String::from_utf8_lossy(&target).into_owned().into());
            entry.link_target_b64 = std::str::from_utf8(&target).is_err().then_some(target);
        }
    }
    if matches!(meta.kind, Kind::Chardev | Kind::Blockdev) {
        entry.rdev = Some(meta.rdev);
    }
    xattrs::write(xattrs, &mut entry.extra);
    entry
}

/// Numbers the files that have several names in the tree, from 1 in the order of their first names.
fn groups(items: &[Item]) -> HashMap<(u64, u64), u64> {
    let key = |item: &Item| (item.meta.stamp.dev, item.meta.stamp.ino);
    let linked = || items.iter().filter(|item| item.meta.kind != Kind::Dir && item.meta.links > 1);
    let mut names: HashMap<(u64, u64), u64> = HashMap::new();
    for item in linked() {
        *names.entry(key(item)).or_default() += 1;
    }
    let mut groups = HashMap::new();
    for item in linked().filter(|item| names[&key(item)] > 1) {
        let next = groups.len() as u64 + 1;
        groups.entry(key(item)).or_insert(next);
    }
    groups
}

/// Texts for paths that are not UTF-8. Each such name gets a text that none of its neighbours has.
struct Texts {
    /// Whether there are such paths.
    odd: bool,
    /// All paths, as bytes.
    paths: HashSet<Vec<u8>>,
    /// Texts of directories whose text differs from their bytes.
    folders: HashMap<Vec<u8>, String>,
    /// Texts that were generated.
    given: HashSet<String>,
}

impl Texts {
    fn new(items: &[Item]) -> Self {
        let odd = items.iter().any(|item| std::str::from_utf8(&item.path).is_err());
        let paths = if odd { items.iter().map(|item| item.path.clone()).collect() } else { HashSet::new() };
        Self { odd, paths, folders: HashMap::new(), given: HashSet::new() }
    }

    /// Returns a path's text, and the last name's bytes if the text differs from them. Must be called for a directory before its
    /// files.
    fn of(&mut self, path: &[u8], is_folder: bool) -> (String, Option<Vec<u8>>) {
        if !self.odd {
            return (String::from_utf8_lossy(path).into_owned(), None);
        }
        let (folder, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let folder_text = match self.folders.get(folder) {
            Some(text) => text.clone(),
            None => String::from_utf8_lossy(folder).into_owned(),
        };
        let join =
            |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder_text}/{name}") };
        let (text, odd_name) = if let Ok(name) = std::str::from_utf8(name) {
            (join(name), None)
        } else {
            let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
            let mut number = 1;
            let text = loop {
                let made_up = stand_in(name, number);
                let text = join(&made_up);
                let neighbour = [folder, slash, made_up.as_bytes()].concat();
                if !self.paths.contains(&neighbour) && self.given.insert(text.clone()) {
                    break text;
                }
                number += 1;
            };
            (text, Some(name.to_vec()))
        };
        if is_folder && text.as_bytes() != path {
            self.folders.insert(path.to_vec(), text.clone());
        }
        (text, odd_name)
    }
}

/// Returns a text in place of a name that is not UTF-8. It is not longer than a name may be, so that `pf` can restore it. Names
/// with the same text get different values of `number`, from 1 on.
fn stand_in(name: &[u8], number: u32) -> String {
    let suffix = if number > 1 { format!("~{number}") } else { String::new() };
    let mut text = String::from_utf8_lossy(name).into_owned();
    text.truncate(text.floor_char_boundary(MAX_NAME - suffix.len()));
    text + &suffix
}

#[cfg(test)]
mod tests {
    use super::super::index::Stamp;
    use super::*;
    use crate::tree::Tree;
    use proptest::prelude::*;

    fn meta(kind: Kind, ino: u64, links: u64) -> Meta {
        let stamp = Stamp { size: 3, mtime_ns: 5, ctime_ns: 6, ino, dev: 1 };
        Meta { kind, mode: 0o644, stamp, links, uid: 1, gid: 2, rdev: 0 }
    }

    fn file(path: &[u8], ino: u64, links: u64) -> Item {
        let body = Body::Content(Digest::of(b"abc"));
        Item {
            path: path.to_vec(),
            meta: meta(Kind::File, ino, links),
            body,
            xattrs: Xattrs::new(),
            source: None,
        }
    }

    fn folder(path: &[u8]) -> Item {
        let meta = meta(Kind::Dir, 0, 2);
        Item { path: path.to_vec(), meta, body: Body::Nothing, xattrs: Xattrs::new(), source: None }
    }

    fn made(items: Vec<Item>) -> (FsTree, Tree) {
        let tree = build(&meta(Kind::Dir, 1, 2), &Xattrs::new(), items);
        let parsed = Tree::parse(&tree.to_bytes().unwrap()).unwrap();
        (tree, parsed)
    }

    #[test]
    fn entries_are_in_the_order_of_pf_and_files_of_one_inode_are_one_group() {
        let (tree, _) = made(vec![
            file(b"b", 7, 2),
            file(b"a/y", 7, 2),
            folder(b"a"),
            file(b"a.x", 8, 1),
            // The file's other name is not in the directory.
            file(b"c", 9, 2),
        ]);
        let paths: Vec<_> = tree.entries.iter().map(|entry| (&*entry.path, entry.hardlink)).collect();
        assert_eq!(paths, [("a", None), ("a/y", Some(1)), ("a.x", None), ("b", Some(1)), ("c", None)]);
        let mut sorted: Vec<_> = paths.iter().map(|(path, _)| std::path::Path::new(path)).collect();
        sorted.sort();
        assert!(sorted.iter().zip(&paths).all(|(sorted, (path, _))| sorted.to_str() == Some(path)));
    }

    #[test]
    fn names_that_are_not_utf8_come_back_though_their_texts_would_clash() {
        let long = [0xff; 255];
        let odd_folder = b"d\xff".to_vec();
        let paths: Vec<Vec<u8>> = vec![
            b"caf\xe9".to_vec(),
            b"caf\xe8".to_vec(),
            "caf\u{fffd}".as_bytes().to_vec(),
            long.to_vec(),
            [&odd_folder[..], b"/x"].concat(),
            [&odd_folder[..], b"/\xfe"].concat(),
        ];
        let mut items: Vec<_> = paths.iter().map(|path| file(path, 1, 1)).collect();
        items.push(folder(&odd_folder));
        let (_, tree) = made(items);
        for path in &paths {
            assert!(tree.resolve(path).is_some(), "{path:?}");
        }
        assert_eq!(tree.len(), 1 + paths.len() + 1);
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn every_name_of_any_bytes_is_read_back(
            names in proptest::collection::hash_set(proptest::collection::vec(prop_oneof![Just(b'a'), Just(0xffu8), Just(0xc3), Just(b'~'), Just(b'2'), any::<u8>()], 1..5), 1..12),
            nested: bool,
        ) {
            let names: Vec<_> = names
                .into_iter()
                .filter(|name| !name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b"..")
                .collect();
            let mut items: Vec<_> = names.iter().map(|name| folder(name)).collect();
            if nested {
                for name in &names {
                    items.extend(names.iter().map(|inner| file(&[&name[..], b"/", inner].concat(), 1, 1)));
                }
            }
            let paths: Vec<_> = items.iter().map(|item| item.path.clone()).collect();
            let (_, tree) = made(items);
            for path in &paths {
                prop_assert!(tree.resolve(path).is_some(), "{:?}", path);
            }
            prop_assert_eq!(tree.len(), 1 + paths.len());
        }
    }
}
