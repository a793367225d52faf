//! Random programs over a family of forks.

use std::collections::BTreeMap;
use std::sync::Arc;

use pfimg::digest::Digest;
use pfimg::fork::{
    Allocate, Attr, CopySource, Fork, Ino, NewFile, Registry, RenameMode, SetAttr, SetTime, XattrMode,
};
use pfimg::layers::world::Kind;

use super::diff;
use super::model::{Model, split};
use super::support::*;

pub struct Family {
    pub dir: tempfile::TempDir,
    pub images: Arc<Images>,
    pub registry: Option<Registry>,
    pub models: BTreeMap<String, Model>,
    pub rng: Rng,
    pub seals: bool,
    made: usize,
    image: Digest,
    base: Model,
}

fn names(rng: &mut Rng, seals: bool) -> Vec<u8> {
    const NAMES: [&[u8]; 9] = [b"a", b"b", b"x", b"y", b"f", b"a.b", "ü".as_bytes(), b"big", b"d"];
    if !seals && rng.chance(20) {
        return vec![0xff, b'0' + rng.below(3) as u8];
    }
    rng.pick(&NAMES).to_vec()
}

fn errno<T>(result: pfimg::Result<T>) -> Result<(), i32> {
    result.map(|_| ()).map_err(|e| e.errno())
}

