//! The sources of the bytes of an image's paths.

use std::io::{self, Read as _};
use std::sync::Arc;

use crate::mount::reach::Top;

/// The source of a path's bytes, if it is not the same path of the directory.
#[derive(Debug)]
pub(super) enum Source {
    /// A path below another directory.
    Elsewhere(Arc<Top>, Vec<u8>),
    /// Bytes that the import made.
    Made(Vec<u8>),
}

/// Returns the directory and the path below it from which `path` of the image is read.
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

/// Returns a path of the directory as text.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
