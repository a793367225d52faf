//! Finds the path of a call, for the audit log. Waits neither for the disk nor for other requests.

use super::image_dirs::ImageDirs;
use super::key::Ino;
use super::node::{Node, Origin, Place};
use super::nodes::Nodes;

/// The target of a call: a file, or a name in a folder.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    File(Ino),
    Name(Ino, &'a [u8]),
}

/// Returns the path of a call below the mountpoint. Returns none for a file whose path can only be read from disk.
pub(super) fn path(nodes: &Nodes, images: &ImageDirs, at: At<'_>) -> Option<String> {
    let (ino, name) = match at {
        At::File(ino) => (ino, None),
        At::Name(folder, name) => (folder, Some(name)),
    };
    let mut path = path_of(nodes, images, &nodes.get(ino).ok()?)?;
    if let Some(name) = name {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    Some(path.escape_ascii().to_string())
}

fn path_of(nodes: &Nodes, images: &ImageDirs, node: &Node) -> Option<Vec<u8>> {
    let in_image = |image, inner: &[u8]| {
        let folder = format!("images/{}", nodes.image_id(image).hex());
        if inner.is_empty() { folder.into_bytes() } else { [folder.as_bytes(), b"/", inner].concat() }
    };
    Some(match node {
        Node::Builtin(dir) => dir.path().into(),
        Node::Agent(agent) => format!("agents/{agent}").into(),
        Node::ImageDir { image, dir } => in_image(*image, dir.path().as_bytes()),
        Node::Dir { image, node } | Node::Special { image, node } => {
            let origin = Origin { image: *image, place: Place::World(*node) };
            in_image(*image, &images.path_known(origin)?)
        }
        Node::File { origin, .. } => in_image(origin.image, &images.path_known(*origin)?),
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
