//! Plans of random trees against a model, and one by one.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::held::{Content, Held, Here};
use super::plan::{Decide, Lines, Merged, Others, Plan, plan};
use super::sides::Sides;
use super::{Entry, Step};
use crate::digest::Digest;
use crate::error::Result;
use crate::layers::world::{self, FsTree, Kind};
use crate::tree::Tree;

/// What a tree of the tests holds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Dir(u16),
    /// Permissions, and three lines of one digit each.
    File(u16, [u8; 3]),
    Link(u8),
}

type Model = BTreeMap<String, Item>;

const PATHS: [&str; 12] =
    ["a", "a/a", "a/b", "a/b/a", "a/b/c", "b", "b/a", "b/a/a", "c", "d", "d/a", "d/a/a"];

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(above, _)| above)
}

fn put(tree: &mut Model, path: &str, item: Item) {
    let mut above = parent(path);
    while let Some(dir) = above {
        if !matches!(tree.get(dir), Some(Item::Dir(_))) {
            tree.insert(dir.to_owned(), Item::Dir(0o755));
        }
        above = parent(dir);
    }
    if !matches!(item, Item::Dir(_)) {
        remove(tree, path);
    }
    tree.insert(path.to_owned(), item);
}

fn remove(tree: &mut Model, path: &str) {
    tree.retain(|its, _| its != path && !its.starts_with(&format!("{path}/")));
}

/// A change of a tree: a path, and what is put there, if anything.
type Edit = (usize, Option<Item>);

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    let mode = prop_oneof![3 => Just(0o644_u16), 1 => Just(0o755), 1 => Just(0o600)];
    let dir_mode = prop_oneof![5 => Just(0o755_u16), 1 => Just(0o700), 1 => Just(0o750)];
    let lines = proptest::array::uniform3(prop_oneof![3 => Just(b'0'), 1 => Just(b'1'), 1 => Just(b'2')]);
    let item = prop_oneof![
        3 => Just(None),
        2 => dir_mode.prop_map(|mode| Some(Item::Dir(mode))),
        5 => (mode, lines).prop_map(|(mode, lines)| Some(Item::File(mode, lines))),
        1 => (b'0'..b'3').prop_map(|target| Some(Item::Link(target))),
    ];
    proptest::collection::vec((0..PATHS.len(), item), 0..most)
}

fn edited(tree: &Model, edits: &[Edit]) -> Model {
    let mut tree = tree.clone();
    for (path, item) in edits {
        match item {
            Some(item) => put(&mut tree, PATHS[*path], item.clone()),
            None => remove(&mut tree, PATHS[*path]),
        }
    }
    tree
}

fn digest(lines: [u8; 3]) -> Digest {
    Digest::of(&lines)
}

fn entry(item: &Item) -> Entry {
    match item {
        Item::Dir(mode) => Entry::Dir { mode: *mode },
        Item::File(mode, lines) => Entry::File { mode: *mode, content: digest(*lines), size: 3, links: None },
        Item::Link(target) => Entry::Link { target: vec![*target] },
    }
}

fn tree(model: &Model) -> Tree {
    let entries = model.iter().map(|(path, item)| {
        let (kind, mode) = match item {
            Item::Dir(mode) => (Kind::Dir, *mode),
            Item::File(mode, _) => (Kind::File, *mode),
            Item::Link(_) => (Kind::Symlink, 0o777),
        };
        let mut entry = world::Entry::new(path.clone(), kind, mode);
        match item {
            Item::File(_, lines) => (entry.blob, entry.size) = (Some(digest(*lines)), 3),
            Item::Link(target) => entry.link_target = Some(char::from(*target).to_string().into()),
            Item::Dir(_) => {}
        }
        entry
    });
    Tree::parse(&FsTree { entries: entries.collect(), ..FsTree::default() }.to_bytes().unwrap()).unwrap()
}

