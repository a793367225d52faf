//! Builds a [`Tree`] from the entries of an `fs.tree.v1` blob and refuses entries that cannot be shown.

use std::collections::HashMap;
use std::sync::Arc;

use super::node::{HAS_MTIME, Linked, Node, NodeId, Owner, Tree};
use super::path::PathHash;
use crate::digest::Digest;
use crate::layers::world::{self, Entry, FORMAT, Kind, MAX_TARGET};
use crate::layers::{FormatError, xattrs};

/// Permission bits of a folder that no entry describes, as `pf`'s restore makes them.
pub(crate) const IMPLIED_DIR_MODE: u16 = 0o755;

/// How many folders without an entry are allowed, plus the same number for each entry: two bytes of a hostile
/// path make a folder of a hundred bytes in memory.
const MAX_IMPLIED: usize = 200_000;
const MAX_IMPLIED_PER_ENTRY: usize = 16;

impl Tree {
    /// A tree with nothing in it.
    pub fn empty() -> Self {
        Builder::new().finish_unchecked()
    }

    /// Builds the tree that an `fs.tree.v1` blob describes. Folders that are only implied by their children are
    /// made with mode 0755. Refused: paths that are absolute, empty, too deep or contain `.`, `..` or NUL; names of
    /// more than 255 bytes; entries listed twice; a file that is also a folder; files without content.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut builder = Builder::new();
        let header = world::visit(bytes, &mut |entry| builder.add(&entry))?;
        if let Some(root) = header.root {
            let node = &mut builder.nodes[0];
            if let Some(text) = &root.mode {
                node.mode = world::parse_mode(text)
                    .ok_or_else(|| FormatError::new(FORMAT, "root", format!("mode {text:?} is not octal")))?;
            }
            if let Some(mtime) = root.mtime_ns {
                node.mtime_ns = mtime;
                node.mode |= HAS_MTIME;
            }
            let owner = builder.owner(Owner { uid: root.uid, gid: root.gid });
            builder.nodes[0].owner = owner;
            builder.add_xattrs(0, &root.extra);
        }
        builder.finish()
    }
}

/// Collects nodes in the order of the entries.
pub(super) struct Builder {
    nodes: Vec<Node>,
    names: Vec<u8>,
    digests: Vec<Digest>,
    owners: Vec<Owner>,
    owner_index: HashMap<Owner, u32>,
    hardlinks: Vec<(u32, u64)>,
    xattrs: Vec<(u32, Arc<xattrs::Xattrs>)>,
    /// Folders by parent and name *as in the paths*, where children look for them. The value is the folder's
    /// number and whether an entry described it.
    dirs: HashMap<(u32, Box<str>), (u32, bool)>,
    /// Folders implied by their children, and entries seen.
    implied: usize,
    entries: usize,
    /// The last entry's folder: entries are sorted, so most share it with their neighbour.
    last: (String, u32),
}

impl Builder {
    pub(super) fn new() -> Self {
        let root = Node {
            name: 0,
            parent: 0,
            extent: 0,
            mtime_ns: 0,
            content: 0,
            owner: 0,
            target_len: 0,
            mode: IMPLIED_DIR_MODE,
            name_len: 0,
            kind: Kind::Dir,
        };
        Self {
            nodes: vec![root],
            names: Vec::new(),
            digests: Vec::new(),
            owners: vec![Owner::default()],
            owner_index: HashMap::from([(Owner::default(), 0)]),
            hardlinks: Vec::new(),
            xattrs: Vec::new(),
            dirs: HashMap::new(),
            implied: 0,
            entries: 0,
            last: (String::new(), 0),
        }
    }

    fn owner(&mut self, owner: Owner) -> u32 {
        *self.owner_index.entry(owner).or_insert_with(|| {
            self.owners.push(owner);
            (self.owners.len() - 1) as u32
        })
    }

    fn push_name(&mut self, name: &[u8]) -> u32 {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        at
    }

    fn push(&mut self, parent: u32, name: &[u8], kind: Kind, mode: u16) -> u32 {
        let name_at = self.push_name(name);
        self.nodes.push(Node {
            name: name_at,
            parent,
            extent: 0,
            mtime_ns: 0,
            content: 0,
            owner: 0,
            target_len: 0,
            mode,
            name_len: name.len() as u8,
            kind,
        });
        (self.nodes.len() - 1) as u32
    }

