//! The derived times of a tree's nodes without a recorded time.
//!
//! A path's time is that of the image in which its content appeared at this path, along an unbroken line of
//! images: content that was changed back counts as new. A folder's content is everything below it, so its
//! time is that of the newest change below. This module reads no files: [`NodeTimes::after`] carries the
//! times of one image to the next.

use super::node::{NodeId, Tree};
use crate::layers::world::Kind;

/// Most different times in one tree, which bounds how many images a line may have.
pub const MAX_MOMENTS: usize = 1 << 12;

/// The derived time of each node of one tree, in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTimes {
    /// The times that occur, at least one.
    moments: Box<[i64]>,
    /// Each node's index among them; empty if all nodes have the first.
    places: Box<[u16]>,
}

/// Marks a node without a counterpart in the older tree.
const NONE: u32 = u32::MAX;

impl NodeTimes {
    /// Gives every node the same time.
    pub fn all(moment: i64) -> Self {
        Self { moments: Box::new([moment]), places: Box::default() }
    }

    /// Builds times from the parts that a file holds; nothing if the parts do not fit each other.
    pub fn from_parts(moments: Vec<i64>, places: Vec<u16>) -> Option<Self> {
        let sound = !moments.is_empty()
            && moments.len() <= MAX_MOMENTS
            && places.iter().all(|place| usize::from(*place) < moments.len());
        sound.then(|| Self { moments: moments.into(), places: places.into() })
    }

    /// The times that occur, and each node's index among them: empty if all nodes have the first.
    pub fn parts(&self) -> (&[i64], &[u16]) {
        (&self.moments, &self.places)
    }

    /// A node's time.
    pub fn at(&self, id: NodeId) -> i64 {
        let place = self.places.get(id.index()).copied().unwrap_or(0);
        self.moments.get(usize::from(place)).copied().unwrap_or(0)
    }

    /// Whether these may be a tree's times.
    pub fn fit(&self, tree: &Tree) -> bool {
        self.places.is_empty() || self.places.len() == tree.len()
    }

    /// Bytes it takes in memory.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.moments) + size_of_val(&*self.places)
    }

    /// Computes the times of `tree`, which an image of `moment` has, whose parent has `older` with these
    /// times.
    #[must_use]
    pub fn after(&self, older: &Tree, tree: &Tree, moment: i64) -> Self {
        let twins = twins(older, tree);
        let mut same = vec![false; tree.len()];
        // Children have higher numbers than their folder.
        for id in (0..tree.len() as u32).rev().map(NodeId) {
            let twin = twins[id.index()];
            same[id.index()] = twin != NONE && {
                let twin = NodeId(twin);
                match tree.kind(id) {
                    Kind::File => tree.blob(id) == older.blob(twin),
                    Kind::Symlink => tree.target(id) == older.target(twin),
                    Kind::Chardev | Kind::Blockdev => tree.rdev(id) == older.rdev(twin),
                    Kind::Fifo | Kind::Socket => true,
                    Kind::Dir => {
                        let children = tree.children(id);
                        // Each of them has a twin in the same folder, and there are no others.
                        children.len() == older.children(twin).len()
                            && same[children.start as usize..children.end as usize].iter().all(|same| *same)
                    }
                }
            };
        }
        let mut moments = vec![moment];
        // Index of a time of the older tree among the new ones; 0 if it is not there yet.
        let mut moved = vec![0u16; self.moments.len()];
        let mut places = vec![0u16; tree.len()];
        for (id, place) in places.iter_mut().enumerate() {
            if !same[id] {
                continue;
            }
            let old = self.places.get(twins[id] as usize).copied().map_or(0, usize::from);
            if self.moments[old] == moment {
                continue;
            }
            if moved[old] == 0 && moments.len() < MAX_MOMENTS {
                moved[old] = moments.len() as u16;
                moments.push(self.moments[old]);
            }
            *place = moved[old];
        }
        if places.iter().all(|place| *place == 0) {
            return Self::all(moment);
        }
        Self { moments: moments.into(), places: places.into() }
    }
}

impl Tree {
    /// The time that a node shows: the recorded one, else the derived one.
    pub fn shown_mtime_ns(&self, id: NodeId, times: &NodeTimes) -> i64 {
        self.mtime_ns(id).unwrap_or_else(|| times.at(id))
    }
}

