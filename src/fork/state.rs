//! A fork's tree at one moment: persistent maps over the tree of its base. A clone takes pointers.

mod apply;
mod base;
mod edit;
mod initial;
mod list;
mod tree;

pub(super) use apply::{Applied, apply, change};
pub(super) use base::Base;
pub(super) use initial::base_of;
pub use list::DirEntry;
pub(super) use tree::{At, State};
