//! What there is to see of an import, for the oracle to judge.

use super::tree::{Body, Item};
use super::{Importing, Report};
use crate::crashpack::Crashpack;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::oracle::{Transfer, TransferKind, TransferOracle, TransferState};
use crate::seal::{hash_of, readable};
use crate::tree::Tree;

/// So many paths that differ are named.
const NAMED: usize = 20;

impl Importing<'_> {
    /// Has the oracle judge an import. `left` is how many files had been left behind before it. The tree of a new image
    /// is read back and held against what was found; of one that was there already only the manifest is looked at.
    pub(super) fn judge(&self, report: &Report, left: u64, items: &[Item]) -> Result<()> {
        let mut trace = Vec::new();
        let found = self.store.images().bytes(self.store.blobs(), &report.image);
        let manifest_hash = hash_of(if report.new { found } else { readable(found) }, &mut trace);
        let differing = if report.new { self.differing_paths(report, items) } else { Vec::new() };
        let state = TransferState {
            manifest_hash,
            expected_manifest_hash: report.image.to_string(),
            leaked_obligations: u32::try_from(self.store.blobs().files_left() - left).unwrap_or(u32::MAX),
            path_outcomes_consistent: differing.is_empty(),
            ..TransferState::default()
        };
        trace.extend(differing);
        let pack = trace.into_iter().fold(Crashpack::new(), |pack, line| pack.with_trace("path", line));
        let subject = self.dir.display().to_string();
        let transfer = Transfer { kind: TransferKind::Import, subject, state };
        let oracle = TransferOracle::new(transfer.kind.name());
        self.options.log.judge_with(&oracle, &transfer, pack).error().map_or(Ok(()), |error| {
            if report.new
                && let Err(e) = self.store.remove_image(&report.image)
            {
                tracing::error!("{e}");
            }
            Err(error)
        })
    }

    fn differing_paths(&self, report: &Report, items: &[Item]) -> Vec<String> {
        let tree = self.store.image(&report.image).map_err(|e| e.to_string()).and_then(|image| {
            let text =
                self.store.blobs().read_metadata(&image.manifest.world.fs).map_err(|e| e.to_string())?;
            Tree::parse(&text).map_err(|e| e.to_string())
        });
        let tree = match tree {
            Ok(tree) => tree,
            Err(error) => return vec![format!("path world/fs: {error}")],
        };
        let differs = |item: &&Item| {
            let Some(id) = tree.resolve(&item.path) else { return true };
            let same = match &item.body {
                Body::Content(digest) => {
                    tree.blob(id) == Some(digest) && tree.size(id) == item.meta.stamp.size
                }
                Body::Target(target, _) => tree.target(id) == Some(target.as_slice()),
                Body::Nothing => item.meta.kind != Kind::File,
            };
            !same || tree.kind(id) != item.meta.kind
        };
        let differing = items.iter().filter(differs).take(NAMED);
        differing.map(|item| format!("{}: otherwise in the tree", item.path.escape_ascii())).collect()
    }
}
