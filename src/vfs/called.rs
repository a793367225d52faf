//! Finds the path of a call, for the audit log. Waits neither for the disk nor for other requests.

use super::Vfs;
use super::inode::{Fixed, ImageDir, Ino, Node, Place, Seen};
use crate::tree::NodeId;

/// The target of a call: a file, or a name in a folder.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    File(Ino),
    Name(Ino, &'a [u8]),
}

impl Vfs {
    /// Returns the path of a call below the mountpoint. Returns none for a file whose path can only be read from disk.
    pub(super) fn called(&self, at: At<'_>) -> Option<String> {
        let (ino, name) = match at {
            At::File(ino) => (ino, None),
            At::Name(folder, name) => (folder, Some(name)),
        };
        let mut path = self.path_known(&self.inodes.get(ino)?)?;
        if let Some(name) = name {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Some(path.escape_ascii().to_string())
    }

    fn path_known(&self, node: &Node) -> Option<Vec<u8>> {
        let in_image = |image, inner: &[u8]| {
            let folder = format!("images/{}", self.catalog.id(image).hex());
            if inner.is_empty() { folder.into_bytes() } else { [folder.as_bytes(), b"/", inner].concat() }
        };
        Some(match node {
            Node::Fixed(fixed) => fixed_path(*fixed).into(),
            Node::Agent(agent) => format!("agents/{agent}").into(),
            Node::ImageDir { image, dir } => in_image(*image, image_dir_path(*dir).as_bytes()),
            Node::Dir { image, node } | Node::Special { image, node } => {
                in_image(*image, &self.world_path(*image, *node)?)
            }
            Node::File { seen, .. } => {
                let Seen { image, place } = *seen;
                let inner = match place {
                    Place::World(node) => self.world_path(image, node)?,
                    Place::Layer(_) | Place::Page { .. } => self.path_of_bytes(*seen),
                };
                in_image(image, &inner)
            }
            Node::Forked { mounted, ino } => {
                let name = mounted.fork.name_if_free()?;
                let inner = mounted.fork.path(*ino).unwrap_or_default();
                let fork = format!("forks/{name}");
                if inner.is_empty() { fork.into() } else { [fork.as_bytes(), b"/", &inner[..]].concat() }
            }
            Node::Snap { mounted } => format!("forks/{}/.snap", mounted.fork.name_if_free()?).into(),
            _ => return None,
        })
    }

    /// The path of a node of an image's tree, if the tree is in memory.
    fn world_path(&self, image: u32, node: NodeId) -> Option<Vec<u8>> {
        let tree = self.reader.times().tree_known(&self.catalog.id(image))?;
        let path = self.trees.peek(&tree)?.path(node);
        Some(if path.is_empty() { b"world/fs".to_vec() } else { [b"world/fs/", &path[..]].concat() })
    }
}

const fn fixed_path(fixed: Fixed) -> &'static [u8] {
    match fixed {
        Fixed::Root => b"",
        Fixed::Images => b"images",
        Fixed::Tags => b"tags",
        Fixed::Agents => b"agents",
        Fixed::Control => b".pfimg",
        Fixed::Forks => b"forks",
        Fixed::Work => b"work",
    }
}

const fn image_dir_path(dir: ImageDir) -> &'static str {
    match dir {
        ImageDir::Top => "",
        ImageDir::Model => "model",
        ImageDir::Cache => "cache",
        ImageDir::Pages => "cache/pages",
        ImageDir::World => "world",
        ImageDir::Effects => "effects",
        ImageDir::Trace => "trace",
        ImageDir::Parents => "parents",
    }
}
