//! The mount's own folders: `/`, `images/`, `agents/`, and the link `latest`.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Attr, Entry, FOREVER, Look};
use super::attempt::{Attempt, OnDisk, Stop, logged, may_wait};
use super::catalog::Catalog;
use super::image_links::{IMAGE_TTL, ImageLinks};
use super::key::{Ino, hash_bytes, mix};
use super::node::{BuiltinDir, ImageDir, MARKER, Node};
use super::nodes::Nodes;
use super::readdir::{DirEntry, Emit, cookies, id_cookie, list_changing};
use crate::digest::Digest;
use crate::error::{ErrorKind, Posix};
use crate::images::ImageReader;
use crate::layers::world::Kind;
use crate::store::Home;

/// Names that exist or can exist in `/`.
const IN_ROOT: [&str; 8] = ["images", "tags", "agents", "forks", "work", ".pfimg", "latest", MARKER];

/// Whether a name can never exist in one of the mount's own folders, so that the kernel may cache its absence. Tools look for
/// `.git`, `.ignore` or `Cargo.toml` in every folder above the one that they work in.
pub(super) fn never_there(dir: BuiltinDir, name: &str) -> bool {
    match dir {
        BuiltinDir::Root => !IN_ROOT.contains(&name),
        // Names of images, tags and forks never begin with a dot; in the name of an agent's folder it is escaped.
        _ => name.starts_with('.'),
    }
}

/// The root of the mount, and its folders of images.
pub(super) struct RootDir {
    nodes: Arc<Nodes>,
    catalog: Arc<Catalog>,
    links: Arc<ImageLinks>,
    images: Arc<ImageReader>,
    home: Arc<Home>,
    store: OnDisk,
}

impl RootDir {
    pub(super) fn new(
        nodes: Arc<Nodes>,
        catalog: Arc<Catalog>,
        links: Arc<ImageLinks>,
        images: Arc<ImageReader>,
        home: Arc<Home>,
        store: OnDisk,
    ) -> Self {
        Self { nodes, catalog, links, images, home, store }
    }

    /// Finds a name in `/`.
    pub(super) fn lookup(&self, name: &str, look: Look) -> Attempt<Entry> {
        let builtin = |dir| self.nodes.own_entry(self.nodes.keyed(Node::Builtin(dir)), FOREVER);
        match name {
            "images" => builtin(BuiltinDir::Images),
            "tags" => builtin(BuiltinDir::Tags),
            "agents" => builtin(BuiltinDir::Agents),
            "forks" => builtin(BuiltinDir::Forks),
            "work" => builtin(BuiltinDir::Work),
            ".pfimg" => builtin(BuiltinDir::Control),
            MARKER => self.nodes.own_entry(self.nodes.keyed(Node::Marker), FOREVER),
            _ if look == Look::Listing => self.listed_latest(),
            // Finding the newest image may take reading every manifest.
            _ => self.nodes.own_entry(self.nodes.keyed(self.latest()?), IMAGE_TTL),
        }
    }

