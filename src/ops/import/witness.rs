//! The observations of an import, for the oracle to judge.

use super::tree::{Body, Item};
use super::{Importing, Report};
use crate::crashpack::Steps;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::ops::seal::{LEFT, readable, see_manifest};
use crate::oracle::TransferKind;
use crate::tree::Tree;

impl Importing<'_> {
    /// Judges an import. `left` is the number of files that were left behind before it.
    ///
    /// Reads the tree of a new image back and compares it with the folder's listing. For an existing image, checks only the manifest.
    pub(super) fn judge(&self, report: &Report, left: u64, items: &[Item]) -> Result<()> {
        let mut steps = Steps::new();
        let folder = self.dir.display().to_string();
        let made = if report.new { "made" } else { "found" };
        steps
            .did("checkpoint", format!("{made} image {} of {} items in {folder}", report.image, items.len()));
        let found = self.store.images().bytes(self.store.blobs(), &report.image);
        see_manifest(&mut steps, &report.image, if report.new { found } else { readable(found) });
        let left = self.store.blobs().files_left() - left;
        steps.saw_leaked(LEFT, u32::try_from(left).unwrap_or(u32::MAX));
        let differing = if report.new { self.differing_paths(report, items) } else { Vec::new() };
        steps.saw_paths(&folder, differing);
        let verdict = self.options.log.judge_steps(TransferKind::Import, &folder, &steps);
        verdict.error().map_or(Ok(()), |error| {
            if report.new
                && let Err(e) = self.store.remove_image(&report.image)
            {
                tracing::error!("{e}");
            }
            Err(error)
        })
    }

    /// Paths that differ between the image and the folder, each with the difference.
    fn differing_paths(&self, report: &Report, items: &[Item]) -> Vec<(String, String)> {
        let tree = self.store.image(&report.image).map_err(|e| e.to_string()).and_then(|image| {
            let text =
                self.store.blobs().read_metadata(&image.manifest.world.fs).map_err(|e| e.to_string())?;
            Tree::parse(&text).map_err(|e| e.to_string())
        });
        let tree = match tree {
            Ok(tree) => tree,
            Err(error) => return vec![("world/fs".to_owned(), error)],
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
        let how = |item: &Item| (item.path.escape_ascii().to_string(), "otherwise in the tree".to_owned());
        items.iter().filter(differs).map(how).collect()
    }
}