/// All that a directory holds.
fn here(model: &Model) -> Here {
    let mut here = Here::default();
    for (path, item) in model {
        here.held.insert(path.clone().into_bytes(), Held::Entry(entry(item)));
        if matches!(item, Item::Dir(_)) {
            here.names.entry(path.clone().into_bytes()).or_default();
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        here.names.entry(above.as_bytes().to_owned()).or_default().push(name.as_bytes().to_owned());
    }
    here
}

/// Merges three lines one by one; each may change on its own.
struct ByLine {
    known: HashMap<Digest, [u8; 3]>,
    others: Others,
}

impl ByLine {
    fn new(others: Others) -> Self {
        let digits = [b'0', b'1', b'2'];
        let mut known = HashMap::new();
        for a in digits {
            for b in digits {
                for c in digits {
                    known.insert(digest([a, b, c]), [a, b, c]);
                }
            }
        }
        Self { known, others }
    }
}

fn merge_lines(base: Option<[u8; 3]>, fork: [u8; 3], here: [u8; 3]) -> [Option<u8>; 3] {
    std::array::from_fn(|at| match base.map(|base| base[at]) {
        _ if fork[at] == here[at] => Some(here[at]),
        Some(base) if base == here[at] => Some(fork[at]),
        Some(base) if base == fork[at] => Some(here[at]),
        _ => None,
    })
}

impl Lines for ByLine {
    fn merge(&mut self, _: &[u8], base: Option<&Content>, fork: &Content, here: &Content) -> Result<Merged> {
        let lines = |content: &Content| self.known[&content.digest];
        let merged = merge_lines(base.map(lines), lines(fork), lines(here));
        let content = |lines: [u8; 3]| Content { digest: digest(lines), size: 3 };
        if let [Some(a), Some(b), Some(c)] = merged {
            return Ok(Merged::Clean(content([a, b, c])));
        }
        let decide = |side: [u8; 3]| content(std::array::from_fn(|at| merged[at].unwrap_or(side[at])));
        let decided = match self.others {
            Others::Ours => Some((decide(lines(here)), "ours".to_owned())),
            Others::Theirs => Some((decide(lines(fork)), "theirs".to_owned())),
            Others::Refuse | Others::Skip => None,
        };
        Ok(Merged::Conflict { by_lines: true, why: "lines".to_owned(), decided })
    }
}

fn decide(others: Others) -> Decide {
    Decide { markers: false, others, them: "the fork" }
}

fn planned(base: &Model, fork: &Model, now: &Model, others: Others) -> Plan {
    let sides = Sides::of(&tree(base), &tree(fork), &[]);
    plan(&sides.root, &sides.groups, &here(now), decide(others), &mut ByLine::new(others)).unwrap()
}

/// Carries steps out on a model, in their order, each as strictly as a directory would.
fn carried_out(steps: &[Step], now: &Model, known: &HashMap<Digest, [u8; 3]>) -> Model {
    let mut tree = now.clone();
    for step in steps {
        let path = String::from_utf8(step.path.clone()).unwrap();
        let old = tree.get(&path).map(entry);
        assert_eq!(old, step.was, "{path} is not what the step says");
        let is_empty = !tree.keys().any(|its| its.starts_with(&format!("{path}/")));
        let becomes_dir = matches!(step.becomes, Some(Entry::Dir { .. }));
        assert!(is_empty || becomes_dir, "{path} is not empty");
        let item = match &step.becomes {
            None => {
                tree.remove(&path);
                continue;
            }
            Some(Entry::Dir { mode }) => Item::Dir(*mode),
            Some(Entry::File { mode, content, .. }) => Item::File(*mode, known[content]),
            Some(Entry::Link { target }) => Item::Link(target[0]),
        };
        let above = parent(&path);
        assert!(
            above.is_none_or(|above| matches!(tree.get(above), Some(Item::Dir(_)))),
            "{path}: no directory"
        );
        tree.insert(path, item);
    }
    tree
}

/// What a directory holds after an apply without conflicts; nothing if there is one. Looks at each path by itself first, and then at
/// whether the result is a tree.
fn model(base: &Model, fork: &Model, now: &Model) -> Option<Model> {
    let mut result = Model::new();
    let mut doubtful = Vec::new();
    for path in PATHS {
        let (b, f, h) = (base.get(path), fork.get(path), now.get(path));
        let wish = if b == f || f == h {
            h.cloned()
        } else if b == h {
            f.cloned()
        } else if let (Some(Item::File(fm, fl)), Some(Item::File(hm, hl))) = (f, h) {
            let (bm, bl) = match b {
                Some(Item::File(mode, lines)) => (Some(*mode), Some(*lines)),
                _ => (None, None),
            };
            let mode = if fm == hm || bm == Some(*fm) {
                *hm
            } else if bm == Some(*hm) {
                *fm
            } else {
                return None;
            };
            let merged = merge_lines(bl, *fl, *hl);
            if merged.contains(&None) {
                return None;
            }
            Some(Item::File(mode, merged.map(Option::unwrap_or_default)))
        } else {
            doubtful.push(path);
            h.cloned()
        };
        if let Some(item) = wish {
            result.insert(path.to_owned(), item);
        }
    }
    // A folder that the fork deleted stays with what is left in it.
    for path in PATHS.iter().rev() {
        let has_children = result.keys().any(|its| its.starts_with(&format!("{path}/")));
        let (b, h) = (base.get(*path), now.get(*path));
        let was_folder = matches!(b, Some(Item::Dir(_))) && matches!(h, Some(Item::Dir(_)));
        if fork.get(*path).is_none() && was_folder && has_children {
            result.insert((*path).to_owned(), now[*path].clone());
            doubtful.retain(|its| its != path);
        }
    }
    let is_tree = result
        .keys()
        .all(|path| parent(path).is_none_or(|above| matches!(result.get(above), Some(Item::Dir(_)))));
    (doubtful.is_empty() && is_tree).then_some(result)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..crate::crashpack::failing::config() })]

    #[test]
    fn a_plan_of_three_random_trees_is_what_a_model_says_and_applies_once(
        first in edits(14), to_fork in edits(5), to_here in edits(5)
    ) {
        let base = edited(&Model::new(), &first);
        let (fork, now) = (edited(&base, &to_fork), edited(&base, &to_here));
        let known = ByLine::new(Others::Refuse).known;
        let made = planned(&base, &fork, &now, Others::Refuse);
        let expected = model(&base, &fork, &now);
        prop_assert_eq!(made.conflicts.is_empty(), expected.is_some(), "{:?}", made);
        prop_assert!(made.decided.is_empty());
        if let Some(expected) = expected {
            let after = carried_out(&made.steps, &now, &known);
            prop_assert_eq!(&after, &expected);
            let again = planned(&base, &fork, &after, Others::Refuse);
            prop_assert!(again.steps.is_empty() && again.conflicts.is_empty(), "{:?}", again);
        }
    }

    #[test]
    fn a_decided_plan_can_be_carried_out_and_keeps_what_it_should(
        first in edits(14), to_fork in edits(5), to_here in edits(5)
    ) {
        let base = edited(&Model::new(), &first);
        let (fork, now) = (edited(&base, &to_fork), edited(&base, &to_here));
        let known = ByLine::new(Others::Refuse).known;
        let refused = planned(&base, &fork, &now, Others::Refuse);
        for others in [Others::Ours, Others::Skip, Others::Theirs] {
            let made = planned(&base, &fork, &now, others);
            prop_assert!(made.conflicts.is_empty(), "{:?}", made);
            prop_assert_eq!(refused.conflicts.is_empty(), made.decided.is_empty());
            let after = carried_out(&made.steps, &now, &known);
            for path in PATHS {
                let (b, f, h, is) = (base.get(path), fork.get(path), now.get(path), after.get(path));
                let inner = |tree: &Model| tree.keys().any(|its| its.starts_with(&format!("{path}/")));
                if b == f && others != Others::Theirs {
                    prop_assert_eq!(is, h, "{} changed, and the fork did not change it", path);
                }
                if others == Others::Theirs && b != f && is != f {
                    let both_files = matches!((f, is), (Some(Item::File(..)), Some(Item::File(..))));
                    let stays = f.is_none() && inner(&after);
                    prop_assert!(both_files || stays, "{} is {:?} and not as in the fork", path, is);
                }
            }
            for conflict in refused.conflicts.iter().filter(|_| others == Others::Skip) {
                let path = std::str::from_utf8(&conflict.path).unwrap();
                prop_assert_eq!(after.get(path), now.get(path), "{} was skipped", path);
            }
            if others != Others::Theirs {
                let again = planned(&base, &fork, &after, others);
                prop_assert!(again.steps.is_empty(), "{:?}", again);
            }
        }
    }
}

