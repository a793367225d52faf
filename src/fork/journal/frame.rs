//! Where records lie in a journal.

use crate::fork::disk::GenId;

/// Bytes in front of a record's payload.
pub(super) const FRAME: usize = 17;

/// Longest payload in bytes. An operation carries at most 64 KiB of content, two names and a few pieces.
pub(super) const MAX_PAYLOAD: u32 = 64 << 20;

fn checksum(id: GenId, offset: u64, rest: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&id.0.to_be_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, rest)
}

/// Appends record `seq` to `out`, for `offset` in the journal. `put` appends its payload.
/// Returns the payload's length, which must be at most [`MAX_PAYLOAD`].
pub(super) fn put_frame(
    out: &mut Vec<u8>,
    id: GenId,
    offset: u64,
    (seq, kind): (u64, u8),
    put: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.push(kind);
    put(out);
    let len = out.len() - start - FRAME;
    out[start + 4..start + 8].copy_from_slice(&(len as u32).to_le_bytes());
    let crc = checksum(id, offset, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    len
}

/// A record in a journal, not yet decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fork) struct Frame<'a> {
    pub(in crate::fork) kind: u8,
    pub(in crate::fork) seq: u64,
    pub(in crate::fork) payload: &'a [u8],
    /// Where the payload starts in the journal.
    pub(in crate::fork) start: u64,
    /// Where the next record starts.
    pub(in crate::fork) end: u64,
}

/// The record at `offset`, if there is one whose checksum holds.
pub(in crate::fork) fn frame_at(journal: &[u8], id: GenId, offset: usize) -> Option<Frame<'_>> {
    let rest = journal.get(offset..)?;
    let head = rest.get(..FRAME)?;
    let crc = u32::from_le_bytes(head[..4].try_into().ok()?);
    let len = u32::from_le_bytes(head[4..8].try_into().ok()?);
    if len > MAX_PAYLOAD {
        return None;
    }
    let whole = rest.get(..FRAME + len as usize)?;
    (checksum(id, offset as u64, &whole[4..]) == crc).then(|| Frame {
        kind: head[16],
        seq: u64::from_le_bytes(head[8..16].try_into().unwrap_or_default()),
        payload: &whole[FRAME..],
        start: (offset + FRAME) as u64,
        end: (offset + whole.len()) as u64,
    })
}

/// Returns where a sound record with a number of at least `seq` starts after `offset`, if any does.
pub(in crate::fork) fn sound_behind(journal: &[u8], id: GenId, offset: usize, seq: u64) -> Option<u64> {
    (offset..journal.len().saturating_sub(FRAME - 1)).find_map(|at| {
        // Most offsets are ruled out by the number alone.
        let number = u64::from_le_bytes(journal[at + 8..at + 16].try_into().ok()?);
        (number >= seq && number - seq <= journal.len() as u64)
            .then(|| frame_at(journal, id, at))
            .flatten()
            .map(|_| at as u64)
    })
}

/// Returns the number of a later record that lies whole at `offset`, where record `seq` should be. The records between them
/// were removed. An unfinished operation looks different: it has number `seq` or none.
pub(in crate::fork) fn out_of_place(journal: &[u8], offset: usize, seq: u64) -> Option<u64> {
    let rest = journal.get(offset..)?;
    let len = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?);
    let number = u64::from_le_bytes(rest.get(8..16)?.try_into().ok()?);
    rest.get(..FRAME + len as usize)?;
    (number > seq && number - seq <= journal.len() as u64).then_some(number)
}
