//! Finds what differs between the base and the fork.

use std::collections::BTreeMap;

use super::entry::{Entry, GIT};
use super::held::{Held, Node};
use super::names::Group;
use crate::layers::world::Kind;
use crate::tree::{NodeId, Tree};

/// Files of a repository that name programs to run, by the end of their path below `.git`.
const PROGRAMS: [&[u8]; 3] = [b"config", b"config.worktree", b"info/attributes"];

/// The folder of a repository that holds programs.
const HOOKS: &[u8] = b"hooks";

/// What differs between the base and the fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// The paths that differ, `.git` left out at any depth.
    pub root: Node,
    /// Files of the fork with several names, where at least one name differs.
    pub groups: Vec<Group>,
    /// Settings, hooks and filters of repositories that the fork changed or added. They never leave the fork.
    pub programs: Vec<Vec<u8>>,
    /// Whether the repository at the top may have other commits in the fork.
    pub has_commits: bool,
}

impl Sides {
    /// Compares two trees; of several paths only what is at or below them, if there are any.
    pub fn of(base: &Tree, fork: &Tree, only: &[Vec<u8>]) -> Self {
        let mut comparing = Comparing { base, fork, only, sides: Self::default() };
        let mut path = Vec::new();
        let root = comparing.node(Some(NodeId::ROOT), Some(NodeId::ROOT), &mut path);
        comparing.sides.root = root.unwrap_or_default();
        comparing.groups();
        comparing.sides
    }
}

struct Comparing<'a> {
    base: &'a Tree,
    fork: &'a Tree,
    only: &'a [Vec<u8>],
    sides: Sides,
}

