//! Typed layers of an image: pure codecs between bytes and values.
//!
//! No codec touches a file, and arbitrary bytes give a [`FormatError`], never a panic. Every codec keeps the
//! keys it does not know, so that reading and writing back loses nothing.

pub mod acl;
pub mod cache;
pub mod continuing;
pub mod effects;
pub mod env;
mod error;
pub mod model;
pub mod procs;
pub mod trace;
pub mod world;
pub mod xattrs;

pub mod ignore;
mod json;
#[cfg(test)]
mod robustness;

pub use error::FormatError;
