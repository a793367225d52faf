//! Isolation: random programs over families of forks, each fork compared with a separate model.
//!
//! `PFIMG_RUNS` sets how many programs run (500), `PFIMG_SEED` the first seed (1).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::cli::tool;
use crate::common::failing::Program;
use crate::common::forks::{big, fork, open_rw, punch, small_store, world, write_mapped};
use crate::common::{Mount, Rng, wait_until};

/// Forks in one family, and how deep it may go.
const FAMILY: usize = 16;
const DEPTH: u32 = 6;
/// Steps of one program.
const STEPS: u64 = 150;
/// No file grows beyond this.
const LARGEST: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    /// Which content: names of one file share it.
    File(u64),
    Link(PathBuf),
}

/// What a fork's `world/fs` should hold.
#[derive(Clone, Debug)]
struct Model {
    entries: BTreeMap<PathBuf, Node>,
    contents: BTreeMap<u64, Vec<u8>>,
    next: u64,
    depth: u32,
}

impl Model {
    fn base() -> Self {
        let mut model = Self { entries: BTreeMap::new(), contents: BTreeMap::new(), next: 0, depth: 1 };
        for dir in ["bin", "empty", "src"] {
            model.entries.insert(dir.into(), Node::Dir);
        }
        for (path, bytes) in [
            ("README", b"read me\n".to_vec()),
            ("big", big()),
            ("bin/tool", b"#!/bin/sh\necho tool\n".to_vec()),
            ("src/main.rs", b"fn main() {}\n".to_vec()),
            ("src/lib.rs", b"//! Nothing.\n".to_vec()),
        ] {
            model.put(path.into(), bytes);
        }
        model.entries.insert("link".into(), Node::Link("README".into()));
        model
    }

    fn put(&mut self, path: PathBuf, bytes: Vec<u8>) {
        self.contents.insert(self.next, bytes);
        self.entries.insert(path, Node::File(self.next));
        self.next += 1;
    }

    /// What `cp -r` makes of it: names of one file become files.
    fn copied(&self) -> Self {
        let mut copy = Self { contents: BTreeMap::new(), next: 0, ..self.clone() };
        for (path, node) in &self.entries {
            if let Node::File(id) = node {
                copy.put(path.clone(), self.contents[id].clone());
            }
        }
        copy
    }

    fn pick(&self, rng: &mut Rng, wanted: impl Fn(&Node) -> bool) -> Option<PathBuf> {
        let found: Vec<_> = self.entries.iter().filter(|(_, n)| wanted(n)).map(|(p, _)| p).collect();
        (!found.is_empty()).then(|| (*rng.pick(&found)).clone())
    }

    fn file(&self, rng: &mut Rng) -> Option<PathBuf> {
        self.pick(rng, |node| matches!(node, Node::File(_)))
    }

    fn bytes(&mut self, path: &Path) -> &mut Vec<u8> {
        let Node::File(id) = self.entries[path] else { panic!("{} is not a file", path.display()) };
        self.contents.get_mut(&id).unwrap()
    }

    /// A place that nothing is at.
    fn free(&self, rng: &mut Rng) -> PathBuf {
        loop {
            let dir = if rng.chance(40) { None } else { self.pick(rng, |node| *node == Node::Dir) };
            let path = dir.unwrap_or_default().join(format!("n{}", rng.below(1000)));
            if !self.entries.contains_key(&path) && path.components().count() < 12 {
                return path;
            }
        }
    }

    fn subtree(&self, path: &Path) -> Vec<PathBuf> {
        self.entries.keys().filter(|p| p.starts_with(path)).cloned().collect()
    }
}