impl Family {
    pub fn new(seed: u64, seals: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::default());
        let (image, base) = images.sample();
        let registry = open(dir.path(), &images);
        registry.create("f0", Some(image)).unwrap();
        let models = BTreeMap::from([("f0".to_owned(), base.clone())]);
        Self { dir, images, registry: Some(registry), models, rng: Rng(seed), seals, made: 1, image, base }
    }

    pub fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    pub fn fork(&self, name: &str) -> Arc<Fork> {
        self.registry().get(name).unwrap()
    }

    pub fn any(&mut self) -> String {
        let names: Vec<_> = self.models.keys().cloned().collect();
        self.rng.pick(&names).clone()
    }

    /// A path that exists (most of the time).
    fn path(&mut self, name: &str, want: impl Fn(Kind) -> bool) -> Option<Vec<u8>> {
        let model = &self.models[name];
        let paths: Vec<_> =
            model.paths().into_iter().filter(|(p, id)| !p.is_empty() && want(model.nodes[id].kind)).collect();
        if paths.is_empty() { None } else { Some(self.rng.pick(&paths).0.clone()) }
    }

    fn new_path(&mut self, name: &str) -> Vec<u8> {
        let parent = self.path(name, |kind| kind == Kind::Dir).filter(|_| !self.rng.chance(4));
        let last = names(&mut self.rng, self.seals);
        match parent {
            Some(parent) => [&parent[..], &last].join(&b'/'),
            None => last,
        }
    }

    fn len(&mut self) -> usize {
        match self.rng.below(12) {
            0 => 4096 * (1 + self.rng.below(3)),
            1 => self.rng.below(200_000),
            2 => 65_536 - self.rng.below(3),
            _ => 1 + self.rng.below(3000),
        }
    }

    fn at(rng: &mut Rng, len: usize) -> usize {
        match rng.below(4) {
            0 => len,
            1 => rng.below(len + 5000),
            2 => rng.below(len + 1) / 4096 * 4096,
            _ => rng.below(len + 1),
        }
    }

    /// One operation on one fork, on the engine and on the model; both must agree about the outcome.
    pub fn step(&mut self, name: &str) {
        let fork = self.fork(name);
        let what = self.rng.below(100);
        let parent = |path: &[u8]| fork.resolve(&world(split(path).0)).unwrap();
        let any = |_: Kind| true;
        match what {
            0..16 => {
                let path = self.new_path(name);
                let kind = *self.rng.pick(&[
                    Kind::File,
                    Kind::File,
                    Kind::File,
                    Kind::Dir,
                    Kind::Dir,
                    Kind::Symlink,
                    Kind::Fifo,
                ]);
                let mode = *self.rng.pick(&[0o644, 0o600, 0o755, 0o2755]);
                let target: &[u8] = if kind == Kind::Symlink { b"some/where" } else { b"" };
                let new = NewFile { target, ..NewFile::new(kind, mode, 5, 6) };
                let model = self.models.get_mut(name).unwrap();
                let expected = model.create(&path, kind, mode, target).map(|_| ());
                assert_eq!(errno(fork.create(parent(&path), split(&path).1, &new)), expected);
            }
            16..42 => {
                let Some(path) = self.path(name, |kind| kind == Kind::File) else { return };
                let id = self.models[name].resolve(&path).unwrap();
                let len = self.len();
                let bytes = self.rng.bytes(len);
                let at = Self::at(&mut self.rng, self.models[name].nodes[&id].content.len());
                let file = ino(&fork, &path);
                let written = fork.write(file, at as u64, &bytes, true).unwrap();
                assert_eq!(written, bytes.len());
                self.models.get_mut(name).unwrap().write(id, at, &bytes);
            }
            42..48 => {
                let Some(path) = self.path(name, |kind| kind == Kind::File) else { return };
                let id = self.models[name].resolve(&path).unwrap();
                let len = self.models[name].nodes[&id].content.len();
                let size = if self.rng.chance(4) { 0 } else { Self::at(&mut self.rng, len) };
                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                assert_eq!(fork.setattr(ino(&fork, &path), &set).unwrap().size, size as u64);
                self.models.get_mut(name).unwrap().node(id).content.resize(size, 0);
            }
            48..54 => {
                let Some(path) = self.path(name, |kind| kind == Kind::File) else { return };
                let id = self.models[name].resolve(&path).unwrap();
                let size = self.models[name].nodes[&id].content.len();
                let (at, len) = (Self::at(&mut self.rng, size), self.len());
                let how = *self.rng.pick(&[
                    Allocate::Extend,
                    Allocate::KeepSize,
                    Allocate::PunchHole,
                    Allocate::ZeroRange { keep_size: true },
                    Allocate::ZeroRange { keep_size: false },
                ]);
                fork.fallocate(ino(&fork, &path), at as u64, len as u64, how, true).unwrap();
                let content = &mut self.models.get_mut(name).unwrap().node(id).content;
                if matches!(how, Allocate::Extend | Allocate::ZeroRange { keep_size: false }) {
                    content.resize(size.max(at + len), 0);
                }
                if matches!(how, Allocate::PunchHole | Allocate::ZeroRange { .. }) {
                    let end = content.len().min(at + len);
                    if at < end {
                        content[at..end].fill(0);
                    }
                }
            }
            54..62 => {
                let Some(path) = self.path(name, any) else { return };
                let dir = self.rng.chance(3);
                let expected = self.models.get_mut(name).unwrap().remove(&path, dir);
                let (folder, last) = (parent(&path), split(&path).1);
                let result = if dir { fork.rmdir(folder, last) } else { fork.unlink(folder, last) };
                if let Ok(gone) = &result {
                    fork.forget(*gone);
                }
                assert_eq!(errno(result), expected);
            }
            62..74 => {
                let Some(old) = self.path(name, any) else { return };
                let new =
                    if self.rng.chance(2) { self.path(name, any).unwrap() } else { self.new_path(name) };
                let modes = [
                    RenameMode::Replace,
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                    RenameMode::Whiteout { replace: true, uid: 5, gid: 6 },
                    RenameMode::Whiteout { replace: false, uid: 5, gid: 6 },
                ];
                let mut mode = *self.rng.pick(if self.seals { &modes[..4] } else { &modes });
                let model = &self.models[name];
                if model.nodes[&model.resolve(split(&old).0).unwrap()].mode & 0o2000 != 0 {
                    // A whiteout has the folder's group there, and the model knows of no groups.
                    mode = RenameMode::Replace;
                }
                let expected = self.models.get_mut(name).unwrap().rename(&old, &new, mode);
                let (from, to) =
                    (parent(&old), fork.resolve(&world(split(&new).0)).unwrap_or(from_missing()));
                assert_eq!(
                    errno(fork.rename(from, split(&old).1, to, split(&new).1, mode)),
                    expected,
                    "{} -> {} {mode:?}",
                    old.escape_ascii(),
                    new.escape_ascii()
                );
            }
            74..79 => {
                let Some(old) = self.path(name, any) else { return };
                let new = self.new_path(name);
                let expected = self.models.get_mut(name).unwrap().link(&old, &new);
                assert_eq!(errno(fork.link(ino(&fork, &old), parent(&new), split(&new).1)), expected);
            }
            79..85 => {
                let Some(path) = self.path(name, |kind| kind != Kind::Symlink) else { return };
                let mode = *self.rng.pick(&[0o600, 0o755, 0o4755, 0o2755, 0o2644]);
                let id = self.models[name].resolve(&path).unwrap();
                let set = SetAttr {
                    mode: Some(mode),
                    mtime: Some(SetTime::At(self.rng.next() as i64 / 2)),
                    atime: self.rng.chance(2).then_some(SetTime::At(-5)),
                    ..SetAttr::default()
                };
                let attr = fork.setattr(ino(&fork, &path), &set).unwrap();
                let Some(SetTime::At(mtime)) = set.mtime else { unreachable!() };
                assert_eq!((attr.mode, attr.mtime), (mode, mtime));
                self.models.get_mut(name).unwrap().node(id).mode = mode;
            }
            85..88 if !self.seals => {
                let Some(path) = self.path(name, any) else { return };
                let id = self.models[name].resolve(&path).unwrap();
                let key = format!("user.{}", self.rng.below(3)).into_bytes();
                let node = self.models.get_mut(name).unwrap().node(id);
                if node.xattrs.remove(&key).is_some() {
                    fork.removexattr(ino(&fork, &path), &key).unwrap();
                } else {
                    fork.setxattr(ino(&fork, &path), &key, b"value", XattrMode::Create).unwrap();
                    node.xattrs.insert(key, b"value".to_vec());
                }
            }
            _ => self.copy(name),
        }
        self.after_strip(name);
    }

    /// What writing does to suid and sgid is not the model's business: it takes over the modes of files.
    fn after_strip(&mut self, name: &str) {
        let fork = self.fork(name);
        let model = self.models.get_mut(name).unwrap();
        for (path, id) in model.paths() {
            if model.nodes[&id].kind == Kind::File && model.nodes[&id].mode & 0o6000 != 0 {
                let mode = fork.getattr(ino(&fork, &path)).unwrap().mode;
                assert_eq!(mode & !0o6000, model.nodes[&id].mode & !0o6000);
                model.node(id).mode = mode;
            }
        }
    }

    fn copy(&mut self, name: &str) {
        let fork = self.fork(name);
        let Some(path) = self.path(name, |kind| kind == Kind::File) else { return };
        let other = self.any();
        let Some(from) = self.path(&other, |kind| kind == Kind::File) else { return };
        let other_fork = self.fork(&other);
        let id = self.models[name].resolve(&path).unwrap();
        let from_id = self.models[&other].resolve(&from).unwrap();
        let bytes = self.models[&other].nodes[&from_id].content.clone();
        let size = self.models[name].nodes[&id].content.len();
        let whole = self.rng.chance(2);
        let (from_at, at, len) = if whole {
            (0, 0, bytes.len())
        } else {
            let from_at = self.rng.below(bytes.len() + 1);
            (from_at, Self::at(&mut self.rng, size), self.rng.below(bytes.len() - from_at + 1))
        };
        let (file, source) = (ino(&fork, &path), ino(&other_fork, &from));
        let result = fork.copy_range(
            &CopySource::Fork(&other_fork, source),
            from_at as u64,
            file,
            at as u64,
            len as u64,
            true,
        );
        if name == other && file == source && at < from_at + len && from_at < at + len {
            assert_eq!(errno(result), Err(libc::EINVAL));
            return;
        }
        assert_eq!(result.unwrap(), len as u64);
        if len > 0 {
            self.models.get_mut(name).unwrap().write(id, at, &bytes[from_at..from_at + len]);
        }
    }

    pub fn branch(&mut self, source: &str) {
        let name = format!("f{}", self.made);
        self.made += 1;
        if self.rng.chance(8) {
            self.registry().create(&name, Some(self.image)).unwrap();
            self.models.insert(name, self.base.clone());
            return;
        }
        self.registry().branch(&self.fork(source), &name).unwrap();
        let model = self.models[source].clone();
        self.models.insert(name, model);
    }

    /// Seals a fork while writers continue.
    pub fn seal(&mut self, name: &str) {
        let fork = self.fork(name);
        let frozen = fork.freeze().unwrap();
        let before = self.models[name].clone();
        let (image, layers, sealed) = self.images.seal(&frozen, &|ledger| ledger.to_vec());
        // The image is what the fork was.
        let probe = format!("probe{}", self.made);
        same(&self.registry().create(&probe, Some(image)).unwrap(), &before, "a seal");
        self.registry().discard(&probe).unwrap();
        for _ in 0..self.rng.below(6) {
            self.step(name);
        }
        if self.rng.chance(4) {
            self.branch(name);
        }
        fork.rebase(&frozen, image, &layers, &sealed).unwrap();
        assert_eq!(fork.base(), Some(image));
    }

    pub fn compare(&self, when: &str) {
        for (name, model) in &self.models {
            same(&self.fork(name), model, &format!("{when}, {name}"));
        }
        let image = self.registry().view(Some(self.image)).unwrap();
        let mut last = ("the image", image, &self.base);
        for (name, model) in &self.models {
            let view = self.fork(name).view();
            diff::check((&last.1, last.2), (&view, model), &format!("{when}, {} to {name}", last.0));
            last = (name, view, model);
        }
    }

    fn attrs(&self, name: &str) -> BTreeMap<Vec<u8>, Attr> {
        let mut attrs = walk(&self.fork(name), Ino::FS);
        if self.seals {
            // An image keeps neither, and a file that was moved gets its number by its path.
            for attr in attrs.values_mut() {
                (attr.atime, attr.ctime, attr.ino) = (0, 0, Ino(0));
            }
        }
        attrs
    }

    pub fn reopen(&mut self) {
        let names: Vec<_> = self.models.keys().cloned().collect();
        let before: Vec<_> = names.iter().map(|name| self.attrs(name)).collect();
        self.registry = None;
        self.registry = Some(open(self.dir.path(), &self.images));
        for (name, before) in names.iter().zip(&before) {
            assert_eq!(self.fork(name).damage(), None, "{name}");
            let after = self.attrs(name);
            let paths = |attrs: &BTreeMap<Vec<u8>, Attr>| {
                attrs.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>()
            };
            assert_eq!(paths(&after), paths(before), "{name}: after reopening");
            for (path, attr) in before {
                assert_eq!(after.get(path), Some(attr), "{name}: {} after reopening", path.escape_ascii());
            }
        }
        let reports = self.registry().take_reports();
        assert!(reports.is_empty(), "{reports:?}");
        self.compare("after reopening");
    }
}

