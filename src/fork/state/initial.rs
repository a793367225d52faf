//! Makes the tree of an image the initial tree of forks.

use std::collections::HashMap;
use std::sync::Arc;

use super::base::{Base, PMap, folder};
use super::tree::State;
use crate::digest::Digest;
use crate::fork::frame::FOLDERS;
use crate::fork::ino::Ino;
use crate::fork::owners::Owners;
use crate::fork::reader::{BaseTimes, LayerBase};
use crate::layers::world::Kind;
use crate::tree::{NodeId, Tree};

/// The initial tree of a fork of an image.
pub(in crate::fork) fn base_of(
    image: Digest,
    tree: Arc<Tree>,
    layers: &[LayerBase],
    times: BaseTimes,
    owners: Owners,
) -> Base {
    let mut base = Base { image: Some(image), times, ..Base::empty(owners, 0) };
    let mut groups: HashMap<u64, Vec<NodeId>> = HashMap::new();
    for (node, number) in tree.hardlinks() {
        groups.entry(number).or_default().push(node);
    }
    // A tree that declares different files as one is not trusted: each keeps its content.
    groups.retain(|_, nodes| {
        let first = nodes[0];
        nodes.len() > 1
            && tree.kind(first) != Kind::Dir
            && nodes.iter().all(|n| {
                (tree.kind(*n), tree.blob(*n), tree.size(*n), tree.target(*n), tree.rdev(*n))
                    == (
                        tree.kind(first),
                        tree.blob(first),
                        tree.size(first),
                        tree.target(first),
                        tree.rdev(first),
                    )
            })
    });
    base.groups = groups;
    let mut state = State::over(Arc::new(Base { tree, ..base }));
    for (ino, parent, name) in FOLDERS {
        let below = (ino == Ino::FS).then_some(NodeId::ROOT);
        let mut dir = folder(vec![(parent, name.into())], below);
        if let Some(node) = below {
            state.by_base.insert(node, ino);
            dir = state.inode_of(node, ino);
            dir.links = Arc::new(vec![(parent, name.into())]);
        }
        state.nodes.insert(ino, Arc::new(dir));
        state.set_entry(parent, &name.into(), ino, true);
    }
    for layer in layers {
        state.add_layer(layer, |_| false);
    }
    let State { base, nodes, by_base, .. } = state;
    let mut base = Arc::try_unwrap(base).unwrap_or_else(|shared| Base {
        image: shared.image,
        tree: shared.tree.clone(),
        groups: shared.groups.clone(),
        owners: shared.owners.clone(),
        times: shared.times.clone(),
        nodes: PMap::default(),
        by_base: PMap::default(),
    });
    (base.nodes, base.by_base) = (nodes, by_base);
    base
}
