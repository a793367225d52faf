//! Turns problems into findings with paths as under a mount.

use std::collections::{BTreeMap, HashMap};

use super::finding::{Code, Finding};
use super::layers::{Half, Place, Problem, State};
use crate::digest::Digest;
use crate::layers::world;
use crate::store::{LayerFile, Store};

/// Turns problems into findings with image and path. Reads each tree with problems once more.
pub(super) fn locate(store: &Store, ids: &[Digest], state: &mut State) -> Vec<Finding> {
    let problems = std::mem::take(&mut state.problems);
    let layer = |image: u32, file: LayerFile| {
        let layers = state.layers.get(&image)?;
        layers.iter().find(|(layer, _)| *layer == file).map(|(_, digest)| *digest)
    };
    let mut uses: HashMap<(LayerFile, Digest), u32> = HashMap::new();
    for (file, digest) in state.layers.values().flatten() {
        *uses.entry((*file, *digest)).or_default() += 1;
    }
    // By tree, so that only one tree's paths are in memory.
    let mut by_tree: BTreeMap<Option<Digest>, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        let tree = problem
            .at
            .filter(|at| matches!(at.place, Place::Entry(_)))
            .and_then(|at| layer(at.image, LayerFile::WorldFs));
        by_tree.entry(tree).or_default().push(problem);
    }
    let mut findings = Vec::new();
    for (tree, problems) in by_tree {
        let paths = tree.map(|tree| paths(store, &tree, &problems)).unwrap_or_default();
        for problem in problems {
            let mut finding = Finding::new(problem.code, problem.blob, &problem.detail);
            match problem.at {
                Some(at) => {
                    // The same file may continue the parent of another image.
                    let is_descent =
                        matches!(problem.code, Code::LedgerNotContinued | Code::TraceNotContinued);
                    let others = at
                        .place
                        .layer()
                        .filter(|_| !is_descent)
                        .and_then(|file| uses.get(&(file, layer(at.image, file)?)))
                        .map_or(0, |uses| uses - 1);
                    let path = Some(path(at.place, &paths));
                    finding = finding.found_in(ids[at.image as usize], path, others);
                }
                None => finding.detail.push_str(" (no image that was looked at refers to it)"),
            }
            findings.push(finding);
        }
    }
    findings
}

/// The paths of those entries of a tree that have problems, by number.
fn paths(store: &Store, tree: &Digest, problems: &[Problem]) -> HashMap<u32, String> {
    let mut paths: HashMap<u32, String> = problems
        .iter()
        .filter_map(|problem| match problem.at?.place {
            Place::Entry(number) => Some((number, String::new())),
            _ => None,
        })
        .collect();
    let mut number = 0;
    if let Ok(bytes) = store.blobs().read_metadata(tree) {
        // Its other defects were reported before.
        let _ = world::visit(&bytes, &mut |entry| {
            if let Some(path) = paths.get_mut(&number) {
                *path = entry.path.into_owned();
            }
            number += 1;
            Ok(())
        });
    }
    paths
}

fn path(place: Place, paths: &HashMap<u32, String>) -> String {
    match place {
        Place::Manifest => "manifest.json".into(),
        Place::Layer(file) => file.path().into(),
        Place::Entry(number) => {
            let path = paths.get(&number).filter(|path| !path.is_empty());
            path.map_or_else(|| "world/fs".into(), |path| format!("world/fs/{path}"))
        }
        Place::Page(ix, Half::Keys) => format!("cache/pages/{ix:08}.k"),
        Place::Page(ix, Half::Values) => format!("cache/pages/{ix:08}.v"),
        Place::CriuDump => LayerFile::WorldProcs.path().into(),
        Place::MergedLedger => LayerFile::EffectsLedger.path().into(),
    }
}
