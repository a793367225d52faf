//! Two forks have the same differences as their models.

use std::collections::BTreeMap;

use pfimg::fork::{Compare, How, NewFile, View, compare};
use pfimg::layers::world::Kind;

use super::model::{Model, Node};
use super::support::*;

type Differences = BTreeMap<Vec<u8>, How>;

/// By path in `world/fs`.
fn found(before: &View, after: &View) -> Differences {
    let mut found = Differences::new();
    let options = Compare { all: true, read: true };
    compare(before, after, options, &mut |difference| {
        let path = difference.path.strip_prefix(b"world/fs");
        let (how, sides) = (difference.how, (difference.before.is_some(), difference.after.is_some()));
        assert_eq!(sides, (how != How::Added, how != How::Removed), "{difference:?}");
        if let Some(path) = path {
            let path = path.strip_prefix(b"/").unwrap_or(path);
            assert_eq!(found.insert(path.to_vec(), how), None, "{} twice", path.escape_ascii());
        }
        Ok(())
    })
    .unwrap();
    found
}

fn how(before: Option<&Node>, after: Option<&Node>) -> Option<How> {
    let (before, after) = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => return Some(How::Added),
        (Some(_), None) => return Some(How::Removed),
        (Some(before), Some(after)) => (before, after),
    };
    let mode = |node: &Node| if node.kind == Kind::Symlink { 0 } else { node.mode };
    if before.kind != after.kind {
        Some(How::Kind)
    } else if before.content != after.content {
        Some(How::Content)
    } else if mode(before) != mode(after) || before.xattrs != after.xattrs {
        Some(How::Attributes)
    } else {
        None
    }
}

fn expected(before: &Model, after: &Model) -> Differences {
    let paths = |model: &Model| model.paths().into_iter().collect::<BTreeMap<_, _>>();
    let (was, is) = (paths(before), paths(after));
    let all = was.keys().chain(is.keys().filter(|path| !was.contains_key(*path)));
    let node = |model: &'_ Model, paths: &BTreeMap<Vec<u8>, _>, path: &Vec<u8>| {
        paths.get(path).map(|id| model.nodes[id].clone())
    };
    let of = |path: &Vec<u8>| how(node(before, &was, path).as_ref(), node(after, &is, path).as_ref());
    all.filter_map(|path| Some((path.clone(), of(path)?))).collect()
}

pub fn check(before: (&View, &Model), after: (&View, &Model), when: &str) {
    let show = |all: &Differences| -> Vec<_> {
        all.iter().map(|(path, how)| (path.escape_ascii().to_string(), *how)).collect()
    };
    assert_eq!(show(&found(before.0, after.0)), show(&expected(before.1, after.1)), "{when}");
}

#[test]
fn a_directory_of_one_side_is_listed_in_one_line_or_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let images = std::sync::Arc::default();
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", None).unwrap();
    let file = |path: &[u8], kind| {
        let (folder, name) = super::model::split(path);
        fork.create(fork.resolve(folder).unwrap(), name, &NewFile::new(kind, 0o755, 0, 0)).unwrap();
    };
    for path in ["world", "world/fs", "world/fs/a", "world/fs/a/b"] {
        file(path.as_bytes(), Kind::Dir);
    }
    for path in ["world/fs/a/b/c", "world/fs/a.b", "manifest.json"] {
        file(path.as_bytes(), Kind::File);
    }
    let list = |before: &View, after: &View, all| {
        let mut lines = Vec::new();
        compare(before, after, Compare { all, read: true }, &mut |found| {
            let below = found.after.or(found.before).unwrap().below;
            lines.push(format!("{:?} {} {below}", found.how, String::from_utf8(found.path).unwrap()));
            Ok(())
        })
        .unwrap();
        lines
    };
    let (nothing, view) = (registry.view(None).unwrap(), fork.view());
    assert_eq!(list(&nothing, &view, false), ["Added world 5"]);
    assert_eq!(list(&view, &nothing, false), ["Removed world 5"]);
    let all = ["world", "world/fs", "world/fs/a", "world/fs/a/b", "world/fs/a/b/c", "world/fs/a.b"];
    assert_eq!(list(&nothing, &view, true), all.map(|path| format!("Added {path} 0")));
    assert_eq!(list(&view, &view, true), [""; 0]);
    // What is written afterwards is not in what was taken before.
    file(b"world/fs/later", Kind::File);
    assert_eq!(list(&view, &fork.view(), false), ["Added world/fs/later 0"]);
}
