//! The way to the root of the mount that a connection serves.

use std::fs::File;
use std::sync::Arc;

/// Opens the root of the mount that a connection serves. An error says in words why the mount cannot be reached.
pub type OpenRoot = Arc<dyn Fn() -> Result<File, String> + Send + Sync>;
