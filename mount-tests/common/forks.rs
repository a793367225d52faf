//! What the tests of forks share: a small image to fork, and system calls that the standard library does not have.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};

use super::fast::{FastStore, Spec, dir_entry, link_entry};
use super::mount::Mount;
use super::rng::Rng;

/// Bytes of the base's largest file: more than a fork keeps in its journal for one file.
pub const BIG: usize = 300_000;

/// The content of the base's file `big`.
pub fn big() -> Vec<u8> {
    Rng::new(0xb16).bytes(BIG)
}

/// A store with one image: a few files, folders and a link, a ledger, a trace and cache pages; and its id.
pub fn small_store() -> (FastStore, String) {
    let mut store = FastStore::new();
    let mut tool = store.file("bin/tool", b"#!/bin/sh\necho tool\n");
    tool["mode"] = "0755".into();
    let link = store.blob(b"README");
    let mut symlink = link_entry("link", "README");
    symlink["blob"] = link.into();
    let entries = [
        store.file("README", b"read me\n"),
        store.file("big", &big()),
        dir_entry("bin"),
        tool,
        dir_entry("empty"),
        symlink,
        dir_entry("src"),
        store.file("src/main.rs", b"fn main() {}\n"),
        store.file("src/lib.rs", b"//! Nothing.\n"),
    ];
    let fs = store.tree(&entries);
    let cache = store.pages(7, 2);
    let id = store.image(&Spec { fs: Some(fs), cache: Some(cache), ..Spec::default() });
    (store, id)
}

/// Gives an image a name.
pub fn tag(store: &FastStore, name: &str, id: &str) {
    std::fs::create_dir_all(store.root().join("refs/tags")).expect("a folder");
    std::fs::write(store.root().join("refs/tags").join(name), format!("sha256:{id}\n")).expect("a tag");
}

/// Makes fork `name` of `source` and gives its `world/fs`.
#[track_caller]
pub fn fork(mount: &Mount, name: &str, source: &str) -> PathBuf {
    let at = mount.join(format!("forks/{name}@{source}"));
    std::fs::create_dir(&at).unwrap_or_else(|e| panic!("mkdir {name}@{source}: {e}"));
    world(mount, name)
}

/// A fork's `world/fs`.
pub fn world(mount: &Mount, name: &str) -> PathBuf {
    mount.join("forks").join(name).join("world/fs")
}

/// Opens a file for reading and writing.
pub fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Calls fallocate(2).
pub fn fallocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

/// Makes a hole in a file.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Where the next data from `offset` on is.
pub fn seek_data(file: &File, offset: u64) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::Data(offset))?)
}

/// Where the next hole from `offset` on is.
pub fn seek_hole(file: &File, offset: u64) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::Hole(offset))?)
}

/// Maps a file, shared and to be written.
#[allow(
    unsafe_code,
    reason = "there is no other way to write through a mapping; no other process has the file"
)]
pub fn map_shared(file: &File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: the file is the test's own and is not cut while it is mapped.
    unsafe { memmap2::MmapMut::map_mut(file) }
}

/// Writes `bytes` at `offset` through a shared mapping and flushes it.
pub fn write_mapped(path: &Path, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let mut map = map_shared(&open_rw(path)?)?;
    map[offset..offset + bytes.len()].copy_from_slice(bytes);
    map.flush()
}

/// Bytes that a folder takes on disk, with everything below it.
pub fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let below: u64 = match std::fs::read_dir(path) {
        Ok(entries) if meta.is_dir() => entries.flatten().map(|e| disk_usage(&e.path())).sum(),
        _ => 0,
    };
    below + meta.blocks() * 512
}

/// Closes a file and gives the error that dropping it would swallow.
#[allow(unsafe_code, reason = "close(2) with its error is nowhere to be had safely")]
pub fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd as _;
    // SAFETY: the descriptor has no owner now.
    let failed = unsafe { libc::close(file.into_raw_fd()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