impl Comparing<'_> {
    /// What differs at a path and below it, if anything does.
    fn node(&mut self, base: Option<NodeId>, fork: Option<NodeId>, path: &mut Vec<u8>) -> Option<Node> {
        let mut below = BTreeMap::new();
        let length = path.len();
        for (name, base, fork) in children(self.base, base, self.fork, fork) {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if name == GIT {
                self.repository(base, fork, path, path.len());
            } else if let Some(node) = self.node(base, fork, path) {
                below.insert(name.to_owned(), node);
            }
            path.truncate(length);
        }
        if base.zip(fork).is_some_and(|(base, fork)| is_equal(self.base, base, self.fork, fork)) {
            if below.is_empty() {
                return None;
            }
            let base = base.map(|id| held(self.base, id));
            return Some(Node { fork: base.clone(), base, below });
        }
        let base = base.map(|id| held(self.base, id));
        let fork = fork.map(|id| held(self.fork, id));
        if path.is_empty() {
            // The top folder's own permissions are the user's.
            return Some(Node { fork: base.clone(), base, below });
        }
        if self.is_meant(path) {
            return Some(Node { base, fork, below });
        }
        if below.is_empty() {
            return None;
        }
        // What is meant lies below. A new folder above it is needed; any other change of it is not meant.
        let is_new = fork.as_ref().is_some_and(Held::is_dir) && !base.as_ref().is_some_and(Held::is_dir);
        let fork = if is_new { fork } else { base.clone() };
        Some(Node { base, fork, below })
    }

    fn is_meant(&self, path: &[u8]) -> bool {
        let within = |only: &Vec<u8>| {
            path.strip_prefix(only.as_slice())
                .is_some_and(|rest| rest.is_empty() || only.is_empty() || rest.starts_with(b"/"))
        };
        self.only.is_empty() || self.only.iter().any(within)
    }

    /// Looks for what differs in a repository. `start` is where the path of `.git` ends.
    fn repository(&mut self, base: Option<NodeId>, fork: Option<NodeId>, path: &mut Vec<u8>, start: usize) {
        let is_equal = base.zip(fork).is_some_and(|(base, fork)| is_equal(self.base, base, self.fork, fork));
        let inner = &path[start..];
        if !is_equal && fork.is_some_and(|id| self.fork.kind(id) != Kind::Dir) {
            if names_programs(inner) {
                self.sides.programs.push(path.clone());
            }
            let is_ref = inner.starts_with(b"/refs/") || inner == b"/packed-refs" || inner == b"/HEAD";
            self.sides.has_commits |= is_ref && start == GIT.len();
        }
        let length = path.len();
        for (name, base, fork) in children(self.base, base, self.fork, fork) {
            path.push(b'/');
            path.extend_from_slice(name);
            self.repository(base, fork, path, start);
            path.truncate(length);
        }
    }

    /// Finds the files with several names that concern the apply, and adds each of their names to the paths.
    fn groups(&mut self) {
        let mut files: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (id, _) in self.fork.hardlinks() {
            let (first, names) = self.fork.file(id);
            if names > 1 && self.fork.kind(id) == Kind::File {
                files.entry(first).or_default().push(id);
            }
        }
        for (number, ids) in files {
            let paths: Vec<Vec<u8>> = ids.iter().map(|id| self.fork.path(*id)).collect();
            let before: Vec<Option<NodeId>> = paths.iter().map(|path| self.base.resolve(path)).collect();
            let differs = |(id, before): (&NodeId, &Option<NodeId>)| {
                before.is_none_or(|before| !is_equal(self.base, before, self.fork, *id))
            };
            let file = |before: &Option<NodeId>| before.map(|id| self.base.file(id).0);
            let is_new = before.iter().any(|before_one| file(before_one) != file(&before[0]));
            if !is_new && !ids.iter().zip(&before).any(differs) {
                continue;
            }
            let mut group = Group { paths: Vec::new(), base: Vec::new(), number: u64::from(number.0) };
            for (path, (id, before)) in paths.into_iter().zip(ids.iter().zip(&before)) {
                let in_git = path.split(|byte| *byte == b'/').any(|name| name == GIT);
                if in_git || !self.is_meant(&path) {
                    continue;
                }
                self.insert(&path, *before, *id);
                let several = before.map(|id| self.base.file(id)).filter(|(_, names)| *names > 1);
                group.base.push(several.map(|(first, _)| u64::from(first.0)));
                group.paths.push(path);
            }
            if group.paths.len() > 1 {
                self.sides.groups.push(group);
            }
        }
    }

    /// Adds a path that does not differ, and the folders above it, unless they are there.
    fn insert(&mut self, path: &[u8], base: Option<NodeId>, fork: NodeId) {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut node = &mut self.sides.root;
        for end in ends {
            let name = path[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let (base, fork) = (self.base.resolve(&path[..end]), self.fork.resolve(&path[..end]));
            node = node.below.entry(name.to_owned()).or_insert_with(|| Node {
                base: base.map(|id| held(self.base, id)),
                fork: fork.map(|id| held(self.fork, id)),
                below: BTreeMap::new(),
            });
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        node.below.entry(name.to_owned()).or_insert_with(|| Node {
            base: base.map(|id| held(self.base, id)),
            fork: Some(held(self.fork, fork)),
            below: BTreeMap::new(),
        });
    }
}

/// Whether a file of a repository, by its path below `.git`, can name a program.
fn names_programs(path: &[u8]) -> bool {
    let ends_with = |end: &[u8]| path.strip_suffix(end).is_some_and(|before| before.ends_with(b"/"));
    let in_hooks = path.split(|byte| *byte == b'/').rev().skip(1).any(|name| name == HOOKS);
    in_hooks || PROGRAMS.iter().any(|end| ends_with(end))
}

/// The children of two folders, by name.
fn children<'a>(
    base: &'a Tree,
    base_dir: Option<NodeId>,
    fork: &'a Tree,
    fork_dir: Option<NodeId>,
) -> Vec<(&'a [u8], Option<NodeId>, Option<NodeId>)> {
    let mut left = base_dir.map_or(0..0, |id| base.children(id)).map(NodeId).peekable();
    let mut right = fork_dir.map_or(0..0, |id| fork.children(id)).map(NodeId).peekable();
    let mut both = Vec::new();
    loop {
        let names = (left.peek().map(|id| base.name(*id)), right.peek().map(|id| fork.name(*id)));
        let order = match names {
            (None, None) => return both,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        let name = if order.is_gt() { names.1 } else { names.0 };
        let of_base = if order.is_le() { left.next() } else { None };
        let of_fork = if order.is_ge() { right.next() } else { None };
        both.push((name.unwrap_or_default(), of_base, of_fork));
    }
}

/// Whether two nodes hold the same, but for what lies below folders.
fn is_equal(a: &Tree, x: NodeId, b: &Tree, y: NodeId) -> bool {
    let kind = a.kind(x);
    if kind != b.kind(y) {
        return false;
    }
    match kind {
        Kind::Dir => a.mode(x) == b.mode(y),
        Kind::File => a.mode(x) == b.mode(y) && a.blob(x) == b.blob(y),
        Kind::Symlink => a.target(x) == b.target(y),
        Kind::Fifo | Kind::Socket | Kind::Chardev | Kind::Blockdev => true,
    }
}

/// What a node of a tree holds.
fn held(tree: &Tree, id: NodeId) -> Held {
    let mode = tree.mode(id);
    match (tree.kind(id), tree.blob(id)) {
        (Kind::Dir, _) => Held::Entry(Entry::Dir { mode }),
        (Kind::File, Some(content)) => {
            Held::Entry(Entry::File { mode, content: *content, size: tree.size(id), links: None })
        }
        (Kind::Symlink, _) => {
            Held::Entry(Entry::Link { target: tree.target(id).unwrap_or_default().to_owned() })
        }
        (Kind::Fifo, _) => Held::Other("a fifo"),
        (Kind::Socket, _) => Held::Other("a socket"),
        _ => Held::Other("a device"),
    }
}
