//! The ledger and the trace of a fork keep their records, even if programs remove or change their names.

use std::collections::BTreeMap;
use std::sync::Arc;

use pfimg::digest::Digest;
use pfimg::fork::{Allocate, Fork, Ino, NewFile, Registry, RenameMode, SetAttr};
use pfimg::layers::world::Kind;

use super::support::*;

/// The folder, its name, and the name in it.
const PLACES: [(Ino, &[u8], &[u8]); 2] =
    [(Ino::EFFECTS, b"effects", b"ledger.jsonl"), (Ino::TRACE, b"trace", b"messages.jsonl")];

fn path(place: usize) -> Vec<u8> {
    [PLACES[place].1, PLACES[place].2].join(&b'/')
}

/// What a fork's records hold, and which of their names and folders it shows.
#[derive(Clone, Debug, PartialEq)]
struct Records {
    text: [Vec<u8>; 2],
    named: [bool; 2],
    folders: [bool; 2],
}

impl Records {
    fn shown(&self) -> Self {
        Self { named: [true; 2], folders: [true; 2], ..self.clone() }
    }
}

/// The records in an image.
fn sealed(images: &Images, image: &Digest) -> [Vec<u8>; 2] {
    let layers = images.layers_of(image);
    [0, 1].map(|place| {
        let layer = layers.iter().find(|layer| layer.path.as_bytes() == path(place)).unwrap();
        images.blobs.lock()[&layer.digest].to_vec()
    })
}

/// The records that the next seal would contain.
fn kept(fork: &Fork) -> [Vec<u8>; 2] {
    let frozen = fork.freeze().unwrap();
    [0, 1].map(|place| {
        let (_, inode) = frozen.resolve(&path(place)).unwrap();
        let content = inode.content().unwrap();
        let mut bytes = vec![0; content.size as usize];
        assert_eq!(frozen.read(content, 0, &mut bytes).unwrap(), bytes.len());
        bytes
    })
}

struct Family {
    dir: tempfile::TempDir,
    images: Arc<Images>,
    registry: Option<Registry>,
    models: BTreeMap<String, Records>,
    seals: Vec<(Digest, Records)>,
    inos: [Ino; 2],
    rng: Rng,
    made: usize,
}

