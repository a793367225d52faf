//! Chooses the parent of an imported image.

use crate::digest::Digest;
use crate::error::Result;
use crate::store::{Image, Store};

/// The longest line of images that is followed.
const LINE: usize = 1000;

/// The parent of an imported image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// The image that the last import of the directory into this store made, if it still exists. So imports form a line, along
    /// which unchanged files count as the same.
    #[default]
    Last,
    /// The newest image of a line: this image, or the last import of the directory if it descends from this image. If this image no
    /// longer exists, the last import of the directory.
    Line(Digest),
    /// This image.
    Image(Digest),
    /// No parent.
    None,
}

impl Parent {
    /// Returns the parent's image, given the image `last` of the last import.
    pub(super) fn image(self, store: &Store, last: Option<Digest>) -> Result<Option<Image>> {
        // A missing or damaged image cannot be a parent.
        let found = |id: Option<Digest>| id.and_then(|id| store.image(&id).ok());
        Ok(match self {
            Self::Image(id) => Some(store.image(&id)?),
            Self::Last => found(last),
            Self::Line(line) => match (found(last), found(Some(line))) {
                (Some(last), Some(_)) if comes_from(store, last.id, line) => Some(last),
                (last, None) => last,
                (_, line) => line,
            },
            Self::None => None,
        })
    }
}

/// Whether an image is `old`, or descends from it by first parents.
pub(super) fn comes_from(store: &Store, image: Digest, old: Digest) -> bool {
    let mut at = image;
    for _ in 0..LINE {
        if at == old {
            return true;
        }
        let parent = store.image(&at).ok().and_then(|image| image.manifest.parents.first().copied());
        let Some(parent) = parent else { return false };
        at = parent;
    }
    false
}
