//! Folders and stores that change during an operation, or that were made to do harm.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pfimg::audit::Log;
use pfimg::ops::import::{Options, Progress, import};
use pfimg::store::Store;
use serde_json::json;

use super::support::House;
use crate::common::cli::pfimg_on;
use crate::common::fast::{FastStore, Spec};
use crate::common::{bare, hex_digest};

/// Does something each time the list of files is known, and before any file is read.
struct Meanwhile<F: Fn() + Sync>(F);

impl<F: Fn() + Sync> Progress for Meanwhile<F> {
    fn to_read(&self, _: u64) {
        self.0();
    }
}

pub(super) fn import_while(house: &House, dir: &Path, meanwhile: impl Fn() + Sync) -> String {
    let store = Store::create(house.store()).unwrap();
    let options = Options::new(dir, Log::off());
    import(&store, &options, &Meanwhile(meanwhile)).unwrap().image.to_string()
}

#[test]
fn a_file_of_several_names_is_imported_whatever_becomes_of_the_first_ones() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    let file = |name: &str| dir.join(name);
    for first in ["a", "p", "x"] {
        fs::write(file(first), format!("content of {first}")).unwrap();
        for more in ["1", "2", "3"] {
            fs::hard_link(file(first), file(&format!("{first}{more}"))).unwrap();
        }
    }
    // During the import, all names of `a` but one are removed, and all names of `p` but one become other files. The result must
    // not depend on the name that the import reads.
    let image = import_while(&house, &dir, || {
        for name in ["a", "a1", "a2"] {
            fs::remove_file(file(name)).unwrap();
        }
        for name in ["p", "p1", "p2"] {
            fs::write(file("new"), format!("replaced {name}")).unwrap();
            fs::rename(file("new"), file(name)).unwrap();
        }
    });
    let out = house.dir.join("out");
    house.pfimg(["export", &image, out.to_str().unwrap()]).exits(0);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    assert_eq!(read("a3"), "content of a");
    assert!(!out.join("a").exists());
    assert_eq!(read("p3"), "content of p");
    for name in ["p", "p1", "p2"] {
        assert_eq!(read(name), format!("replaced {name}"));
    }
    for name in ["x", "x1", "x2", "x3"] {
        assert_eq!(read(name), "content of x");
        assert_eq!(fs::metadata(out.join(name)).unwrap().nlink(), 4);
    }
}

#[test]
fn the_first_of_two_rule_files_counts_as_in_pf() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir_all(dir.join("dist")).unwrap();
    for (name, text) in [(".pfignore", "*.log\n"), (".gitignore", "dist\n"), ("a.log", ""), ("dist/b", "")] {
        fs::write(dir.join(name), text).unwrap();
    }
    let names = |image: &str| {
        let tree = house.tree_json(image);
        let entries = tree["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let both = names(&super::support::id(&house.import(&dir, &["--pf-ignores"])));
    assert!(both.contains(&"dist/b".to_owned()) && !both.contains(&"a.log".to_owned()), "{both:?}");
    fs::remove_file(dir.join(".pfignore")).unwrap();
    let one = names(&super::support::id(&house.import(&dir, &["--pf-ignores"])));
    assert!(!one.contains(&"dist/b".to_owned()) && one.contains(&"a.log".to_owned()), "{one:?}");
    // Unless pf's rules are asked for, a .gitignore leaves nothing out.
    let all = names(&super::support::id(&house.import(&dir, &[])));
    assert!(all.contains(&"dist/b".to_owned()) && all.contains(&"a.log".to_owned()), "{all:?}");
}

fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

fn elsewhere() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine");
    fs::create_dir(&path).unwrap();
    (dir, path)
}