/// Does one step in one fork: on disk, then in the model. Returns a description for failed comparisons.
fn step(rng: &mut Rng, root: &Path, model: &mut Model) -> String {
    match rng.below(100) {
        0..30 => {
            let Some(path) = model.file(rng) else { return String::new() };
            let len = model.bytes(&path).len() as u64;
            let reach = if rng.chance(20) { LARGEST / 2 } else { len + 1 };
            let at = rng.below(reach);
            let bound = if rng.chance(30) { 150_000 } else { 300 };
            let count = 1 + rng.below(bound) as usize;
            let new = rng.bytes(count);
            open_rw(&root.join(&path)).unwrap().write_all_at(&new, at).unwrap();
            let bytes = model.bytes(&path);
            let end = at as usize + new.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[at as usize..end].copy_from_slice(&new);
            format!("write {} at {at} + {}", path.display(), new.len())
        }
        30..38 => {
            let Some(path) = model.file(rng) else { return String::new() };
            let len = rng.below(400_000);
            open_rw(&root.join(&path)).unwrap().set_len(len).unwrap();
            model.bytes(&path).resize(len as usize, 0);
            format!("truncate {} to {len}", path.display())
        }
        38..44 => {
            let Some(path) = model.file(rng) else { return String::new() };
            let (at, len) = (rng.below(300_000), 1 + rng.below(100_000));
            punch(&open_rw(&root.join(&path)).unwrap(), at, len).unwrap();
            let bytes = model.bytes(&path);
            let end = ((at + len) as usize).min(bytes.len());
            if (at as usize) < end {
                bytes[at as usize..end].fill(0);
            }
            format!("punch {} at {at} + {len}", path.display())
        }
        44..50 => {
            let Some(path) = model.file(rng) else { return String::new() };
            let len = model.bytes(&path).len();
            if len == 0 {
                return String::new();
            }
            let at = rng.below(len as u64) as usize;
            let count = (len - at).min(1 + rng.below(9000) as usize);
            let new = rng.bytes(count);
            write_mapped(&root.join(&path), at, &new).unwrap();
            model.bytes(&path)[at..at + count].copy_from_slice(&new);
            format!("map {} at {at} + {count}", path.display())
        }
        50..62 => {
            let path = model.free(rng);
            let bound = if rng.chance(10) { 200_000 } else { 2000 };
            let count = rng.below(bound) as usize;
            let bytes = rng.bytes(count);
            File::create_new(root.join(&path)).unwrap().write_all(&bytes).unwrap();
            model.put(path.clone(), bytes);
            format!("create {}", path.display())
        }
        62..68 => {
            let path = model.free(rng);
            fs::create_dir(root.join(&path)).unwrap();
            model.entries.insert(path.clone(), Node::Dir);
            format!("mkdir {}", path.display())
        }
        68..72 => {
            let path = model.free(rng);
            let target = PathBuf::from(format!("to/{}", rng.below(100)));
            symlink(&target, root.join(&path)).unwrap();
            model.entries.insert(path.clone(), Node::Link(target));
            format!("symlink {}", path.display())
        }
        72..76 => {
            let (Some(path), new) = (model.file(rng), model.free(rng)) else { return String::new() };
            fs::hard_link(root.join(&path), root.join(&new)).unwrap();
            let node = model.entries[&path].clone();
            model.entries.insert(new.clone(), node);
            format!("link {} as {}", path.display(), new.display())
        }
        76..82 => {
            let Some(path) = model.pick(rng, |node| *node != Node::Dir) else { return String::new() };
            fs::remove_file(root.join(&path)).unwrap();
            model.entries.remove(&path);
            format!("unlink {}", path.display())
        }
        82..84 => {
            let Some(path) = model.pick(rng, |node| *node == Node::Dir) else { return String::new() };
            fs::remove_dir_all(root.join(&path)).unwrap();
            for gone in model.subtree(&path) {
                model.entries.remove(&gone);
            }
            format!("rm -r {}", path.display())
        }
        84..88 => {
            let (Some(from), Some(to)) = (model.file(rng), model.file(rng)) else { return String::new() };
            fs::rename(root.join(&from), root.join(&to)).unwrap();
            // Two names of one file: POSIX wants both to stay.
            if model.entries[&from] != model.entries[&to] {
                let node = model.entries.remove(&from).unwrap();
                model.entries.insert(to.clone(), node);
            }
            format!("rename {} over {}", from.display(), to.display())
        }
        _ => {
            let Some(from) = model.pick(rng, |_| true) else { return String::new() };
            let to = model.free(rng);
            if to.starts_with(&from) {
                return String::new();
            }
            fs::rename(root.join(&from), root.join(&to)).unwrap();
            for old in model.subtree(&from) {
                let node = model.entries.remove(&old).unwrap();
                let below = old.strip_prefix(&from).unwrap();
                let new = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
                model.entries.insert(new, node);
            }
            format!("rename {} to {}", from.display(), to.display())
        }
    }
}

