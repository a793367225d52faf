//! The mount's own folders: `/`, `images/`, `tags/`, `agents/`.

use std::time::Duration;

use super::attempt::{logged, may_wait};
use super::inode::{Fixed, ImageDir, Node, hash_bytes, mix};
use super::{Attempt, Entry, Look, Stop, Vfs};
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::layers::world::Kind;

/// How long the kernel may cache the name of an image or of a link to one. The watcher invalidates removed images, but it
/// would miss an image that is added and removed between two of its looks. Another program may also move a tag.
pub(super) const IMAGE_TTL: Duration = Duration::from_millis(500);

/// How long the kernel may cache a link in `work/`. An outdated link does no harm: it leads to `forks/NAME`, which is
/// invalidated.
const WORK_TTL: Duration = Duration::from_secs(1);

/// Names that exist or can exist in `/`.
const IN_ROOT: [&str; 8] = ["images", "tags", "agents", "forks", "work", ".pfimg", "latest", super::MARKER];

/// Whether a name can never exist in one of the mount's own folders, so that the kernel may cache its absence. Tools look for
/// `.git`, `.ignore` or `Cargo.toml` in every folder above the one that they work in.
fn never_there(dir: Fixed, name: &str) -> bool {
    match dir {
        Fixed::Root => !IN_ROOT.contains(&name),
        // Names of images, tags and forks never begin with a dot; in the name of an agent's folder it is escaped.
        _ => name.starts_with('.'),
    }
}

impl Vfs {
    pub(super) fn lookup_fixed(&self, dir: Fixed, name: &[u8], look: Look) -> Attempt<Entry> {
        // All names in these folders are UTF-8.
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        if never_there(dir, name) {
            return Ok(Entry::ABSENT);
        }
        match dir {
            Fixed::Root => match name {
                "images" => self.entry(Node::Fixed(Fixed::Images)),
                "tags" => self.entry(Node::Fixed(Fixed::Tags)),
                "agents" => self.entry(Node::Fixed(Fixed::Agents)),
                "forks" => self.entry(Node::Fixed(Fixed::Forks)),
                "work" => self.entry(Node::Fixed(Fixed::Work)),
                ".pfimg" => self.entry(Node::Fixed(Fixed::Control)),
                super::MARKER => self.entry(Node::Marker),
                _ if look == Look::Listing => self.listed_latest(),
                // Finding the newest image may take reading every manifest.
                _ => self.entry_with(self.latest()?, IMAGE_TTL),
            },
            Fixed::Images => self.lookup_image(name, look),
            Fixed::Tags => self.lookup_tag(name),
            Fixed::Agents => {
                // Finding the agent may take reading every manifest.
                may_wait()?;
                let name = self.catalog.agent_name(name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
                self.entry_with(Node::Agent(name), Duration::ZERO)
            }
            Fixed::Control => self.lookup_control(name),
            Fixed::Forks => self.lookup_fork(name),
            Fixed::Work => {
                let made = self.fork_named(name)?.fork.created_ns();
                let target = format!("../forks/{name}/world/fs").into();
                self.entry_with(Node::link(b"work", target, made), WORK_TTL)
            }
        }
    }

    fn lookup_image(&self, name: &str, look: Look) -> Attempt<Entry> {
        if let Ok(id) = Digest::from_hex(name) {
            return self.image_entry(&id, look);
        }
        // Prefixes resolve as links, unlisted.
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let found = self.store.at(may_wait()?).images().with_prefix(digits).map_err(logged)?;
        match found.as_slice() {
            [id] => {
                let place = ["images", name].concat();
                self.link_to(place.as_bytes(), id.hex(), id, IMAGE_TTL)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Looks up an image's folder. A listing only checks on disk that its marker exists; the kernel asks for its time later.
    fn image_entry(&self, id: &Digest, look: Look) -> Attempt<Entry> {
        match self.store.here() {
            Ok(store) if !store.images().contains(id) => {
                self.catalog.home.require().map_err(|error| error.kind())?;
                return Err(ErrorKind::NotFound.into());
            }
            Ok(_) => {}
            // An event loop uses the watcher's list, which is updated five times a second.
            Err(_) if self.catalog.home.check().is_ok() && self.catalog.listed(id) => {}
            Err(_) => return Err(Stop::Waits),
        }
        let node = Node::ImageDir { image: self.catalog.number(id), dir: ImageDir::Top };
        if look == Look::Listing && self.reader.times().created_known(id).is_none() {
            return self.entry_to_be_asked(self.keyed(node), Kind::Dir, IMAGE_TTL);
        }
        self.entry_with(node, IMAGE_TTL)
    }

    /// Returns a link that the mount shows to an image, with the image's time.
    pub(super) fn link_to(
        &self,
        place: &[u8],
        target: String,
        id: &Digest,
        lifetime: Duration,
    ) -> Attempt<Entry> {
        let mtime_ns = self.time_of_image(id)?;
        self.entry_with(Node::link(place, target.into(), mtime_ns), lifetime)
    }

    /// Returns `latest`. Its number is derived from the list of images, not from its target: a listing needs the number, and
    /// finding the target takes reading every manifest.
    fn latest(&self) -> Attempt<Node> {
        may_wait()?;
        let (id, images) = self.catalog.latest().map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let (target, mtime_ns) = (format!("images/{}", id.hex()).into(), self.time_of_image(&id)?);
        Ok(Node::Link { target, mtime_ns, key: latest_key(images) })
    }

    fn listed_latest(&self) -> Attempt<Entry> {
        may_wait()?;
        let (_, images) = self.catalog.ids_hashed().map_err(logged)?;
        let mtime_ns = self.info.lock().started_ns();
        let node = Node::Link { target: "".into(), mtime_ns, key: latest_key(images) };
        // Lifetimes of zero: the kernel asks again for the attributes.
        self.entry_with(node, Duration::ZERO).map(|entry| Entry { attr_ttl: Duration::ZERO, ..entry })
    }

    /// Finds the target of a `latest` that was only listed.
    pub(super) fn follow_latest(&self, listed: u64) -> Attempt<Node> {
        match self.latest()? {
            node @ Node::Link { key, .. } if key == listed => Ok(node),
            // Images were added or removed since. ESTALE makes the kernel look `latest` up again, so that it does not cache the
            // new target under the old number.
            _ => Err(ErrorKind::Posix(Posix::Stale).into()),
        }
    }

    pub(super) fn lookup_agent(&self, agent: &str, name: &[u8]) -> Attempt<Entry> {
        may_wait()?;
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let id = self.catalog.agent_image(agent, name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let place = ["agents", agent, name].join("/");
        self.link_to(place.as_bytes(), format!("../../images/{}", id.hex()), &id, Duration::ZERO)
    }
}

fn latest_key(images: u64) -> u64 {
    mix(hash_bytes(b"latest"), images)
}
