//! What an image's files show beside their bytes. Every attribute of an image is made here, its time as well.

use std::os::unix::fs::MetadataExt;

use super::Vfs;
use super::inode::{ImageNo, Place, Recorded};
use crate::store::Digest;
use crate::tree::{NodeId, Tree};

/// Layer files are plain readable files.
pub(super) const LAYER_MODE: u16 = 0o644;

impl Vfs {
    /// The time of an entry of an image's tree, in nanoseconds since 1970; nothing if none is recorded.
    #[allow(clippy::unused_self, reason = "which image it is says more than its tree")]
    fn time_of_node(&self, _image: ImageNo, tree: &Tree, node: NodeId) -> Option<i64> {
        tree.mtime_ns(node)
    }

    /// The time of a layer's file or of a page, in nanoseconds since 1970; nothing if it is not known.
    #[allow(clippy::unused_self, reason = "no layer's time is recorded")]
    fn time_of_layer(&self, _image: ImageNo, _place: Place, _digest: &Digest) -> Option<i64> {
        None
    }

    /// The time of an image's manifest, in seconds since 1970.
    #[allow(clippy::unused_self, reason = "no manifest's time is recorded")]
    pub(super) fn time_of_manifest(&self, _image: &Digest) -> i64 {
        0
    }

    /// The time of an image, of its folders and of links to it, in seconds since 1970; nothing if its marker is not there.
    pub(super) fn time_of_image(&self, image: &Digest) -> Option<i64> {
        std::fs::metadata(self.store.images().marker(image)).ok().map(|marker| marker.mtime())
    }

    /// Attributes of an entry of an image's tree.
    pub(super) fn recorded(&self, image: ImageNo, tree: &Tree, node: NodeId) -> Recorded {
        let owner = tree.owner(node);
        Recorded {
            mode: tree.mode(node),
            mtime_ns: self.time_of_node(image, tree, node).unwrap_or(0),
            uid: owner.uid.unwrap_or(self.config.uid),
            gid: owner.gid.unwrap_or(self.config.gid),
        }
    }

    /// Attributes of a layer's file or of a page.
    pub(super) fn recorded_layer(&self, image: ImageNo, place: Place, digest: &Digest) -> Recorded {
        Recorded {
            mode: LAYER_MODE,
            mtime_ns: self.time_of_layer(image, place, digest).unwrap_or(0),
            uid: self.config.uid,
            gid: self.config.gid,
        }
    }
}