    /// Finds a name in `agents/`.
    pub(super) fn lookup_agent(&self, name: &str) -> Attempt<Entry> {
        // Finding the agent may take reading every manifest.
        may_wait()?;
        let name = self.catalog.agent_name(name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let attr = self.agent_attr(&name);
        self.nodes.entry(self.nodes.keyed(Node::Agent(name)), attr, Duration::ZERO)
    }

    /// Attributes of an agent's folder, except its number.
    pub(super) fn agent_attr(&self, agent: &str) -> Attr {
        let newest = self.catalog.newest_of(agent);
        self.nodes.folder(2, newest.unwrap_or_else(|| self.nodes.started_ns()))
    }

    /// Finds an image in an agent's folder.
    pub(super) fn lookup_of_agent(&self, agent: &str, name: &[u8]) -> Attempt<Entry> {
        may_wait()?;
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let id = self.catalog.agent_image(agent, name).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let place = ["agents", agent, name].join("/");
        self.links.entry(place.as_bytes(), format!("../../images/{}", id.hex()), &id, Duration::ZERO)
    }

    /// Finds a name in `images/`.
    pub(super) fn lookup_image(&self, name: &str, look: Look) -> Attempt<Entry> {
        if let Ok(id) = Digest::from_hex(name) {
            return self.image_entry(&id, look);
        }
        // Prefixes resolve as links, unlisted.
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let found = self.store.at(may_wait()?).images().with_prefix(digits).map_err(logged)?;
        match found.as_slice() {
            [id] => {
                let place = ["images", name].concat();
                self.links.entry(place.as_bytes(), id.hex(), id, IMAGE_TTL)
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Looks up an image's folder. A listing only checks on disk that its marker exists; the kernel asks for its time later.
    fn image_entry(&self, id: &Digest, look: Look) -> Attempt<Entry> {
        match self.store.here() {
            Ok(store) if !store.images().contains(id) => {
                self.home.require().map_err(|error| error.kind())?;
                return Err(ErrorKind::NotFound.into());
            }
            Ok(_) => {}
            // An event loop uses the watcher's list, which is updated five times a second.
            Err(_) if self.home.check().is_ok() && self.catalog.listed(id) => {}
            Err(_) => return Err(Stop::Waits),
        }
        let node = Node::ImageDir { image: self.nodes.image_number(id), dir: ImageDir::Top };
        let keyed = self.nodes.keyed(node);
        if look == Look::Listing && self.images.times().created_known(id).is_none() {
            return self.nodes.entry_to_be_asked(keyed, Kind::Dir, 0o755, IMAGE_TTL);
        }
        let attr = self.nodes.folder(ImageDir::Top.links(), self.links.time_of_image(id)?);
        self.nodes.entry(keyed, attr, IMAGE_TTL)
    }

    /// Returns `latest`. Its number is derived from the list of images, not from its target: a listing needs the number, and
    /// finding the target takes reading every manifest.
    fn latest(&self) -> Attempt<Node> {
        may_wait()?;
        let (id, images) = self.catalog.latest().map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let (target, mtime_ns) = (format!("images/{}", id.hex()).into(), self.links.time_of_image(&id)?);
        Ok(Node::Link { target, mtime_ns, key: latest_key(images) })
    }

    fn listed_latest(&self) -> Attempt<Entry> {
        may_wait()?;
        let (_, images) = self.catalog.ids_hashed().map_err(logged)?;
        let mtime_ns = self.nodes.started_ns();
        let node = Node::Link { target: "".into(), mtime_ns, key: latest_key(images) };
        // Lifetimes of zero: the kernel asks again for the attributes.
        let entry = self.nodes.own_entry(self.nodes.keyed(node), Duration::ZERO)?;
        Ok(Entry { attr_ttl: Duration::ZERO, ..entry })
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

    /// Lists `/`.
    pub(super) fn list(&self, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let names = [
            ("agents", Kind::Dir),
            ("forks", Kind::Dir),
            ("images", Kind::Dir),
            ("latest", Kind::Symlink),
            ("tags", Kind::Dir),
            ("work", Kind::Dir),
        ];
        // If the store is missing, the rest of the mount can still be listed.
        let empty = self.catalog.ids().map_or_else(|error| Err(logged(error)), |ids| Ok(ids.is_empty()));
        let empty = empty.or_else(|stop| self.home.check().map_or(Ok(true), |()| Err(stop)))?;
        let shown = names.into_iter().filter(|(name, _)| !(empty && *name == "latest"));
        list_changing(shown, cookie, self.nodes.is_narrow(), emit);
        Ok(())
    }

    /// Lists `images/`.
    pub(super) fn list_images(&self, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let (ids, narrow) = (self.catalog.ids().map_err(logged)?, self.nodes.is_narrow());
        // Images are sorted by id, and the cookie is the first bits of the id, so it says where to continue. Short cookies of
        // two images may be equal, so all images are gone through.
        let start = if narrow { 0 } else { ids.partition_point(|id| id_cookie(id) <= cookie) };
        let hashes = ids[start..].iter().map(id_cookie);
        for (id, at) in ids[start..].iter().zip(cookies(hashes, narrow)).filter(|(_, at)| *at > cookie) {
            let (hex, kind) = (id.hex(), Kind::Dir);
            if !emit(DirEntry { ino: at, cookie: at, kind, name: hex.as_bytes(), entry: None }) {
                break;
            }
        }
        Ok(())
    }

    /// Lists `agents/`.
    pub(super) fn list_agents(&self, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let names = self.catalog.agents().map_err(logged)?;
        list_changing(names.iter().map(|name| (&**name, Kind::Dir)), cookie, self.nodes.is_narrow(), emit);
        Ok(())
    }

    /// Lists an agent's folder.
    pub(super) fn list_agent(&self, agent: &str, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let images = self.catalog.agent(agent).map_err(logged)?.ok_or(ErrorKind::NotFound)?;
        let names = images.keys().map(|name| (name.as_str(), Kind::Symlink));
        list_changing(names, cookie, self.nodes.is_narrow(), emit);
        Ok(())
    }

    /// Lists the folders whose cached listings are outdated after images were added or removed.
    pub(super) fn listings(&self) -> Vec<Ino> {
        self.catalog.listings(&self.nodes)
    }
}

fn latest_key(images: u64) -> u64 {
    mix(hash_bytes(b"latest"), images)
}
