//! A document under construction: stretches of another document, and new bytes between them.
//!
//! It can be hashed before its bytes are contiguous.

use std::io;

use sha2::Digest as _;

use crate::digest::Digest;

/// A stretch that a document shares with the one it is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopiedRange {
    /// Where it starts in the new document.
    pub(super) at: usize,
    /// Where it starts in the old one.
    pub(super) from: usize,
    /// Its length in bytes.
    pub(super) len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// A number of new bytes.
    New(usize),
    /// A stretch of the other document.
    Old { from: usize, len: usize },
}

/// A document under construction.
#[derive(Debug, Default)]
pub struct SplicedDocument<'b> {
    base: &'b [u8],
    new: Vec<u8>,
    parts: Vec<Part>,
    len: usize,
}

impl<'b> SplicedDocument<'b> {
    /// Makes an empty document; stretches are taken from `base`.
    pub fn of(base: &'b [u8]) -> Self {
        Self { base, ..Self::default() }
    }

    /// Bytes of the document so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.new.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.parts.last_mut() {
            Some(Part::New(len)) => *len += bytes.len(),
            _ => self.parts.push(Part::New(bytes.len())),
        }
    }

    /// Adds a stretch of the other document, which must have it.
    pub fn take(&mut self, from: usize, len: usize) {
        self.len += len;
        match self.parts.last_mut() {
            Some(Part::Old { from: start, len: before }) if *start + *before == from => *before += len,
            _ => self.parts.push(Part::Old { from, len }),
        }
    }

    /// The document in pieces.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut used = 0;
        self.parts.iter().map(move |part| match *part {
            Part::New(len) => {
                used += len;
                &self.new[used - len..used]
            }
            Part::Old { from, len } => &self.base[from..from + len],
        })
    }

    /// The document.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// The digest of [`SplicedDocument::bytes`].
    pub fn digest(&self) -> Digest {
        let mut hasher = sha2::Sha256::new();
        self.pieces().for_each(|piece| hasher.update(piece));
        Digest::from_bytes(hasher.finalize().into())
    }

    /// Returns the stretches of the other document that are in the same order there and here; a stretch out
    /// of order counts as new bytes.
    pub(super) fn taken(&self) -> Vec<CopiedRange> {
        let (mut at, mut end) = (0, 0);
        let mut taken = Vec::new();
        for part in &self.parts {
            match *part {
                Part::New(len) => at += len,
                Part::Old { from, len } => {
                    if from >= end {
                        taken.push(CopiedRange { at, from, len });
                        end = from + len;
                    }
                    at += len;
                }
            }
        }
        taken
    }
}

impl io::Write for SplicedDocument<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_hashes_to_what_its_bytes_do() {
        let base = b"one two three four";
        let mut draft = SplicedDocument::of(base);
        assert!(draft.is_empty() && draft.bytes().is_empty());
        assert_eq!(draft.digest(), Digest::of(b""));
        for (from, len, new) in [(0, 4, "2 "), (8, 3, ""), (11, 2, "+"), (0, 3, "!")] {
            draft.take(from, len);
            draft.put(new.as_bytes());
        }
        assert_eq!(draft.bytes(), b"one 2 three+one!");
        assert_eq!((draft.len(), draft.digest()), (16, Digest::of(b"one 2 three+one!")));
        // The last stretch is out of order.
        let stretch = |at, from, len| CopiedRange { at, from, len };
        assert_eq!(draft.taken(), [stretch(0, 0, 4), stretch(6, 8, 5)]);
    }
}
