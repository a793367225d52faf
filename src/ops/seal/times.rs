//! The moment of a new image.

use crate::digest::Digest;
use crate::error::Result;
use crate::fork::BaseReader;
use crate::images::times::is_fixed_point;
use crate::store::Manifest;

/// A seal does not end a line of fewer images behind it.
const SHORT_LINE: u32 = 64;

/// Chooses the id of a new image. An image that ended the line of times would show its time for every
/// file without a recorded one, and so would the fork based on it. So, as long as the line is short, the
/// image's moment is moved by some nanoseconds until it does not end the line.
pub(super) fn name(reader: &dyn BaseReader, manifest: &mut Manifest) -> Result<Digest> {
    let short = || manifest.parents.first().is_some_and(|parent| reader.line_behind(parent) < SHORT_LINE);
    let mut id = Digest::of(&manifest.to_bytes()?);
    if is_fixed_point(&id) && short() {
        while is_fixed_point(&id) {
            manifest.created_at += chrono::TimeDelta::nanoseconds(1);
            id = Digest::of(&manifest.to_bytes()?);
        }
    }
    Ok(id)
}
