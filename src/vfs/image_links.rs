//! The times of images, and links to images.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Entry;
use super::attempt::{Attempt, OnDisk, may_wait};
use super::node::Node;
use super::nodes::Nodes;
use crate::digest::Digest;
use crate::images::ImageReader;

const SECOND: i64 = 1_000_000_000;

/// How long the kernel may cache the name of an image or of a link to one. The watcher invalidates removed images, but it
/// would miss an image that is added and removed between two of its looks. Another program may also move a tag.
pub(super) const IMAGE_TTL: Duration = Duration::from_millis(500);

/// Makes links to images. A link shows the image's time.
pub(super) struct ImageLinks {
    nodes: Arc<Nodes>,
    images: Arc<ImageReader>,
    store: OnDisk,
}

impl ImageLinks {
    pub(super) fn new(nodes: Arc<Nodes>, images: Arc<ImageReader>, store: OnDisk) -> Self {
        Self { nodes, images, store }
    }

    /// The time when an image was made, in nanoseconds since 1970. Its manifest, its folders and links to it show it. If the
    /// manifest cannot be read, it is the marker's time.
    pub(super) fn time_of_image(&self, image: &Digest) -> Attempt<i64> {
        if let Some(made) = self.images.times().created_known(image) {
            return Ok(made);
        }
        may_wait()?;
        self.images.times().created(image).or_else(|_| self.marker_time(image))
    }

    /// When an image's marker was written, in nanoseconds since 1970. Without one it is the time at which the mount began.
    pub(super) fn marker_time(&self, image: &Digest) -> Attempt<i64> {
        let marker = self.store.at(may_wait()?).images().marker(image);
        Ok(std::fs::metadata(marker).map_or_else(
            |_| self.nodes.started_ns(),
            |marker| marker.mtime().saturating_mul(SECOND).saturating_add(marker.mtime_nsec()),
        ))
    }

    /// Counts a lookup of a link to an image.
    pub(super) fn entry(
        &self,
        place: &[u8],
        target: String,
        image: &Digest,
        lifetime: Duration,
    ) -> Attempt<Entry> {
        let mtime_ns = self.time_of_image(image)?;
        let link = Node::link(place, target.into(), mtime_ns);
        self.nodes.own_entry(self.nodes.keyed(link), lifetime)
    }
}