    /// The folder at a path; made if no entry described it yet.
    fn dir(&mut self, path: &str) -> u32 {
        if path == self.last.0 {
            return self.last.1;
        }
        let mut dir = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let key = (dir, Box::from(name));
            dir = if let Some((found, _)) = self.dirs.get(&key) {
                *found
            } else {
                self.implied += 1;
                let made = self.push(dir, name.as_bytes(), Kind::Dir, IMPLIED_DIR_MODE);
                self.dirs.insert(key, (made, false));
                made
            };
        }
        self.last = (path.to_owned(), dir);
        dir
    }

    fn add(&mut self, entry: &Entry<'_>) -> Result<(), FormatError> {
        let path: &str = &entry.path;
        let refuse = |reason: String| FormatError::new(FORMAT, shown(path), reason);
        if let Some(why) = world::refuse_path(path) {
            return Err(refuse(why.into()));
        }
        let (parent_path, plain_name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = match &entry.name_b64 {
            Some(raw) => {
                if let Some(why) = world::refuse_name(raw) {
                    return Err(refuse(format!("name_b64: {why}")));
                }
                raw.as_slice()
            }
            None => plain_name.as_bytes(),
        };
        let parent = self.dir(parent_path);
        self.entries += 1;
        if self.implied > MAX_IMPLIED + MAX_IMPLIED_PER_ENTRY * self.entries {
            return Err(refuse(format!("{} directories have no entry, which is too many", self.implied)));
        }
        let id = if entry.kind == Kind::Dir {
            match self.dirs.get(&(parent, Box::from(plain_name))) {
                Some((_, true)) => return Err(refuse("the path is listed twice".into())),
                Some((implied, false)) => {
                    let implied = *implied;
                    let name_at = self.push_name(name);
                    let node = &mut self.nodes[implied as usize];
                    (node.name, node.name_len) = (name_at, name.len() as u8);
                    self.dirs.insert((parent, plain_name.into()), (implied, true));
                    implied
                }
                None => {
                    let made = self.push(parent, name, Kind::Dir, 0);
                    self.dirs.insert((parent, plain_name.into()), (made, true));
                    made
                }
            }
        } else {
            self.push(parent, name, entry.kind, 0)
        };
        let owner = self.owner(Owner { uid: entry.uid, gid: entry.gid });
        let (mut extent, mut content, mut target_len) = (0, 0, 0);
        match entry.kind {
            Kind::File => {
                let blob = match entry.blob {
                    Some(blob) => blob,
                    None if entry.size == 0 => Digest::of(b""),
                    None => return Err(refuse("the file has no blob".into())),
                };
                extent = entry.size;
                content = self.digests.len() as u32;
                self.digests.push(blob);
            }
            Kind::Symlink => {
                let target = entry.target().ok_or_else(|| refuse("the link has no target".into()))?;
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    return Err(refuse("the link's target is empty, too long, or contains NUL".into()));
                }
                content = self.push_name(target);
                target_len = target.len() as u16;
            }
            Kind::Chardev | Kind::Blockdev => extent = entry.rdev.unwrap_or(0),
            Kind::Dir | Kind::Fifo | Kind::Socket => {}
        }
        let node = &mut self.nodes[id as usize];
        (node.extent, node.content, node.target_len, node.owner) = (extent, content, target_len, owner);
        node.mode = entry.mode & 0o7777;
        if let Some(mtime) = entry.mtime_ns {
            node.mtime_ns = mtime;
            node.mode |= HAS_MTIME;
        }
        if let Some(group) = entry.hardlink
            && entry.kind != Kind::Dir
        {
            self.hardlinks.push((id, group));
        }
        self.add_xattrs(id, &entry.extra);
        Ok(())
    }

    fn add_xattrs(&mut self, id: u32, extra: &serde_json::Map<String, serde_json::Value>) {
        let xattrs = xattrs::read(extra);
        if !xattrs.is_empty() {
            self.xattrs.push((id, Arc::new(xattrs)));
        }
    }

    /// Renumbers breadth-first with sorted siblings, and refuses two equal names in a folder.
    fn finish(self) -> Result<Tree, FormatError> {
        let tree = self.finish_unchecked();
        for id in tree.nodes() {
            let children = tree.children(id);
            for (a, b) in children.clone().zip(children.skip(1)) {
                let (a, b) = (NodeId(a), NodeId(b));
                if tree.name(a) == tree.name(b) {
                    let reason = if (tree.kind(a) == Kind::Dir) == (tree.kind(b) == Kind::Dir) {
                        "the path is listed twice"
                    } else {
                        "the path is both a file and a directory"
                    };
                    return Err(FormatError::new(
                        FORMAT,
                        shown(&String::from_utf8_lossy(&tree.path(a))),
                        reason,
                    ));
                }
            }
        }
        Ok(tree)
    }

    pub(super) fn finish_unchecked(self) -> Tree {
        let Self { nodes, names, digests, owners, hardlinks, xattrs, .. } = self;
        let name = |i: u32| {
            let node = &nodes[i as usize];
            &names[node.name as usize..node.name as usize + usize::from(node.name_len)]
        };
        // Sorting all nodes but the root by (parent, name) puts siblings together, in order.
        let mut by_parent: Vec<u32> = (1..nodes.len() as u32).collect();
        by_parent.sort_unstable_by(|a, b| {
            (nodes[*a as usize].parent, name(*a)).cmp(&(nodes[*b as usize].parent, name(*b)))
        });
        // first[i]: where the children of old node i start in by_parent.
        let mut first = vec![0u32; nodes.len() + 1];
        for id in &by_parent {
            first[nodes[*id as usize].parent as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }
        let mut order: Vec<u32> = Vec::with_capacity(nodes.len());
        order.push(0);
        let mut renumbered = vec![0u32; nodes.len()];
        let mut out: Vec<Node> = Vec::with_capacity(nodes.len());
        let mut folders: Vec<PathHash> = Vec::new();
        let mut at = 0;
        while at < order.len() {
            let old = order[at] as usize;
            let mut node = nodes[old];
            node.parent = renumbered[node.parent as usize];
            if node.kind == Kind::Dir {
                let children = first[old] as usize..first[old + 1] as usize;
                node.extent = (order.len() as u64) << 32 | children.len() as u64;
                // A folder has a higher number than its parent.
                let path = match at {
                    0 => PathHash::TOP,
                    _ => folders[out[node.parent as usize].content as usize].child(name(order[at])),
                };
                node.content = folders.len() as u32;
                folders.push(path);
                for child in &by_parent[children] {
                    renumbered[*child as usize] = order.len() as u32;
                    order.push(*child);
                }
            }
            out.push(node);
            at += 1;
        }
        let mut hardlinks: Vec<(u32, u64)> =
            hardlinks.into_iter().map(|(node, group)| (renumbered[node as usize], group)).collect();
        hardlinks.sort_unstable();
        let mut xattrs: Vec<_> =
            xattrs.into_iter().map(|(node, xattrs)| (renumbered[node as usize], xattrs)).collect();
        xattrs.sort_unstable_by_key(|(node, _)| *node);
        let mut tree = Tree {
            lacks_times: out.iter().any(|node| node.mode & HAS_MTIME == 0),
            nodes: out.into(),
            names: names.into(),
            digests: digests.into(),
            owners: owners.into(),
            folders: folders.into(),
            hardlinks: hardlinks.into(),
            linked: Box::default(),
            xattrs: xattrs.into(),
        };
        tree.linked = linked(&tree);
        tree
    }
}

