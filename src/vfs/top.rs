//! The mount's own folders: `/`, `images/`, `tags/`, `agents/`.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::inode::{Fixed, ImageDir, Node};
use super::{Entry, Outcome, Patience, Vfs};
use crate::error::{Error, ErrorKind};
use crate::store::Digest;

/// How long an image's name may be believed. The watcher tells of images that go, but one that comes and goes
/// between two of its looks would stay in the kernel for ever.
const IMAGE_TTL: Duration = Duration::from_millis(500);

impl Vfs {
    pub(super) fn lookup_fixed(&self, dir: Fixed, name: &[u8], patience: Patience) -> Outcome<Entry> {
        // Names of ours are UTF-8; a name that is not cannot be one of them.
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        match dir {
            Fixed::Root => match name {
                "images" => self.entry(Node::Fixed(Fixed::Images)),
                "tags" => self.entry(Node::Fixed(Fixed::Tags)),
                "agents" => self.entry(Node::Fixed(Fixed::Agents)),
                "forks" => self.entry(Node::Fixed(Fixed::Forks)),
                "work" => self.entry(Node::Fixed(Fixed::Work)),
                ".pfimg" => self.entry(Node::Fixed(Fixed::Control)),
                super::MARKER => self.entry(Node::Marker),
                "latest" if patience == Patience::Listing => {
                    // Which one it is takes reading every manifest; whoever follows the link asks again.
                    self.entry_with(Node::Link { target: "".into(), mtime: 0, tag: 0 }, Duration::ZERO)
                }
                "latest" => {
                    let id = self.catalog.latest().map_err(logged)?.ok_or(ErrorKind::NotFound)?;
                    self.link_to(format!("images/{}", id.hex()), &id)
                }
                _ => Err(ErrorKind::NotFound),
            },
            Fixed::Images => self.lookup_image(name),
            Fixed::Tags => self.lookup_tag(name),
            Fixed::Agents => {
                let name = self.catalog.agent_name(name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
                self.entry_with(Node::Agent(name), Duration::ZERO)
            }
            Fixed::Control => self.lookup_control(name),
            Fixed::Forks => self.lookup_fork(name),
            Fixed::Work => {
                self.fork_named(name)?;
                self.entry_with(
                    Node::Link { target: format!("../forks/{name}/world/fs").into(), mtime: 0, tag: 0 },
                    Duration::ZERO,
                )
            }
        }
    }

    fn lookup_image(&self, name: &str) -> Outcome<Entry> {
        if let Ok(id) = Digest::from_hex(name) {
            return self.image_entry(&id);
        }
        // Prefixes resolve as links, unlisted.
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let found = self.store.images().with_prefix(digits).map_err(logged)?;
        match found.as_slice() {
            [id] => self.link_to(id.hex(), id),
            _ => Err(ErrorKind::NotFound),
        }
    }

    /// An image's folder. Asks the disk whether its marker is there, and nothing more.
    pub(super) fn image_entry(&self, id: &Digest) -> Outcome<Entry> {
        let marker = std::fs::metadata(self.store.images().marker(id)).map_err(|_| ErrorKind::NotFound)?;
        let image = self.catalog.number(id);
        self.entry_with(Node::ImageDir { image, dir: ImageDir::Top, mtime: marker.mtime() }, IMAGE_TTL)
    }

    /// A link of ours to an image; its time is the image's. Asked for anew each time.
    pub(super) fn link_to(&self, target: String, id: &Digest) -> Outcome<Entry> {
        let mtime = self.marker_time(id);
        self.entry_with(Node::Link { target: target.into(), mtime, tag: 0 }, Duration::ZERO)
    }

    /// When an image's marker was written, in seconds since 1970; 0 if it is not there.
    pub(super) fn marker_time(&self, id: &Digest) -> i64 {
        std::fs::metadata(self.store.images().marker(id)).map_or(0, |m| m.mtime())
    }

    pub(super) fn lookup_agent(&self, agent: &str, name: &[u8]) -> Outcome<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let id = self.catalog.agent_image(agent, name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        self.link_to(format!("../../images/{}", id.hex()), &id)
    }
}

/// Logs an error that names its path itself.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn logged(error: Error) -> ErrorKind {
    tracing::error!("{error}");
    error.kind()
}