fn from_missing() -> Ino {
    Ino(60)
}

fn run(seed: u64, seals: bool, steps: usize) {
    let mut family = Family::new(seed, seals);
    for step in 0..steps {
        let name = family.any();
        match family.rng.below(100) {
            0..5 if family.models.len() < 8 => family.branch(&name),
            5..6 if family.models.len() > 2 => {
                family.registry().discard(&name).unwrap();
                family.models.remove(&name);
            }
            6..9 if seals => family.seal(&name),
            9 => {
                let new = format!("{name}-renamed");
                if new.len() < 60 {
                    family.registry().rename(&name, &new).unwrap();
                    let model = family.models.remove(&name).unwrap();
                    family.models.insert(new, model);
                }
            }
            10 => {
                family.fork(&name).reap().unwrap();
            }
            11..13 => family.fork(&name).checkpoint().map(|_| ()).unwrap(),
            _ => family.step(&name),
        }
        if step % 25 == 24 {
            family.compare(&format!("step {step}"));
        }
        if step % 100 == 99 {
            family.reopen();
        }
    }
    family.reopen();
    // A second time: what was read back is written on in the same way.
    let name = family.any();
    for _ in 0..10 {
        family.step(&name);
    }
    family.reopen();
}

#[test]
fn every_fork_of_a_family_holds_exactly_its_own_changes() {
    programs("family", 12, |seed| run(seed, false, 300));
}

#[test]
fn sealing_in_between_changes_nothing_that_can_be_seen() {
    programs("seals", 12, |seed| run(seed, true, 300));
}