/// Finds out which entries are one file: those of one number that agree in everything that a file has once.
fn linked(tree: &Tree) -> Box<[Linked]> {
    let once = |id: NodeId| {
        let content = (tree.size(id), tree.blob(id), tree.target(id), tree.rdev(id));
        let owner = tree.owner(id);
        (tree.kind(id) as u8, tree.mode(id), tree.mtime_ns(id), owner, content, tree.xattrs(id))
    };
    let mut entries: Vec<(u64, NodeId)> = tree.hardlinks().map(|(id, number)| (number, id)).collect();
    entries.sort_unstable_by(|(a, x), (b, y)| a.cmp(b).then_with(|| once(*x).cmp(&once(*y))));
    let mut linked = Vec::new();
    for file in entries.chunk_by(|(a, x), (b, y)| a == b && once(*x) == once(*y)) {
        let Some((_, first)) = file.iter().min_by_key(|(_, id)| tree.path(*id)).filter(|_| file.len() > 1)
        else {
            continue;
        };
        let links = file.len() as u32;
        linked.extend(file.iter().map(|(_, id)| Linked { node: id.0, first: first.0, links }));
    }
    linked.sort_unstable_by_key(|linked| linked.node);
    linked.into()
}

/// A path for a message: a hostile one may be megabytes long.
fn shown(path: &str) -> String {
    let mut shown: String = path.chars().take(200).flat_map(char::escape_debug).collect();
    if path.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::world::FsTree;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn file(path: &str, content: &[u8]) -> Entry<'static> {
        let mut entry = Entry::new(path.to_owned(), Kind::File, 0o644);
        entry.blob = Some(Digest::of(content));
        entry.size = content.len() as u64;
        entry
    }

    fn build(entries: Vec<Entry<'static>>) -> Result<Tree, FormatError> {
        Tree::parse(&FsTree { entries, ..FsTree::default() }.to_bytes().unwrap())
    }

    #[test]
    fn folders_are_implied_by_their_children_whatever_the_order() {
        let mut dir = Entry::new("a/b", Kind::Dir, 0o700);
        dir.mtime_ns = Some(5);
        let tree = build(vec![file("a/b/c/x", b"x"), dir, file("z", b""), file("a/y", b"yy")]).unwrap();
        let at = |path: &str| tree.resolve(path.as_bytes()).unwrap();
        assert_eq!(tree.len(), 7);
        assert_eq!((tree.mode(at("a")), tree.mtime_ns(at("a"))), (0o755, None));
        assert_eq!((tree.mode(at("a/b")), tree.mtime_ns(at("a/b"))), (0o700, Some(5)));
        assert_eq!(tree.blob(at("a/b/c/x")), Some(&Digest::of(b"x")));
        assert_eq!(tree.size(at("a/y")), 2);
        assert_eq!(tree.path(at("a/b/c/x")), b"a/b/c/x");
        assert_eq!((tree.subdirs(NodeId::ROOT), tree.subdirs(at("a"))), (1, 1));
        assert_eq!(tree.resolve(b"a/nothing"), None);
        assert_eq!(tree.resolve(b"z/under-a-file"), None);
    }

    #[test]
    fn an_entry_that_cannot_be_shown_is_refused_with_path_and_reason() {
        let dir = |path: &'static str| Entry::new(path, Kind::Dir, 0o755);
        let link = |target: Option<&'static str>| {
            let mut link = Entry::new("l", Kind::Symlink, 0o777);
            link.link_target = target.map(Into::into);
            link
        };
        let mut no_blob = file("f", b"x");
        no_blob.blob = None;
        let mut bad_raw = file("f", b"x");
        bad_raw.name_b64 = Some(b"a/b".to_vec());
        let mut same_raw = file("g", b"x");
        same_raw.name_b64 = Some(b"f".to_vec());
        for (entries, why) in [
            (vec![file("../x", b"")], ".."),
            (vec![file("/x", b"")], "absolute"),
            (vec![file("a\0b", b"")], "NUL"),
            (vec![file("", b"")], "empty"),
            (vec![file("a", b""), file("a", b"")], "twice"),
            (vec![dir("a"), dir("a")], "twice"),
            (vec![file("a", b""), file("a/b", b"")], "both a file and a directory"),
            (vec![file("a/b", b""), file("a", b"")], "both a file and a directory"),
            (vec![file("a", b""), dir("a")], "both a file and a directory"),
            (vec![link(None)], "no target"),
            (vec![link(Some(""))], "target"),
            (vec![link(Some("a\0"))], "target"),
            (vec![no_blob], "no blob"),
            (vec![bad_raw], "slash"),
            (vec![file("f", b""), same_raw], "twice"),
        ] {
            let error = build(entries).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_path_ten_thousand_folders_deep_is_refused_with_a_short_message() {
        let deep = "d/".repeat(10_000) + "f";
        let error = build(vec![file(&deep, b"")]).unwrap_err().to_string();
        assert!(error.contains("10001 folders deep") && error.len() < 500, "{error}");
    }

    #[test]
    fn a_flood_of_implied_folders_is_refused() {
        let entries = (0..200).map(|i| file(&format!("{i}{}/f", "/d".repeat(2000)), b"")).collect();
        let error = build(entries).unwrap_err().to_string();
        assert!(error.contains("too many"), "{error}");
    }

    #[test]
    fn raw_names_links_specials_and_the_root_are_kept() {
        let mut raw_dir = Entry::new("caf?", Kind::Dir, 0o755);
        raw_dir.name_b64 = Some(b"caf\xe9".to_vec());
        let mut link = Entry::new("l", Kind::Symlink, 0o777);
        link.link_target = Some("../out".into());
        link.size = 999;
        let mut hard = file("h", b"x");
        (hard.hardlink, hard.uid) = (Some(3), Some(7));
        let mut fs = FsTree { entries: vec![raw_dir, link, hard], ..FsTree::default() };
        fs.entries.push(file("caf?/in", b"1"));
        let mut device = Entry::new("caf?/dev", Kind::Chardev, 0o600);
        device.rdev = Some(259);
        fs.specials.push(device);
        fs.header.root =
            Some(world::Root { mode: Some("0750".into()), mtime_ns: Some(1), ..Default::default() });
        let tree = Tree::parse(&fs.to_bytes().unwrap()).unwrap();
        let at = |path: &[u8]| tree.resolve(path).unwrap();
        assert_eq!(tree.rdev(at(b"caf\xe9/dev")), 259);
        assert_eq!(tree.size(at(b"caf\xe9/in")), 1);
        assert_eq!((tree.target(at(b"l")), tree.size(at(b"l"))), (Some(&b"../out"[..]), 6));
        assert_eq!(tree.hardlink(at(b"h")), Some(3));
        assert_eq!(tree.owner(at(b"h")), Owner { uid: Some(7), gid: None });
        assert_eq!((tree.mode(NodeId::ROOT), tree.mtime_ns(NodeId::ROOT)), (0o750, Some(1)));
    }

    #[test]
    fn entries_of_one_number_are_one_file_as_far_as_they_agree_and_go_by_the_first_path() {
        let with = |path: &str, content: &[u8], number| {
            let mut entry = file(path, content);
            entry.hardlink = Some(number);
            entry
        };
        let mut another_mode = with("mode", b"x", 1);
        another_mode.mode = 0o600;
        let tree = build(vec![
            with("b/x", b"x", 1),
            with("b-x", b"x", 1),
            with("z", b"x", 1),
            another_mode,
            with("p", b"other", 1),
            with("q", b"other", 1),
            with("alone", b"x", 2),
        ])
        .unwrap();
        let at = |path: &str| tree.resolve(path.as_bytes()).unwrap();
        for path in ["b/x", "b-x", "z"] {
            assert_eq!(tree.file(at(path)), (at("b-x"), 3), "{path}");
        }
        assert_eq!((tree.file(at("p")), tree.file(at("q"))), ((at("p"), 2), (at("p"), 2)));
        for path in ["mode", "alone", "b"] {
            assert_eq!(tree.file(at(path)), (at(path), 1), "{path}");
        }
        assert_eq!(tree.path_hash(at("b/x")), PathHash::TOP.child(b"b").child(b"x"));
        assert_eq!(
            (tree.path_hash(NodeId::ROOT), tree.path_hash(at("b"))),
            (PathHash::TOP, PathHash::TOP.child(b"b"))
        );
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn a_tree_holds_exactly_the_files_it_was_built_from(
            paths in proptest::collection::btree_map("[ab]{1,2}(/[ab]{1,2}){0,3}", any::<u8>(), 0..30)
        ) {
            let entries: Vec<_> = paths.iter().rev().map(|(path, byte)| file(path, &[*byte])).collect();
            let clash = paths.keys().any(|a| paths.keys().any(|b| b.starts_with(&format!("{a}/"))));
            let tree = build(entries);
            prop_assert_eq!(tree.is_err(), clash);
            if let Ok(tree) = tree {
                let found: BTreeMap<String, Digest> = tree
                    .nodes()
                    .filter_map(|id| Some((String::from_utf8(tree.path(id)).unwrap(), *tree.blob(id)?)))
                    .collect();
                let expected = paths.iter().map(|(path, byte)| (path.clone(), Digest::of(&[*byte]))).collect();
                prop_assert_eq!(found, expected);
                for id in tree.nodes().skip(1) {
                    prop_assert_eq!(tree.lookup(tree.parent(id), tree.name(id)), Some(id));
                }
            }
        }
    }
}
