//! What there is to see of an export, for the oracle to judge.

use std::io::ErrorKind;

use rustix::fs::FileType;

use super::Exporting;
use crate::audit::Log;
use crate::crashpack::Crashpack;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::oracle::{Transfer, TransferKind, TransferOracle, TransferState};
use crate::seal::{hash_of, readable};
use crate::store::{Image, Pin, Store};

/// So many paths that differ are named.
const NAMED: usize = 20;

/// Has the oracle judge an export of which these paths are otherwise than in the image. Gives the pin back.
pub(super) fn judge(store: &Store, image: &Image, pin: Pin, differing: &[String], log: &Log) -> Result<()> {
    let mut trace = Vec::new();
    let manifest_hash = hash_of(readable(store.images().bytes(store.blobs(), &image.id)), &mut trace);
    let state = TransferState {
        manifest_hash,
        expected_manifest_hash: image.id.to_string(),
        leaked_obligations: u32::from(pin.is_left()),
        path_outcomes_consistent: differing.is_empty(),
        ..TransferState::default()
    };
    let trace = trace.iter().chain(differing);
    let pack = trace.fold(Crashpack::new(), |pack, line| pack.with_trace("path", line));
    let transfer = Transfer { kind: TransferKind::Export, subject: image.id.to_string(), state };
    let oracle = TransferOracle::new(transfer.kind.name());
    log.judge_with(&oracle, &transfer, pack).error().map_or(Ok(()), Err)
}

impl Exporting<'_> {
    /// Paths that are otherwise in the folder than in the image, but for those that the report names.
    pub(super) fn differing_paths(&self) -> Vec<String> {
        let tree = self.tree;
        let left_out = self.left_out.lock();
        let differs = |path: &[u8], id| {
            let found = match self.top.stat(path) {
                Ok(found) => found,
                // What cannot be looked at is not gone.
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
            .take(NAMED)
            .map(|(_, path)| format!("{}: otherwise in the folder", path.escape_ascii()))
            .collect()
    }
}
