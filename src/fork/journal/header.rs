//! The first bytes of a journal.

use crate::fork::disk::GenId;

/// Length in bytes of a journal's header: magic, version, the generation's name, CRC-32C of those.
pub(in crate::fork) const HEADER: usize = 32;

const MAGIC: &[u8; 8] = b"pfimgjnl";

/// Version of the journal's format.
const VERSION: u32 = 1;

/// Writes a journal's header.
pub(in crate::fork) fn header(id: GenId) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&id.0.to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

/// Says why `bytes` are not the header of a journal of generation `id`. Returns nothing if they are.
pub(in crate::fork) fn refuse_header(bytes: &[u8], id: GenId) -> Option<String> {
    let Some(head) = bytes.get(..HEADER) else { return Some("the journal's header is cut off".into()) };
    if head[..8] != MAGIC[..] {
        return Some("the file is not a journal".into());
    }
    if head == header(id) {
        return None;
    }
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    Some(if version != VERSION && head[12..28] == id.0.to_be_bytes() {
        format!("the journal has version {version}, this program reads version {VERSION}")
    } else {
        "the journal's header is damaged or another generation's".into()
    })
}
