//! Finds gaps in journals.

use std::io;
use std::os::unix::fs::FileExt;

use super::frame::FRAME;
use super::header::HEADER;
use crate::fork::disk::Generation;

/// Bytes of a journal that are looked at together.
const WINDOW: usize = 64 << 10;

/// Counts record numbers that are missing or out of order in a generation's journal.
pub(in crate::fork) fn gaps_of(generation: &Generation) -> io::Result<u32> {
    let journal = generation.journal()?;
    let mut window = vec![0; WINDOW];
    let (mut start, mut filled) = (0, 0);
    let (mut at, mut next, mut gaps) = (HEADER as u64, 1_u64, 0_u64);
    let written = generation.written();
    loop {
        if written.is_some_and(|(_, end)| at >= end) {
            break;
        }
        if at < start || at + FRAME as u64 > start + filled as u64 {
            (start, filled) = (at, read_full(&journal, &mut window, at)?);
        }
        let Some(frame) = window[..filled].get((at - start) as usize..).and_then(|rest| rest.get(..FRAME))
        else {
            break;
        };
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]))
        };
        let seq = word(8) | word(12) << 32;
        if seq != next {
            // Each skipped number counts as one gap; a repeated number also counts as one.
            gaps += seq.checked_sub(next).map_or(1, |missing| missing.max(1));
        }
        next = seq.saturating_add(1);
        at += FRAME as u64 + word(4);
    }
    if let Some((seq, _)) = written {
        gaps += seq.abs_diff(next);
    }
    Ok(u32::try_from(gaps).unwrap_or(u32::MAX))
}

fn read_full(file: &std::fs::File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
