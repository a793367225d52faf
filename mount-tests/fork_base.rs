//! Random operations on single files that begin as files of an image, each compared with a model as it runs.
//!
//! The operations of fsx, which makes its files itself, on files that the fork did not make: bytes that no
//! program wrote must still come from the image, by every kind of read. `PFIMG_OPERATIONS` sets how many for
//! each of `PFIMG_SEEDS` files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::common::failing::Program;
use crate::common::fast::{FastStore, Spec};
use crate::common::forks::{close, fallocate, fork, open_rw, punch, world, write_mapped};
use crate::common::{Mount, Rng};
use rustix::fs::{Advice, FallocateFlags};

/// No file grows beyond this.
const LARGEST: u64 = 512 << 10;

/// A file and what it should hold.
struct Exercise<'a> {
    path: &'a Path,
    file: File,
    model: Vec<u8>,
    log: Vec<String>,
}

impl Exercise<'_> {
    /// A range within the file, not empty unless the file is.
    fn range(&self, rng: &mut Rng, at_most: u64) -> (usize, usize) {
        let len = self.model.len() as u64;
        if len == 0 {
            return (0, 0);
        }
        let at = rng.below(len);
        (at as usize, (at + 1 + rng.below(at_most)).min(len) as usize)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[at..end].copy_from_slice(bytes);
    }

    fn expect(&self, is: &[u8], at: usize, how: &str) {
        let should = &self.model[at..at + is.len()];
        let wrong = is.iter().zip(should).position(|(a, b)| a != b);
        assert!(
            wrong.is_none(),
            "{}: {how} at {at} + {}: differs at {}; its last steps:\n{}",
            self.path.display(),
            is.len(),
            at + wrong.unwrap_or_default(),
            self.log[self.log.len().saturating_sub(60)..].join("\n")
        );
    }

    fn step(&mut self, rng: &mut Rng) {
        let (from, to) = self.range(rng, 70_000);
        let said = match rng.below(100) {
            0..20 => {
                let mut buf = vec![0; to - from];
                self.file.read_exact_at(&mut buf, from as u64).unwrap();
                self.expect(&buf, from, "read");
                return;
            }
            20..34 if to > from => {
                let map = map(&self.file);
                self.expect(&map[from..to], from, "mapped");
                return;
            }
            34..54 => {
                let at = rng.below(LARGEST - 70_000);
                let bound = if rng.chance(50) { 300 } else { 70_000 };
                let count = 1 + rng.below(bound) as usize;
                let bytes = rng.bytes(count);
                self.file.write_all_at(&bytes, at).unwrap();
                self.put(at as usize, &bytes);
                format!("write at {at} + {count}")
            }
            54..66 if to > from => {
                let bytes = rng.bytes(to - from);
                write_mapped(self.path, from, &bytes).unwrap();
                self.put(from, &bytes);
                format!("map at {from} + {}", to - from)
            }
            66..74 => {
                let len = rng.below(LARGEST);
                self.file.set_len(len).unwrap();
                self.model.resize(len as usize, 0);
                format!("cut to {len}")
            }
            74..82 if to > from => {
                if rng.chance(50) {
                    punch(&self.file, from as u64, (to - from) as u64).unwrap();
                } else {
                    let flags = FallocateFlags::ZERO_RANGE;
                    fallocate(&self.file, flags, from as u64, (to - from) as u64).unwrap();
                }
                self.model[from..to].fill(0);
                format!("zero at {from} + {}", to - from)
            }
            82..90 if to > from => {
                let at = rng.below(LARGEST - 70_000);
                self.copy(from, to, at)
            }
            90..94 => {
                let other = std::mem::replace(&mut self.file, open_rw(self.path).unwrap());
                close(other).unwrap();
                "reopen".to_owned()
            }
            94..98 => {
                self.file.sync_data().unwrap();
                rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed).unwrap();
                "drop the kernel's pages".to_owned()
            }
            _ => {
                assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64);
                self.expect(&fs::read(self.path).unwrap(), 0, "read whole");
                return;
            }
        };
        self.log.push(said);
    }

    /// Copies within the file, as far as the kernel takes it.
    fn copy(&mut self, from: usize, to: usize, at: u64) -> String {
        let (mut source, mut target) = (from as u64, at);
        while source < to as u64 {
            let left = to - source as usize;
            let apart = source.abs_diff(target) >= left as u64;
            if !apart {
                return "no copy: it would overlap".to_owned();
            }
            let before = source;
            let (input, output) = (Some(&mut source), Some(&mut target));
            let copied = rustix::fs::copy_file_range(&self.file, input, &self.file, output, left).unwrap();
            assert!(copied > 0 && source == before + copied as u64, "copied {copied}");
            let bytes = self.model[before as usize..source as usize].to_vec();
            self.put(target as usize - copied, &bytes);
        }
        format!("copy {from}..{to} to {at}")
    }
}

#[allow(
    unsafe_code,
    reason = "there is no other way to read through a mapping; no other program has the file"
)]
fn map(file: &File) -> memmap2::Mmap {
    // SAFETY: the file is the test's own and is not cut while it is mapped.
    unsafe { memmap2::Mmap::map(file).unwrap() }
}

#[test]
fn a_written_file_of_an_image_equals_a_model_after_every_operation() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (operations, seeds) = (number("PFIMG_OPERATIONS", 3000u64), number("PFIMG_SEEDS", 8u64));
    let mut store = FastStore::new();
    let contents: Vec<_> =
        (0..seeds).map(|n| Rng::new(n + 77).bytes(1 + (n as usize * 61_003) % 400_000)).collect();
    let entries: Vec<_> =
        contents.iter().enumerate().map(|(n, bytes)| store.file(&format!("f{n}"), bytes)).collect();
    let tree = store.tree(&entries);
    let id = store.image(&Spec { fs: Some(tree), ..Spec::default() });
    for writes in ["through", "back"] {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let root = fork(&mount, &format!("try-{writes}"), &id);
        std::thread::scope(|scope| {
            for (n, content) in contents.iter().enumerate() {
                let path = root.join(format!("f{n}"));
                scope.spawn(move || {
                    let again = format!(
                        "PFIMG_OPERATIONS={operations} PFIMG_SEEDS={seeds} cargo test --test mount fork_base::"
                    );
                    let _program =
                        Program { what: "operations on a file of an image", seed: n as u64 + 1, again };
                    let mut rng = Rng::new(n as u64 + 1);
                    let file = open_rw(&path).unwrap();
                    let mut one = Exercise { path: &path, file, model: content.clone(), log: Vec::new() };
                    for _ in 0..operations {
                        one.step(&mut rng);
                    }
                    one.expect(&fs::read(&path).unwrap(), 0, "at the end");
                });
            }
        });
        let ended: Vec<_> =
            (0..contents.len()).map(|n| fs::read(root.join(format!("f{n}"))).unwrap()).collect();
        mount.unmount();
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let (image, root) = (mount.image(&id), world(&mount, &format!("try-{writes}")));
        for (n, content) in contents.iter().enumerate() {
            assert!(fs::read(root.join(format!("f{n}"))).unwrap() == ended[n], "f{n} after a remount");
            assert!(fs::read(image.join(format!("world/fs/f{n}"))).unwrap() == *content, "f{n} of the image");
        }
        mount.unmount();
    }
}