fn of(items: &[(&str, Item)]) -> Model {
    let mut tree = Model::new();
    for (path, item) in items {
        put(&mut tree, path, item.clone());
    }
    tree
}

fn text(lines: &str) -> Item {
    Item::File(0o644, lines.as_bytes().try_into().unwrap())
}

#[test]
fn a_conflict_describes_the_changes_of_both_sides() {
    let dir = Item::Dir(0o755);
    for (base, fork, now, path, why) in [
        (
            of(&[("c", text("000"))]),
            of(&[("c", text("100"))]),
            of(&[]),
            "c",
            "you deleted it, the fork changed it",
        ),
        (
            of(&[("c", text("000"))]),
            of(&[]),
            of(&[("c", text("100"))]),
            "c",
            "you changed it, the fork deleted it",
        ),
        (of(&[("c", text("000"))]), of(&[("c", text("100"))]), of(&[("c", text("200"))]), "c", "lines"),
        (of(&[]), of(&[("c", text("100"))]), of(&[("c", text("200"))]), "c", "both sides added it"),
        (
            of(&[("c", text("000"))]),
            of(&[("c", Item::File(0o600, *b"000"))]),
            of(&[("c", Item::File(0o755, *b"000"))]),
            "c",
            "permissions changed on both sides",
        ),
        (
            of(&[("a", dir.clone())]),
            of(&[("a/b", text("000"))]),
            of(&[]),
            "a/b",
            "you deleted the directory it is in, the fork added it",
        ),
        (
            of(&[("a/b", text("000"))]),
            of(&[("a", text("000"))]),
            of(&[("a/b", text("000")), ("a/c", text("000"))]),
            "a",
            "the fork made it a file, it holds files of yours",
        ),
        (
            of(&[("a/b", text("000"))]),
            of(&[("a", Item::Link(b'0'))]),
            of(&[("a/b", text("100"))]),
            "a",
            "the fork made it a link, you changed a/b in it",
        ),
        (
            of(&[("c", Item::Link(b'0'))]),
            of(&[("c", Item::Link(b'1'))]),
            of(&[("c", Item::Link(b'2'))]),
            "c",
            "both sides changed it",
        ),
        (
            of(&[("a/b", text("000"))]),
            of(&[]),
            of(&[("a", Item::Link(b'2'))]),
            "a",
            "you made it a link, the fork deleted it",
        ),
    ] {
        let made = planned(&base, &fork, &now, Others::Refuse);
        let found: Vec<_> = made
            .conflicts
            .iter()
            .map(|about| (String::from_utf8(about.path.clone()).unwrap(), about.why.clone()))
            .collect();
        assert_eq!(found, [(path.to_owned(), why.to_owned())]);
    }
}

