//! Changes where the content of files lies, while the files stay the same.

use std::collections::HashSet;
use std::sync::Arc;

use super::frozen::{Put, same_file};
use crate::fork::disk::GenId;
use crate::fork::extents::Pieces;
use crate::fork::ino::Ino;
use crate::fork::inode::{Body, Content, Protection};
use crate::fork::live::Live;

/// Changes where a file's content lies, if the file is still there.
pub(super) fn repoint(
    live: &mut Live,
    put: &Put,
    gone: &HashSet<GenId>,
    change: &mut dyn FnMut(&mut Content, &mut Protection) -> bool,
    changed: &mut Vec<Ino>,
) {
    let slot = match live.state.nodes.get_mut(&put.ino) {
        Some(inode) if same_file(inode, &put.inode) => inode,
        _ => match live.orphans.get_mut(&put.ino) {
            Some(inode) if same_file(inode, &put.inode) => inode,
            _ => return,
        },
    };
    let inode = Arc::make_mut(slot);
    let Body::File(content) = &mut inode.body else { return };
    content.settle();
    if content.own.as_ref().is_some_and(|own| gone.contains(&own.generation.id)) {
        content.own = None;
    }
    if change(content, &mut inode.guard) && !changed.contains(&put.ino) {
        changed.push(put.ino);
    }
    replace_gone(content, gone);
}

/// Reports a piece that was not replaced, which is an error in this program. It stays readable while the fork is in memory.
fn replace_gone(content: &Content, gone: &HashSet<GenId>) {
    let left = content.pieces.all().any(|(_, p)| p.src.generation().is_some_and(|g| gone.contains(&g.id)));
    if left {
        tracing::error!("a file still uses a generation that was released");
    }
}

/// Replaces pieces in generations that are `gone` by other pieces that hold the same bytes.
pub(super) fn take_pieces(content: &mut Content, gone: &HashSet<GenId>, from: &Pieces) {
    let old = std::mem::take(&mut content.pieces);
    for (at, piece) in old.all() {
        if piece.src.generation().is_some_and(|g| gone.contains(&g.id)) {
            for (at, piece) in from.range(at, at + piece.len) {
                content.pieces.put(at, piece);
            }
        } else {
            content.pieces.put(at, piece.clone());
        }
    }
}