impl Family {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::default());
        let (image, _) = images.sample();
        let registry = open(dir.path(), &images);
        let fork = registry.create("f0", Some(image)).unwrap();
        let inos = [0, 1].map(|place| fork.resolve(&path(place)).unwrap());
        let first = Records { text: sealed(&images, &image), named: [true; 2], folders: [true; 2] };
        let models = BTreeMap::from([("f0".to_owned(), first.clone())]);
        let seals = vec![(image, first)];
        Self { dir, images, registry: Some(registry), models, seals, inos, rng: Rng(seed), made: 1 }
    }

    fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    /// As a mount has it, where `rm -rf` gets through.
    fn fork(&self, name: &str) -> Arc<Fork> {
        let fork = self.registry().get(name).unwrap();
        fork.set_guarded(false);
        fork
    }

    /// Nothing that a program does to a record but appending changes what it holds.
    fn step(&mut self, name: &str) {
        let fork = self.fork(name);
        let place = self.rng.below(2);
        let (folder, folder_name, file) = PLACES[place];
        let ino = self.inos[place];
        let model = self.models.get_mut(name).unwrap();
        let len = model.text[place].len();
        let errno = |result: pfimg::Result<()>| result.map_err(|e| e.errno());
        let refused = |result: pfimg::Result<()>| assert!(result.is_err());
        match self.rng.below(16) {
            // A program that has the record open can append too, even if its name was removed.
            0..4 => {
                let bytes = format!("{{\"n\":{}}}\n", self.rng.next()).into_bytes();
                let written = if self.rng.chance(2) {
                    fork.append(ino, &bytes, true)
                } else {
                    fork.write(ino, len as u64, &bytes, true)
                };
                assert_eq!(written.unwrap(), bytes.len());
                model.text[place].extend_from_slice(&bytes);
            }
            4 if len > 0 => {
                let at = self.rng.below(len);
                let same = model.text[place][at..].to_vec();
                let more = [&same[..], b"more\n"].concat();
                assert_eq!(fork.write(ino, at as u64, &more, true).unwrap(), more.len());
                model.text[place].extend_from_slice(b"more\n");
                let other = [&same[..same.len() - 1], b"#more"].concat();
                assert_eq!(errno(fork.write(ino, at as u64, &other, true).map(drop)), Err(libc::EPERM));
                assert_eq!(errno(fork.write_pages(ino, at as u64, b"\0").map(drop)), Err(libc::EPERM));
            }
            5 if len > 0 => {
                let size = Some(self.rng.below(len) as u64);
                assert_eq!(
                    errno(fork.setattr(ino, &SetAttr { size, ..SetAttr::default() }).map(drop)),
                    Err(libc::EPERM)
                );
                let at = self.rng.below(len) as u64;
                for how in [Allocate::PunchHole, Allocate::ZeroRange { keep_size: true }] {
                    assert_eq!(errno(fork.fallocate(ino, at, 5, how, true)), Err(libc::EPERM));
                }
            }
            6..9 => {
                let expected = match (model.folders[place], model.named[place]) {
                    (true, true) => Ok(()),
                    _ => Err(libc::ENOENT),
                };
                assert_eq!(errno(fork.unlink(folder, file).map(|gone| fork.forget(gone))), expected);
                if expected.is_ok() {
                    model.named[place] = false;
                    assert_eq!(fork.getattr(ino).unwrap().nlink, 0);
                }
            }
            9 | 10 => {
                let expected = match (model.folders[place], model.named[place]) {
                    (false, _) => Err(libc::ENOENT),
                    (true, true) => Err(libc::ENOTEMPTY),
                    (true, false) => Ok(()),
                };
                assert_eq!(errno(fork.rmdir(Ino::TOP, folder_name).map(|gone| fork.forget(gone))), expected);
                if expected.is_ok() {
                    model.folders[place] = false;
                }
            }
            11 => {
                let new = NewFile::new(Kind::File, 0o600, 9, 9);
                let made = fork.create(folder, file, &new);
                let expected = match (model.folders[place], model.named[place]) {
                    (false, _) => Err(libc::ENOENT),
                    (true, true) => Err(libc::EEXIST),
                    (true, false) => Ok((ino, len as u64)),
                };
                assert_eq!(made.map(|attr| (attr.ino, attr.size)).map_err(|e| e.errno()), expected);
                model.named[place] |= expected.is_ok();
            }
            12 => {
                let new = NewFile::new(Kind::Dir, 0o700, 9, 9);
                let expected = if model.folders[place] { Err(libc::EEXIST) } else { Ok(folder) };
                let made = fork.create(Ino::TOP, folder_name, &new);
                assert_eq!(made.map(|attr| attr.ino).map_err(|e| e.errno()), expected);
                model.folders[place] = true;
            }
            13 => {
                for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
                    refused(fork.rename(Ino::MODEL, b"diff.json", folder, file, mode).map(drop));
                    refused(
                        fork.rename(folder, file, PLACES[1 - place].0, PLACES[1 - place].2, mode).map(drop),
                    );
                    refused(fork.rename(folder, file, Ino::FS, b"away", mode).map(drop));
                    refused(fork.rename(Ino::TOP, folder_name, Ino::TOP, b"parents", mode).map(drop));
                    refused(fork.rename(Ino::TOP, folder_name, Ino::FS, b"away", mode).map(drop));
                }
                refused(fork.link(ino, Ino::FS, b"second").map(drop));
            }
            14 => {
                for kind in [Kind::Dir, Kind::Symlink, Kind::Fifo] {
                    let new = NewFile { target: b"x", ..NewFile::new(kind, 0o600, 9, 9) };
                    refused(fork.create(folder, file, &new).map(drop));
                }
                for kind in [Kind::File, Kind::Symlink] {
                    let new = NewFile { target: b"x", ..NewFile::new(kind, 0o600, 9, 9) };
                    refused(fork.create(Ino::TOP, folder_name, &new).map(drop));
                }
            }
            _ => drop(fork.checkpoint().unwrap()),
        }
    }

    fn branch(&mut self, source: &str) {
        let name = format!("f{}", self.made);
        self.made += 1;
        self.registry().branch(&self.fork(source), &name).unwrap();
        let model = self.models[source].shown();
        self.models.insert(name, model);
    }

    fn seal(&mut self, name: &str) {
        let fork = self.fork(name);
        let frozen = fork.freeze().unwrap();
        let before = self.models[name].clone();
        let (image, layers, blobs) = self.images.seal(&frozen, &|ledger| ledger.to_vec());
        assert_eq!(sealed(&self.images, &image), before.text, "{name}: an image lacks what was recorded");
        self.seals.push((image, before.shown()));
        // Appended during the seal, maybe to a file without a name.
        fork.append(self.inos[0], b"during\n", true).unwrap();
        let model = self.models.get_mut(name).unwrap();
        model.text[0].extend_from_slice(b"during\n");
        *model = model.shown();
        fork.rebase(&frozen, image, &layers, &blobs).unwrap();
    }

    fn restore(&mut self, name: &str) {
        self.seal(name);
        let fork = self.fork(name);
        let frozen = fork.freeze().unwrap();
        let (image, layers, blobs) = self.images.seal(&frozen, &|ledger| ledger.to_vec());
        fork.rebase(&frozen, image, &layers, &blobs).unwrap();
        assert_eq!(sealed(&self.images, &image), self.models[name].text);
        let (image, records) = self.rng.pick(&self.seals).clone();
        self.registry().restore(name, &fork, image, &|_| Ok(())).unwrap();
        self.models.insert(name.to_owned(), records);
    }

    fn reopen(&mut self) {
        self.registry = None;
        self.registry = Some(open(self.dir.path(), &self.images));
        for model in self.models.values_mut() {
            *model = model.shown();
        }
    }

    fn compare(&self, when: &str) {
        for (name, model) in &self.models {
            let fork = self.fork(name);
            assert_eq!(fork.damage(), None, "{when}, {name}");
            assert_eq!(kept(&fork), model.text, "{when}, {name}");
            let seen = walk(&fork, Ino::TOP);
            for (place, (_, folder, _)) in PLACES.iter().enumerate() {
                let (in_folder, named) = (model.folders[place], model.folders[place] && model.named[place]);
                assert_eq!(seen.contains_key(*folder), in_folder, "{when}, {name}, {place}");
                let found = seen.get(&path(place)).map(|attr| (attr.size, attr.nlink));
                let wanted = named.then_some((model.text[place].len() as u64, 1));
                assert_eq!(found, wanted, "{when}, {name}, {place}");
            }
            let folders = fork.getattr(Ino::TOP).unwrap().nlink as usize - 2;
            assert_eq!(folders, 3 + model.folders.iter().filter(|shown| **shown).count(), "{when}, {name}");
        }
    }
}

