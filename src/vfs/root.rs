//! The mount's own folders: `/`, `images/`, `tags/`, `agents/`.

use std::time::Duration;

use super::inode::{Fixed, ImageDir, Node, hash_bytes, mix};
use super::{Entry, Outcome, Patience, Step, Vfs};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix};
use crate::layers::world::Kind;

/// How long an image's name may be believed. The watcher tells of images that go, but one that comes and goes
/// between two of its looks would stay in the kernel for ever.
const IMAGE_TTL: Duration = Duration::from_millis(500);

impl Vfs {
    pub(super) fn lookup_fixed(&self, dir: Fixed, name: &[u8], patience: Patience) -> Outcome<Step<Entry>> {
        // Names of ours are UTF-8; a name that is not cannot be one of them.
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let done = |entry: Outcome<Entry>| entry.map(Step::Done);
        match dir {
            Fixed::Root => match name {
                "images" => done(self.entry(Node::Fixed(Fixed::Images))),
                "tags" => done(self.entry(Node::Fixed(Fixed::Tags))),
                "agents" => done(self.entry(Node::Fixed(Fixed::Agents))),
                "forks" => done(self.entry(Node::Fixed(Fixed::Forks))),
                "work" => done(self.entry(Node::Fixed(Fixed::Work))),
                ".pfimg" => done(self.entry(Node::Fixed(Fixed::Control))),
                super::MARKER => done(self.entry(Node::Marker)),
                "latest" => match patience {
                    Patience::Listing => done(self.listed_latest()),
                    // Which one it is may take reading every manifest.
                    Patience::Brief => Ok(Step::Blocks),
                    Patience::Blocking => done(self.entry_with(self.latest()?, Duration::ZERO)),
                },
                _ => Err(ErrorKind::NotFound),
            },
            Fixed::Images => self.lookup_image(name, patience),
            Fixed::Tags => self.lookup_tag(name, patience),
            // Whether there is one may take reading every manifest.
            Fixed::Agents if patience == Patience::Brief => Ok(Step::Blocks),
            Fixed::Agents => {
                let name = self.catalog.agent_name(name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
                done(self.entry_with(Node::Agent(name), Duration::ZERO))
            }
            Fixed::Control => done(self.lookup_control(name)),
            // A fork that was not looked at yet is read back, with its image.
            Fixed::Forks | Fixed::Work if patience == Patience::Brief && self.has_to_read_fork(name) => {
                Ok(Step::Blocks)
            }
            Fixed::Forks => done(self.lookup_fork(name)),
            Fixed::Work => {
                let made = self.fork_named(name)?.fork.created_ns();
                let target = format!("../forks/{name}/world/fs").into();
                done(self.entry_with(Node::link(b"work", target, made), Duration::ZERO))
            }
        }
    }

    fn lookup_image(&self, name: &str, patience: Patience) -> Outcome<Step<Entry>> {
        if let Ok(id) = Digest::from_hex(name) {
            return self.image_entry(&id, patience);
        }
        // Prefixes resolve as links, unlisted.
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let found = self.store.images().with_prefix(digits).map_err(logged)?;
        match found.as_slice() {
            [id] => {
                let place = ["images", name].concat();
                self.link_to(place.as_bytes(), id.hex(), id, patience)
            }
            _ => Err(ErrorKind::NotFound),
        }
    }

    /// An image's folder. A listing asks the disk whether its marker is there, and nothing more: its time is asked for.
    fn image_entry(&self, id: &Digest, patience: Patience) -> Outcome<Step<Entry>> {
        if !self.store.images().contains(id) {
            self.catalog.home.require().map_err(|error| error.kind())?;
            return Err(ErrorKind::NotFound);
        }
        let node = Node::ImageDir { image: self.catalog.number(id), dir: ImageDir::Top };
        if self.reader.times().created_known(id).is_none() {
            match patience {
                Patience::Brief => return Ok(Step::Blocks),
                Patience::Listing => {
                    let entry = self.entry_to_be_asked(self.keyed(node), Kind::Dir, IMAGE_TTL)?;
                    return Ok(Step::Done(entry));
                }
                Patience::Blocking => {}
            }
        }
        self.entry_with(node, IMAGE_TTL).map(Step::Done)
    }

    /// A link of ours to an image; its time is the image's. Asked for anew each time.
    pub(super) fn link_to(
        &self,
        place: &[u8],
        target: String,
        id: &Digest,
        patience: Patience,
    ) -> Outcome<Step<Entry>> {
        if patience == Patience::Brief && self.reader.times().created_known(id).is_none() {
            return Ok(Step::Blocks);
        }
        let mtime_ns = self.time_of_image(id);
        self.entry_with(Node::link(place, target.into(), mtime_ns), Duration::ZERO).map(Step::Done)
    }

    /// `latest`. Its number follows from which images there are, and not from which of them it leads to: a listing tells
    /// the number, and finding out the latter takes reading every manifest.
    fn latest(&self) -> Outcome<Node> {
        let (id, images) = self.catalog.latest().map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let (target, mtime_ns) = (format!("images/{}", id.hex()).into(), self.time_of_image(&id));
        Ok(Node::Link { target, mtime_ns, key: latest_key(images) })
    }

    fn listed_latest(&self) -> Outcome<Entry> {
        let (_, images) = self.catalog.ids_hashed().map_err(logged)?;
        let mtime_ns = self.info.lock().started_ns();
        let node = Node::Link { target: "".into(), mtime_ns, key: latest_key(images) };
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

    pub(super) fn lookup_agent(&self, agent: &str, name: &[u8], patience: Patience) -> Outcome<Step<Entry>> {
        if patience == Patience::Brief {
            return Ok(Step::Blocks);
        }
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let id = self.catalog.agent_image(agent, name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let place = ["agents", agent, name].join("/");
        self.link_to(place.as_bytes(), format!("../../images/{}", id.hex()), &id, patience)
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
