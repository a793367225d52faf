//! The mount's own folders: `/`, `images/`, `tags/`, `agents/`.

use std::time::Duration;

use super::inode::{Fixed, ImageDir, Node, hash_bytes, mix};
use super::{Entry, Outcome, Patience, Vfs};
use crate::error::{Error, ErrorKind, Posix};
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
                "latest" if patience == Patience::Listing => self.listed_latest(),
                "latest" => self.entry_with(self.latest()?, Duration::ZERO),
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
                let target = format!("../forks/{name}/world/fs").into();
                self.entry_with(Node::link(b"work", target, 0), Duration::ZERO)
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
            [id] => {
                let place = ["images", name].concat();
                self.link_to(place.as_bytes(), id.hex(), id)
            }
            _ => Err(ErrorKind::NotFound),
        }
    }

    /// An image's folder. Asks the disk whether its marker is there, and nothing more.
    pub(super) fn image_entry(&self, id: &Digest) -> Outcome<Entry> {
        let mtime = self.time_of_image(id).ok_or(ErrorKind::NotFound)?;
        let image = self.catalog.number(id);
        self.entry_with(Node::ImageDir { image, dir: ImageDir::Top, mtime }, IMAGE_TTL)
    }

    /// A link of ours to an image; its time is the image's. Asked for anew each time.
    pub(super) fn link_to(&self, place: &[u8], target: String, id: &Digest) -> Outcome<Entry> {
        let mtime = self.time_of_image(id).unwrap_or(0);
        self.entry_with(Node::link(place, target.into(), mtime), Duration::ZERO)
    }

    /// `latest`. Its number follows from which images there are, and not from which of them it leads to: a listing tells
    /// the number, and finding out the latter takes reading every manifest.
    fn latest(&self) -> Outcome<Node> {
        let (id, images) = self.catalog.latest().map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let mtime = self.time_of_image(&id).unwrap_or(0);
        Ok(Node::Link { target: format!("images/{}", id.hex()).into(), mtime, key: latest_key(images) })
    }

    fn listed_latest(&self) -> Outcome<Entry> {
        let (_, images) = self.catalog.ids_hashed().map_err(logged)?;
        let node = Node::Link { target: "".into(), mtime: 0, key: latest_key(images) };
        // Whoever wants more than the name asks again.
        self.entry_with(node, Duration::ZERO).map(|entry| Entry { attr_ttl: Duration::ZERO, ..entry })
    }

    /// What a `latest` leads to that was only listed.
    pub(super) fn follow_latest(&self, listed: u64) -> Outcome<Node> {
        match self.latest()? {
            node @ Node::Link { key, .. } if key == listed => Ok(node),
            // Images came or went since: the kernel must not keep the new one under the old number, and looks it up again.
            _ => Err(ErrorKind::Posix(Posix::Stale)),
        }
    }

    pub(super) fn lookup_agent(&self, agent: &str, name: &[u8]) -> Outcome<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let id = self.catalog.agent_image(agent, name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let place = ["agents", agent, name].join("/");
        self.link_to(place.as_bytes(), format!("../../images/{}", id.hex()), &id)
    }
}

fn latest_key(images: u64) -> u64 {
    mix(hash_bytes(b"latest"), images)
}

/// Logs an error that names its path itself.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn logged(error: Error) -> ErrorKind {
    tracing::error!("{error}");
    error.kind()
}
