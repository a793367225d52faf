//! The observations of an export, for the oracle to judge.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::FileType;

use crate::audit::Log;
use crate::crashpack::Steps;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::mount::reach::Top;
use crate::ops::fixture;
use crate::ops::seal::{readable, see_manifest};
use crate::oracle::TransferKind;
use crate::store::{Image, Pin, Store};
use crate::tree::{NodeId, Tree};

/// Judges an export; `differing` paths differ from the image. Releases the pin.
pub(super) fn judge(
    store: &Store,
    image: &Image,
    pin: Pin,
    folder: &Path,
    differing: Vec<String>,
    log: &Log,
) -> Result<()> {
    let mut steps = Steps::new();
    steps.did("checkpoint", format!("wrote image {} to {}", image.id, folder.display()));
    steps.made_by(fixture::seed_of(&image.manifest.agent));
    see_manifest(&mut steps, &image.id, readable(store.images().bytes(store.blobs(), &image.id)));
    steps.saw_leaked("pins left behind", u32::from(pin.is_left()));
    let how = "otherwise in the directory";
    let differing = differing.into_iter().map(|path| (path, how.to_owned()));
    steps.saw_paths(&folder.display().to_string(), differing);
    log.judge_steps(TransferKind::Export, &image.id.to_string(), &steps).error().map_or(Ok(()), Err)
}

/// Paths that differ between the directory and the tree, except nodes that are left out.
pub(super) fn differing_paths(tree: &Tree, top: &Top, left_out: &HashSet<NodeId>) -> Vec<String> {
    let differs = |path: &[u8], id| {
        let found = match top.stat(path) {
            Ok(found) => found,
            // A path that cannot be read is not missing.
            Err(e) => return matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        };
        let kind = FileType::from_raw_mode(found.st_mode);
        kind != match tree.kind(id) {
            Kind::File => FileType::RegularFile,
            Kind::Dir => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Chardev => FileType::CharacterDevice,
            Kind::Blockdev => FileType::BlockDevice,
        } || (tree.kind(id) == Kind::File && found.st_size as u64 != tree.size(id))
    };
    tree.nodes()
        .filter(|id| !left_out.contains(id))
        .map(|id| (id, tree.path(id)))
        .filter(|(id, path)| differs(path, *id))
        .map(|(_, path)| path.escape_ascii().to_string())
        .collect()
}
