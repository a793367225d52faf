//! A generation's journal: a header, then records in sequence, each with its length, sequence number and checksum.
//!
//! ```text
//! crc32c u32 │ length of the payload u32 │ sequence number u64 │ kind u8 │ payload
//! ```
//! Little-endian. The checksum covers the generation's name, the record's offset in the journal, and everything
//! after the checksum. A file's content therefore never passes for a record.

mod frame;
mod gaps;
mod header;
mod writer;

pub(super) use frame::{Frame, frame_at, out_of_place, sound_behind};
pub(super) use gaps::gaps_of;
pub(super) use header::{HEADER, header, refuse_header};
pub(super) use writer::Writer;