/// The node of `older` that has the same path and kind, for each node of `tree`.
fn twins(older: &Tree, tree: &Tree) -> Vec<u32> {
    let mut twins = vec![NONE; tree.len()];
    twins[0] = NodeId::ROOT.0;
    for id in (0..tree.len() as u32).map(NodeId) {
        let twin = twins[id.index()];
        if twin == NONE || tree.kind(id) != Kind::Dir {
            continue;
        }
        let mut olds = older.children(NodeId(twin)).map(NodeId).peekable();
        for child in tree.children(id).map(NodeId) {
            while olds.next_if(|old| older.name(*old) < tree.name(child)).is_some() {}
            let found = olds.next_if(|old| older.name(*old) == tree.name(child));
            if let Some(found) = found.filter(|found| older.kind(*found) == tree.kind(child)) {
                twins[child.index()] = found.0;
            }
        }
    }
    twins
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;
    use crate::layers::world::{Entry, FsTree};

    /// The content at a path of a model: a file's content, a link's target, or a folder.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Thing {
        File(u8),
        Link(u8),
        Fifo,
        Dir,
    }

    pub(crate) type Model = BTreeMap<String, Thing>;

    pub(crate) fn tree_bytes(model: &Model) -> Vec<u8> {
        let mut tree = FsTree::default();
        for (path, thing) in model {
            let kind = match thing {
                Thing::File(_) => Kind::File,
                Thing::Link(_) => Kind::Symlink,
                Thing::Fifo => Kind::Fifo,
                Thing::Dir => Kind::Dir,
            };
            let mut entry = Entry::new(path.clone(), kind, 0o644);
            match thing {
                Thing::File(content) => (entry.blob, entry.size) = (Some(Digest::of(&[*content])), 1),
                Thing::Link(target) => entry.link_target = Some(format!("t{target}").into()),
                Thing::Fifo => {
                    tree.specials.push(entry);
                    continue;
                }
                Thing::Dir => {}
            }
            tree.entries.push(entry);
        }
        tree.to_bytes().unwrap()
    }

    /// Everything at a path and below it, in one value.
    fn all_of(model: &Model, path: &str) -> Option<Model> {
        let prefix = format!("{path}/");
        let below = |p: &String| path.is_empty() || *p == path || p.starts_with(&prefix);
        let found: Model =
            model.iter().filter(|(p, _)| below(p)).map(|(p, thing)| (p.clone(), thing.clone())).collect();
        (path.is_empty() || !found.is_empty()).then_some(found)
    }

    /// The rule, implemented literally: `line` is the image, its parent, and further ancestors.
    pub(crate) fn naive(line: &[(i64, Model)], path: &str) -> i64 {
        let here = all_of(&line[0].1, path);
        let run = line.iter().take_while(|(_, model)| all_of(model, path) == here);
        run.last().unwrap().0
    }

    /// A model with every folder listed, so that implied ones are among its paths.
    pub(crate) fn whole(files: BTreeMap<String, Thing>) -> Model {
        let mut model = Model::new();
        for (path, thing) in files {
            let folders: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
            // A path is either a folder or another kind.
            if folders.iter().any(|folder| model.get(*folder).is_some_and(|t| *t != Thing::Dir)) {
                continue;
            }
            for folder in folders {
                model.insert(folder.to_owned(), Thing::Dir);
            }
            model.entry(path).or_insert(thing);
        }
        model
    }

    pub(crate) fn models() -> impl Strategy<Value = Model> {
        let thing = prop_oneof![
            4 => (0u8..3).prop_map(Thing::File),
            1 => (0u8..2).prop_map(Thing::Link),
            1 => Just(Thing::Fifo),
            1 => Just(Thing::Dir),
        ];
        proptest::collection::btree_map("[ab](/[ab]){0,2}", thing, 0..8).prop_map(whole)
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn times_along_any_line_are_those_of_the_rule(
            mut line in proptest::collection::vec((any::<i16>().prop_map(i64::from), models()), 1..8)
        ) {
            // Oldest last, as in the rule; derived from the oldest on.
            let oldest = line.last().unwrap();
            let mut tree = Tree::parse(&tree_bytes(&oldest.1)).unwrap();
            let mut times = NodeTimes::all(oldest.0);
            for at in (0..line.len() - 1).rev() {
                let next = Tree::parse(&tree_bytes(&line[at].1)).unwrap();
                times = times.after(&tree, &next, line[at].0);
                tree = next;
                prop_assert!(times.fit(&tree));
                for id in tree.nodes() {
                    let path = String::from_utf8(tree.path(id)).unwrap();
                    prop_assert_eq!(times.at(id), naive(&line[at..], &path), "{}", path);
                }
            }
            line.clear();
        }
    }

    #[test]
    fn a_time_without_a_node_is_forgotten() {
        let model = |content| whole(BTreeMap::from([("a".to_owned(), Thing::File(content))]));
        let mut tree = Tree::parse(&tree_bytes(&model(0))).unwrap();
        let mut times = NodeTimes::all(0);
        for moment in 1..5000 {
            let next = Tree::parse(&tree_bytes(&model(moment as u8))).unwrap();
            times = times.after(&tree, &next, moment);
            tree = next;
        }
        assert_eq!(times, NodeTimes::all(4999));
    }
}