#[test]
fn a_deleted_folder_stays_with_the_files_that_the_fork_does_not_know() {
    let base = of(&[("a/a", text("000")), ("a/b", text("000"))]);
    let now = of(&[("a/a", text("000")), ("a/b", text("000")), ("a/mine", text("111"))]);
    let made = planned(&base, &of(&[]), &now, Others::Refuse);
    let steps: Vec<&[u8]> = made.steps.iter().map(|step| step.path.as_slice()).collect();
    assert_eq!(steps, [b"a/b", b"a/a"]);
    assert_eq!((made.conflicts.len(), made.notes.len()), (0, 1));
}

#[test]
fn fifos_are_neither_brought_over_nor_replaced() {
    let base = of(&[("c", text("000"))]);
    let sides = Sides::of(&tree(&base), &tree(&of(&[])), &[]);
    let mut now = Here::default();
    now.held.insert(b"c".to_vec(), Held::Other("a fifo"));
    for (others, conflicts) in
        [(Others::Refuse, 1), (Others::Theirs, 1), (Others::Ours, 0), (Others::Skip, 0)]
    {
        let made = plan(&sides.root, &[], &now, decide(others), &mut ByLine::new(others)).unwrap();
        assert_eq!((made.steps.len(), made.conflicts.len()), (0, conflicts), "{others:?}");
    }
}