/// Panics with the differences unless the folder equals the model.
#[track_caller]
fn compare(root: &Path, model: &Model, context: &dyn Fn() -> String) {
    let mut found = BTreeMap::new();
    let mut numbers: BTreeMap<u64, u64> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            if meta.is_dir() {
                todo.push(path.clone());
            } else if meta.is_file() {
                let Some(Node::File(id)) = model.entries.get(&path) else {
                    panic!("{} should not be a file\n{}", full.display(), context());
                };
                let (is, should) = (fs::read(&full).unwrap(), &model.contents[id]);
                let at = is.iter().zip(should).position(|(a, b)| a != b);
                let lens = (is.len(), should.len());
                assert!(
                    is == *should,
                    "{}: differs at {at:?}, lengths {lens:?}\n{}",
                    full.display(),
                    context()
                );
                assert_eq!(*numbers.entry(*id).or_insert(meta.ino()), meta.ino(), "{}", full.display());
            } else {
                let target = fs::read_link(&full).unwrap();
                assert_eq!(Some(&Node::Link(target)), model.entries.get(&path), "{}", full.display());
            }
            found.insert(path, ());
        }
    }
    for path in model.entries.keys() {
        assert!(
            found.contains_key(path),
            "{} is missing in {}\n{}",
            path.display(),
            root.display(),
            context()
        );
    }
    let too_many: Vec<_> = found.keys().filter(|path| !model.entries.contains_key(*path)).collect();
    assert!(too_many.is_empty(), "{} has {too_many:?}\n{}", root.display(), context());
}

/// `cp -r` of a fork. A manifest that a seal replaces between cp's stat and its open is a different file, as
/// after a rename over it: cp says so and leaves it out, and the test copies it again.
fn copy(from: &Path, to: &Path) {
    let done = tool("cp", ["-r".as_ref(), from.as_os_str(), to.as_os_str()]);
    if done.code == 0 {
        return;
    }
    let replaced =
        |line: &str| line.contains("it was replaced while being copied") && line.contains("manifest.json");
    assert!(done.stderr.lines().all(replaced), "cp -r: {}", done.stderr);
    for layer in ["manifest.json", "cache/manifest.json"] {
        if done.stderr.contains(&*from.join(layer).to_string_lossy()) {
            wait_until("the manifest is copied", || {
                tool("cp", [from.join(layer).as_os_str(), to.join(layer).as_os_str()]).code == 0
            });
        }
    }
}

fn run(seed: u64) {
    let again = format!("PFIMG_SEED={seed} PFIMG_RUNS=1 cargo test --test mount fork_isolation::");
    let _program = Program { what: "a family of forks", seed, again };
    let mut rng = Rng::new(seed);
    let (store, id) = small_store();
    let writes = if seed.is_multiple_of(2) { "through" } else { "back" };
    // Some forks are sealed all the time, which no program may notice.
    let seal = if seed.is_multiple_of(5) { "interval:50ms" } else { "manual" };
    let args = ["--writes", writes, "--seal", seal];
    let mut mount = Mount::of(store.root()).args(args).start();
    fork(&mount, "f0", &id);
    let mut family = vec![Model::base()];
    let mut log = Vec::new();
    for n in 0..STEPS {
        let which = rng.below(family.len() as u64) as usize;
        if family.len() < FAMILY && family[which].depth < DEPTH && rng.chance(15) {
            let new = family.len();
            let source = format!("f{which}");
            let mut model = if rng.chance(60) {
                fork(&mount, &format!("f{new}"), &source);
                family[which].clone()
            } else {
                let (from, to) = (mount.join("forks").join(&source), mount.join(format!("forks/f{new}")));
                copy(&from, &to);
                family[which].copied()
            };
            model.depth += 1;
            family.push(model);
            log.push(format!("{n}: f{new} of {source}"));
        } else if rng.chance(2) {
            mount.unmount();
            mount = Mount::of(store.root()).args(args).start();
            log.push(format!("{n}: remount"));
        } else {
            let done = step(&mut rng, &world(&mount, &format!("f{which}")), &mut family[which]);
            log.push(format!("{n}: f{which}: {done}"));
        }
    }
    let context = || format!("PFIMG_SEED={seed} PFIMG_RUNS=1; its steps:\n{}", log.join("\n"));
    for remounted in [false, true] {
        for (n, model) in family.iter().enumerate() {
            compare(&world(&mount, &format!("f{n}")), model, &context);
        }
        if !remounted {
            mount.unmount();
            mount = Mount::of(store.root()).args(args).start();
        }
    }
    let image = mount.image(&id).join("world/fs");
    compare(&image, &Model::base(), &context);
    mount.unmount();
}

#[test]
fn every_fork_of_a_family_is_equal_to_its_own_model() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, runs) = (number("PFIMG_SEED", number("PFIMG_SEED_RANDOM", 1)), number("PFIMG_RUNS", 500));
    let next = AtomicU64::new(first);
    let threads = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + runs {
                        break;
                    }
                    // A failure is reported at once, by seed; the other programs finish.
                    run(seed);
                    if (seed + 1).is_multiple_of(1000) {
                        eprintln!("{} programs of {runs}", seed + 1 - first);
                    }
                }
            });
        }
    });
}
