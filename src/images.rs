//! Data about images, kept in memory between requests, each kind within a budget.
//!
//! [`ImageReader`] reads manifests, trees, pages and ledgers. The fork engine reads the base images of forks
//! through it ([`crate::fork::BaseReader`]), and a mount shows images through it.

mod base;
mod ledgers;
mod pages;
mod reader;
pub mod times;
mod trees;

use std::sync::Arc;

pub use pages::Pages;
pub use reader::{ImageError, ImageReader};

use crate::cache::Cache;
use crate::fork::BaseReader;
use crate::store::Store;

/// Returns the reader of forks' base images, for programs that change forks without a mount.
pub fn fork_reader(store: Arc<Store>, cache: Arc<Cache>) -> Arc<dyn BaseReader> {
    Arc::new(ImageReader::new(store, cache, 0, false))
}
