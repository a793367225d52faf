//! What there is to see of an export, for the oracle to judge.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;

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
            let found = match fs::symlink_metadata(self.dir.join(OsStr::from_bytes(path))) {
                Ok(found) => found,
                // A path that is too long to be looked at is not gone.
                Err(e) => return matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
            };
            let kind = found.file_type();
            match tree.kind(id) {
                Kind::File => !kind.is_file() || found.len() != tree.size(id),
                Kind::Dir => !kind.is_dir(),
                Kind::Symlink => !kind.is_symlink(),
                Kind::Fifo => !kind.is_fifo(),
                Kind::Socket => !kind.is_socket(),
                Kind::Chardev => !kind.is_char_device(),
                Kind::Blockdev => !kind.is_block_device(),
            }
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