fn run(seed: u64) {
    let mut family = Family::new(seed);
    for step in 0..400 {
        let names: Vec<_> = family.models.keys().cloned().collect();
        let name = family.rng.pick(&names).clone();
        match family.rng.below(100) {
            0..4 if family.models.len() < 6 => family.branch(&name),
            4..9 => family.seal(&name),
            9..12 => family.restore(&name),
            12 => family.reopen(),
            _ => family.step(&name),
        }
        if step % 20 == 19 {
            family.compare(&format!("step {step}"));
        }
    }
    family.reopen();
    family.compare("after reopening");
}

#[test]
fn every_seal_has_all_records_after_any_change_to_the_records_of_a_fork() {
    programs("records", 12, run);
}

#[test]
fn a_record_of_a_fork_that_began_empty_only_grows_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let images = Arc::new(Images::default());
    let registry = open(dir.path(), &images);
    let fork = registry.create("f", None).unwrap();
    fork.set_guarded(false);
    let (file, folder) = (NewFile::new(Kind::File, 0o644, 1, 1), NewFile::new(Kind::Dir, 0o755, 1, 1));
    fork.create(Ino::TOP, b"effects", &folder).unwrap();
    // A folder without a record is one as any other.
    fork.rmdir(Ino::TOP, b"effects").map(|gone| fork.forget(gone)).unwrap();
    fork.create(Ino::TOP, b"effects", &folder).unwrap();
    let ledger = fork.create(Ino::EFFECTS, b"ledger.jsonl", &file).unwrap().ino;
    // A copy comes in pieces, and not always from the first one on.
    let long = SetAttr { size: Some(6), ..SetAttr::default() };
    fork.setattr(ledger, &long).unwrap();
    fork.write(ledger, 3, b"def", true).unwrap();
    fork.write(ledger, 0, b"abc", true).unwrap();
    // Once more the same.
    assert_eq!(fork.write(ledger, 0, b"abcdef", true).unwrap(), 6);
    assert_eq!(fork.write(ledger, 0, b"abX", true).unwrap_err().errno(), libc::EPERM);
    fork.unlink(Ino::EFFECTS, b"ledger.jsonl").unwrap();
    fork.rmdir(Ino::TOP, b"effects").unwrap();
    drop((fork, registry));
    let registry = open(dir.path(), &images);
    let fork = registry.get("f").unwrap();
    assert_eq!(fork.damage(), None);
    let ledger = fork.resolve(b"effects/ledger.jsonl").unwrap();
    assert_eq!(fork.read_vec(ledger, 0, 100).unwrap(), b"abcdef");
}
