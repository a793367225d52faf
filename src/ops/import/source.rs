//! The sources of the bytes of an image's paths.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use super::walk::Found;
use crate::mount::reach::Top;

/// The source of a path's bytes, if it is not the same path of the folder.
#[derive(Debug)]
pub(super) enum Source {
    /// A path below another folder.
    Elsewhere(Arc<Top>, Vec<u8>),
    /// Bytes that the import made.
    Made(Vec<u8>),
}

impl Found {
    /// Returns the folder and the path below it to read from. Bytes that the import made have an empty path.
    pub(super) fn place<'a>(&'a self, top: &'a Top) -> (&'a Top, &'a [u8]) {
        place(self.source.as_deref(), top, &self.path)
    }

    /// Returns its path on the disk.
    pub(super) fn origin(&self, top: &Top) -> PathBuf {
        let (top, path) = self.place(top);
        top.shown(path)
    }

    /// Reads its bytes. Returns none if there are more than `most`, or it cannot be read.
    pub(super) fn text(&self, top: &Top, most: u64) -> Option<Vec<u8>> {
        if let Some(Source::Made(bytes)) = self.source.as_deref() {
            return Some(bytes.clone());
        }
        let (top, path) = self.place(top);
        read(top, path, most).ok().flatten()
    }

    /// Replaces its bytes.
    pub(super) fn make(&mut self, bytes: Vec<u8>) {
        self.meta.stamp.size = bytes.len() as u64;
        self.meta.links = 1;
        self.source = Some(Arc::new(Source::Made(bytes)));
    }
}

/// Returns the folder and the path below it from which `path` of the image is read.
pub(super) fn place<'a>(source: Option<&'a Source>, top: &'a Top, path: &'a [u8]) -> (&'a Top, &'a [u8]) {
    match source {
        Some(Source::Elsewhere(top, path)) => (top, path),
        _ => (top, path),
    }
}

/// Reads a file's bytes. Returns none if there are more than `most`.
pub(super) fn read(top: &Top, path: &[u8], most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    top.file(path)?.take(most + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= most).then_some(text))
}