#[test]
fn links_in_a_store_lead_no_command_out_of_it() {
    let mut store = FastStore::new();
    let id = store.image(&Spec::default());
    let root = store.root().to_owned();
    let (_dir, mine) = elsewhere();
    let hex = hex_digest(b"nobody's");
    let precious = ["report.tmp.2019.txt", "00aa.tmp.7.1", &format!("{hex}.zst")].map(|name| mine.join(name));
    for file in &precious {
        fs::write(file, "precious").unwrap();
        age(file);
    }
    symlink(&mine, root.join("blobs/sha256/zz")).unwrap();
    fs::remove_dir_all(root.join("blobs/sha256").join(&hex[..2])).ok();
    symlink(&mine, root.join("blobs/sha256").join(&hex[..2])).unwrap();
    pfimg_on(&root, ["gc", "--grace", "0"]).exits(0);
    let log = mine.join("bashrc");
    fs::write(&log, "alias a=b\nno line feed").unwrap();
    fs::remove_dir_all(root.join("audit")).ok();
    fs::create_dir(root.join("audit")).unwrap();
    symlink(&log, root.join("audit/events.jsonl")).unwrap();
    pfimg_on(&root, ["tag", bare(&id), "one"]);
    fs::remove_dir_all(root.join("audit")).unwrap();
    symlink(&mine, root.join("audit")).unwrap();
    pfimg_on(&root, ["tag", bare(&id), "two"]);
    for file in &precious {
        assert_eq!(fs::read(file).unwrap(), b"precious", "{}", file.display());
    }
    assert_eq!(fs::read(&log).unwrap(), b"alias a=b\nno line feed");
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 4, "nothing was made there");
}

#[test]
fn prune_refuses_to_run_with_a_damaged_tag() {
    let mut store = FastStore::new();
    let old = Spec { created_at: Some("2020-01-01T00:00:00Z".into()), ..Spec::default() };
    let id = store.image(&old);
    store.image(&Spec::default());
    let root = store.root();
    pfimg_on(root, ["tag", bare(&id), "one"]).exits(0);
    fs::write(root.join("refs/tags/one"), "damaged").unwrap();
    let said = pfimg_on(root, ["prune", "--all", "--keep-last", "1"]).exits(4).stderr;
    assert!(said.contains("refs/tags/one"), "{said}");
    assert!(store.marker_path(&id).exists());
}

#[test]
fn gc_keeps_continued_ledgers_and_blobs_named_in_odd_process_lists() {
    let mut store = FastStore::new();
    let side = |store: &mut FastStore, n: u64| store.ledger(n, 2);
    let (a, b, ancestor) = (side(&mut store, 1), side(&mut store, 2), side(&mut store, 3));
    let merged = store.blob_json(&json!({
        "kind": "effects.merged.v1", "parent_a": a, "parent_b": b, "ancestor": ancestor, "replay_with_new_key": [],
        "summary": {"a_entries": 2, "b_entries": 2, "b_irreversible_cached": 0},
    }));
    let header = json!({"kind": "effects.ledger.v1", "entries": 0, "continues": merged});
    let ledger = store.blob(format!("{header}\n").as_bytes());
    let id = store.image(&Spec { ledger: Some(ledger), ..Spec::default() });
    // What an agent wrote in place of a list of processes.
    let dump = store.blob(b"a dump that is named somewhere");
    let procs = store.blob_json(&json!({"kind": "procs.respawn.v1", "pid": "x", "dump": dump}));
    let garbage = store.blob(b"garbage");
    let marker: serde_json::Value =
        serde_json::from_slice(&fs::read(store.marker_path(&id)).unwrap()).unwrap();
    let mut other = marker;
    other["world"]["procs"] = procs.into();
    store.image_of(&serde_json::to_vec(&other).unwrap());
    let root = store.root().to_owned();
    pfimg_on(&root, ["gc", "--grace", "0"]).exits(0);
    for kept in [&merged, &a, &b, &ancestor, &dump] {
        assert!(store.blob_path(kept).exists(), "{kept}");
    }
    assert!(!store.blob_path(&garbage).exists());
    fs::remove_file(store.blob_path(&merged)).unwrap();
    let said = pfimg_on(&root, ["verify"]).exits(4).said();
    assert!(said.contains(bare(&merged)), "verify looks at it: {said}");
}
