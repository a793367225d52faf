//! Seals a fork: its present state becomes an image that `pf` accepts, and the fork then has it as its base.
//!
//! The fork is frozen by taking a pointer, and its writers continue. Changed content is hashed and
//! compressed; everything else is taken from the base image. Blobs come first, then the image's marker, then
//! the fork's head. If the program ends in between, the fork is unchanged or sealed, and no image lacks a blob.

mod about;
mod content;
mod entries;
mod ignored;
mod image;
mod layers;
mod ledger;
mod restore;
mod sealer;
mod sealing;
mod text;
mod times;
mod tree;
mod witness;

pub use sealer::{Sealed, Sealer, Tag};
pub(crate) use witness::{LEFT, readable, see_manifest};