#[test]
fn paths_limit_a_plan_and_bring_the_new_folders_above_them() {
    let base = of(&[("c", text("000"))]);
    let fork =
        of(&[("c", text("100")), ("a/b/c", text("000")), ("a/b/a", text("000")), ("a/a", text("000"))]);
    let steps = |only: &[&str]| {
        let only: Vec<Vec<u8>> = only.iter().map(|path| path.as_bytes().to_vec()).collect();
        let sides = Sides::of(&tree(&base), &tree(&fork), &only);
        let made =
            plan(&sides.root, &[], &here(&base), decide(Others::Refuse), &mut ByLine::new(Others::Refuse));
        let made = made.unwrap();
        made.steps
            .iter()
            .map(|step| String::from_utf8(step.path.clone()).unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(steps(&["a/b/c"]), "a a/b a/b/c");
    assert_eq!(steps(&["a/b", "c"]), "a a/b a/b/a a/b/c c");
    assert_eq!(steps(&["nothing"]), "");
    assert_eq!(steps(&[]), "a a/a a/b a/b/a a/b/c c");
}

#[test]
fn names_of_one_file_in_the_fork_become_one_file_here() {
    let file = |path: &str, content: &[u8], number: Option<u64>| {
        let mut entry = world::Entry::new(path.to_owned(), Kind::File, 0o644);
        (entry.blob, entry.size, entry.hardlink) = (Some(Digest::of(content)), 3, number);
        entry
    };
    let tree = |entries: Vec<world::Entry<'static>>| {
        Tree::parse(&FsTree { entries, ..FsTree::default() }.to_bytes().unwrap()).unwrap()
    };
    let base = tree(vec![file("a", b"000", None)]);
    // A new name of a file that stays, and a new file with two names.
    let linked = [("a", b"000", 1), ("b", b"000", 1), ("c", b"111", 2), ("d", b"111", 2)];
    let fork =
        tree(linked.iter().map(|(path, content, number)| file(path, *content, Some(*number))).collect());
    let sides = Sides::of(&base, &fork, &[]);
    let mut now = here(&of(&[("a", text("000"))]));
    let planned = |now: &Here| {
        plan(&sides.root, &sides.groups, now, decide(Others::Refuse), &mut ByLine::new(Others::Refuse))
            .unwrap()
    };
    let links = |made: &Plan, path: &str| match &made.steps.iter().find(|step| step.path == path.as_bytes()) {
        Some(Step { becomes: Some(Entry::File { links, .. }), .. }) => *links,
        other => panic!("{path}: {other:?}"),
    };
    let made = planned(&now);
    assert_eq!(made.steps.len(), 4);
    assert!(links(&made, "a").is_some() && links(&made, "a") == links(&made, "b"));
    assert!(links(&made, "c") == links(&made, "d") && links(&made, "a") != links(&made, "c"));
    // Once they are, nothing is left to do.
    for (path, content, number) in linked {
        let entry =
            Entry::File { mode: 0o644, content: Digest::of(content), size: 3, links: Some(number + 7) };
        now.held.insert(path.as_bytes().to_vec(), Held::Entry(entry));
    }
    assert_eq!(planned(&now).steps, []);
}
