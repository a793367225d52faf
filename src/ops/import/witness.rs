//! The observations of an import, for the oracle to judge.

use super::importing::Importing;
use super::report::Report;
use super::tree::{Body, Item};
use crate::crashpack::Steps;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::ops::seal::{LEFT, readable, see_manifest};
use crate::oracle::TransferKind;
use crate::tree::Tree;

/// Judges an import. `left` is the number of files that were left behind before it.
///
/// Reads the tree of a new image back and compares it with the directory's listing. For an existing image, checks only the
/// manifest.
pub(super) fn judge(importing: &Importing<'_>, report: &Report, left: u64, items: &[Item]) -> Result<()> {
    let mut steps = Steps::new();
    let folder = importing.dir.display().to_string();
    let made = if report.new { "made" } else { "found" };
    steps.did("checkpoint", format!("{made} image {} of {} items in {folder}", report.image, items.len()));
    let found = importing.store.images().bytes(importing.store.blobs(), &report.image);
    see_manifest(&mut steps, &report.image, if report.new { found } else { readable(found) });
    let left = importing.store.blobs().files_left() - left;
    steps.saw_leaked(LEFT, u32::try_from(left).unwrap_or(u32::MAX));
    let differing = if report.new { differing_paths(importing, report, items) } else { Vec::new() };
    steps.saw_paths(&folder, differing);
    let verdict = importing.options.log.judge_steps(TransferKind::Import, &folder, &steps);
    verdict.error().map_or(Ok(()), |error| {
        if report.new
            && let Err(e) = importing.store.remove_image(&report.image)
        {
            tracing::error!("{e}");
        }
        Err(error)
    })
}

/// Paths that differ between the image and the directory, each with the difference.
fn differing_paths(importing: &Importing<'_>, report: &Report, items: &[Item]) -> Vec<(String, String)> {
    let tree = importing.store.image(&report.image).map_err(|e| e.to_string()).and_then(|image| {
        let text =
            importing.store.blobs().read_metadata(&image.manifest.world.fs).map_err(|e| e.to_string())?;
        Tree::parse(&text).map_err(|e| e.to_string())
    });
    let tree = match tree {
        Ok(tree) => tree,
        Err(error) => return vec![("world/fs".to_owned(), error)],
    };
    let differs = |item: &&Item| {
        let Some(id) = tree.resolve(&item.path) else { return true };
        let same = match &item.body {
            Body::Content(digest) => tree.blob(id) == Some(digest) && tree.size(id) == item.meta.stamp.size,
            Body::Target(target, _) => tree.target(id) == Some(target.as_slice()),
            Body::Nothing => item.meta.kind != Kind::File,
        };
        !same || tree.kind(id) != item.meta.kind
    };
    let how = |item: &Item| (item.path.escape_ascii().to_string(), "otherwise in the tree".to_owned());
    items.iter().filter(differs).map(how).collect()
}
