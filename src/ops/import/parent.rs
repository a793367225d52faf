//! What an imported image comes from.

use crate::digest::Digest;
use crate::error::Result;
use crate::store::{Image, Store};

/// What an imported image comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// The image that the last import of the folder into this store made, if it is still there. So imports form a line, along which
    /// what did not change is seen as the same.
    #[default]
    Last,
    /// This image.
    Image(Digest),
    /// Nothing.
    None,
}

impl Parent {
    /// The image, where the last import made `last`.
    pub(super) fn image(self, store: &Store, last: Option<Digest>) -> Result<Option<Image>> {
        Ok(match (self, last) {
            (Self::Image(id), _) => Some(store.image(&id)?),
            // One that is gone or damaged is nothing to come from.
            (Self::Last, Some(id)) => store.image(&id).ok(),
            (Self::Last, None) | (Self::None, _) => None,
        })
    }
}
