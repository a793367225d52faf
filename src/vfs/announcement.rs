//! A name to announce to programs that watch folders.

use std::sync::Arc;

use super::invalidation::Invalidation;
use super::moved_paths::MovedPaths;
use super::node::BuiltinDir;
use crate::digest::Digest;
use crate::fork;
use crate::layers::world::Kind;

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was removed; this was its kind.
    Gone(Kind),
    /// It was added; this is its kind.
    Made(Kind),
}

/// A name that was added or removed without the kernel.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The path of the folder, from the mountpoint.
    pub folder: Vec<u8>,
    /// The name in it.
    pub name: Vec<u8>,
    /// What happened to it.
    pub what: What,
    /// The folder's number, if it is in a fork.
    pub(super) of_fork: Option<fork::Ino>,
    /// The restored paths that this one belongs to.
    pub(super) paths: Option<Arc<MovedPaths>>,
    /// The invalidation to use if the name cannot be announced.
    pub instead: Option<Invalidation>,
}

impl Announcement {
    /// Announces a name in a builtin folder.
    pub(super) fn of(folder: BuiltinDir, name: impl Into<Vec<u8>>, what: What) -> Self {
        let (path, name): (&[u8], Vec<u8>) = (folder.path(), name.into());
        let instead = Some(Invalidation::Name(folder.ino(), name.clone()));
        Self { folder: path.to_vec(), name, what, of_fork: None, paths: None, instead }
    }
}

/// Returns the announcements for removed and added images. `all` is the number of images now.
pub(super) fn of_images(removed: &[Digest], added: &[Digest], all: usize) -> Vec<Announcement> {
    // Removed images are not announced: an image may be back by then, and the call would take the name from programs that
    // use it.
    let made = |id: &Digest| Announcement::of(BuiltinDir::Images, id.hex(), What::Made(Kind::Dir));
    let mut all_of_them: Vec<_> = added.iter().map(made).collect();
    if !added.is_empty() || !removed.is_empty() {
        // `latest` has another inode when the images change; see `RootDir::latest`.
        if all + removed.len() > added.len() {
            all_of_them.push(Announcement::of(BuiltinDir::Root, "latest", What::Gone(Kind::Symlink)));
        }
        if all > 0 {
            all_of_them.push(Announcement::of(BuiltinDir::Root, "latest", What::Made(Kind::Symlink)));
        }
    }
    all_of_them
}
