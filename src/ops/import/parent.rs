//! What an imported image comes from.

use crate::digest::Digest;
use crate::error::Result;
use crate::store::{Image, Store};

/// Longest line that is followed, in images.
const LINE: usize = 1000;

/// What an imported image comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// The image that the last import of the folder into this store made, if it is still there. So imports form a line, along which
    /// what did not change is seen as the same.
    #[default]
    Last,
    /// The newest image of a line: this one, or the last import of the folder if that comes from this one. Where this one is gone,
    /// the last import of the folder.
    Line(Digest),
    /// This image.
    Image(Digest),
    /// Nothing.
    None,
}

impl Parent {
    /// The image, where the last import made `last`.
    pub(super) fn image(self, store: &Store, last: Option<Digest>) -> Result<Option<Image>> {
        // One that is gone or damaged is nothing to come from.
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

/// Whether an image is `old`, or comes from it by first parents.
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
