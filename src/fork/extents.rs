//! The content of a file: stretches of bytes, each in an immutable source or in the file's data file, with
//! holes between them. A hole reads as zeros.

use std::fmt;
use std::io;
use std::sync::Arc;

use imbl::OrdMap;

use super::disk::{DataFile, Generation};
use crate::digest::Digest;

/// Up to this many pieces are kept in a plain list: most files have one or two.
const LISTED: usize = 24;

/// A blob's name and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes, uncompressed.
    pub size: u64,
}

/// The place of bytes.
#[derive(Clone)]
pub enum Src {
    /// In a blob of the store.
    Blob(Arc<BlobRef>),
    /// In a record of a journal.
    Journal(Arc<Generation>),
    /// In a data file.
    Data(Arc<DataFile>),
}

impl Src {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Blob(a), Self::Blob(b)) => a == b,
            (Self::Journal(a), Self::Journal(b)) => Arc::ptr_eq(a, b),
            (Self::Data(a), Self::Data(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The generation that holds the bytes, if it is not the store.
    pub fn generation(&self) -> Option<&Arc<Generation>> {
        match self {
            Self::Blob(_) => None,
            Self::Journal(generation) => Some(generation),
            Self::Data(file) => Some(&file.generation),
        }
    }
}

impl fmt::Debug for Src {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(blob) => write!(f, "{}", &blob.digest.hex()[..12]),
            Self::Journal(generation) => write!(f, "journal {}", generation.id),
            Self::Data(file) => file.fmt(f),
        }
    }
}

/// A stretch of bytes.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Its offset in its source.
    pub off: u64,
    /// The source of its bytes.
    pub src: Src,
}

impl Piece {
    fn tail(&self, cut: u64) -> Self {
        Self { len: self.len - cut, off: self.off + cut, src: self.src.clone() }
    }

    fn head(&self, len: u64) -> Self {
        Self { len, off: self.off, src: self.src.clone() }
    }
}

/// Pieces by the position in the file at which they start; no two overlap. Cloning takes a pointer.
#[derive(Clone)]
pub struct Pieces(Kept);

#[derive(Clone)]
enum Kept {
    List(Arc<Vec<(u64, Piece)>>),
    Map(OrdMap<u64, Piece>),
}

impl Default for Pieces {
    fn default() -> Self {
        Self(Kept::List(Arc::default()))
    }
}

impl Pieces {
    /// The whole of a blob.
    pub fn blob(blob: BlobRef) -> Self {
        if blob.size == 0 {
            return Self::default();
        }
        let piece = Piece { len: blob.size, off: 0, src: Src::Blob(Arc::new(blob)) };
        Self(Kept::List(Arc::new(vec![(0, piece)])))
    }

    /// Their number.
    pub fn count(&self) -> usize {
        match &self.0 {
            Kept::List(list) => list.len(),
            Kept::Map(map) => map.len(),
        }
    }

    /// All pieces, in order.
    pub fn all(&self) -> Box<dyn Iterator<Item = (u64, &Piece)> + '_> {
        match &self.0 {
            Kept::List(list) => Box::new(list.iter().map(|(at, piece)| (*at, piece))),
            Kept::Map(map) => Box::new(map.iter().map(|(at, piece)| (*at, piece))),
        }
    }

    /// Whether the same bytes are at the same places. Different pieces may hold the same bytes as well.
    pub(super) fn same(&self, other: &Self) -> bool {
        let same = |((at, a), (other_at, b)): ((u64, &Piece), (u64, &Piece))| {
            at == other_at && a.len == b.len && a.off == b.off && a.src.same(&b.src)
        };
        self.count() == other.count() && self.all().zip(other.all()).all(same)
    }

    /// The piece that starts at or last before `at`.
    fn at_or_before(&self, at: u64) -> Option<(u64, &Piece)> {
        match &self.0 {
            Kept::List(list) => {
                let after = list.partition_point(|(start, _)| *start <= at);
                after.checked_sub(1).map(|i| (list[i].0, &list[i].1))
            }
            Kept::Map(map) => map.range(..=at).next_back().map(|(start, piece)| (*start, piece)),
        }
    }

    fn at_or_after(&self, at: u64) -> Option<(u64, &Piece)> {
        match &self.0 {
            Kept::List(list) => {
                let i = list.partition_point(|(start, _)| *start < at);
                list.get(i).map(|(start, piece)| (*start, piece))
            }
            Kept::Map(map) => map.range(at..).next().map(|(start, piece)| (*start, piece)),
        }
    }

    fn insert(&mut self, at: u64, piece: Piece) {
        match &mut self.0 {
            Kept::List(list) => {
                let list = Arc::make_mut(list);
                match list.binary_search_by_key(&at, |(start, _)| *start) {
                    Ok(i) => list[i].1 = piece,
                    Err(i) => list.insert(i, (at, piece)),
                }
                if list.len() > LISTED {
                    self.0 = Kept::Map(list.drain(..).collect());
                }
            }
            Kept::Map(map) => {
                map.insert(at, piece);
            }
        }
    }

    fn remove(&mut self, at: u64) {
        match &mut self.0 {
            Kept::List(list) => {
                if let Ok(i) = list.binary_search_by_key(&at, |(start, _)| *start) {
                    Arc::make_mut(list).remove(i);
                }
            }
            Kept::Map(map) => {
                map.remove(&at);
                if map.len() <= LISTED / 2 {
                    self.0 = Kept::List(Arc::new(map.iter().map(|(k, v)| (*k, v.clone())).collect()));
                }
            }
        }
    }

    /// The pieces in `from..to`, clipped to it, in order.
    pub fn range(&self, from: u64, to: u64) -> Vec<(u64, Piece)> {
        let mut found = Vec::new();
        if from >= to {
            return found;
        }
        let mut at = from;
        if let Some((start, piece)) = self.at_or_before(from)
            && start < from
            && start + piece.len > from
        {
            let mut piece = piece.tail(from - start);
            piece.len = piece.len.min(to - from);
            at = from + piece.len;
            found.push((from, piece));
        }
        while let Some((start, piece)) = self.at_or_after(at) {
            if start >= to {
                break;
            }
            let piece = piece.head(piece.len.min(to - start));
            at = start + piece.len;
            found.push((start, piece));
            if at >= to {
                break;
            }
        }
        found
    }

    /// Makes a hole of `from..to`.
    pub fn clear(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((start, piece)) = self.at_or_before(from)
            && start < from
            && start + piece.len > from
        {
            let (head, end) = (piece.head(from - start), start + piece.len);
            let rest = (end > to).then(|| piece.tail(to - start));
            self.insert(start, head);
            if let Some(rest) = rest {
                self.insert(to, rest);
                return;
            }
        }
        while let Some((start, piece)) = self.at_or_after(from) {
            if start >= to {
                break;
            }
            let rest = (start + piece.len > to).then(|| piece.tail(to - start));
            self.remove(start);
            if let Some(rest) = rest {
                self.insert(to, rest);
            }
        }
    }

    /// Puts a piece at `at`, over existing pieces, and joins it with neighbours that continue in the same
    /// source.
    pub fn put(&mut self, mut at: u64, mut piece: Piece) {
        if piece.len == 0 {
            return;
        }
        let end = at + piece.len;
        self.clear(at, end);
        if let Some((start, before)) = at.checked_sub(1).and_then(|last| self.at_or_before(last))
            && start + before.len == at
            && before.off + before.len == piece.off
            && before.src.same(&piece.src)
        {
            piece = Piece { len: before.len + piece.len, off: before.off, src: before.src.clone() };
            self.remove(start);
            at = start;
        }
        if let Some((start, after)) = self.at_or_after(end)
            && start == end
            && piece.off + piece.len == after.off
            && after.src.same(&piece.src)
        {
            piece.len += after.len;
            self.remove(start);
        }
        self.insert(at, piece);
    }

    /// Moves everything from `from` on by `by` bytes; pieces that would end before `from + by` are left out.
    pub(super) fn shift(&self, from: u64, to: u64) -> Self {
        let mut shifted = Self::default();
        for (at, piece) in self.range(from, u64::MAX) {
            shifted.put(at - from + to, piece);
        }
        shifted
    }

    /// The first offset at or after `offset`, below `size`, that is in a piece (`data`) or in a hole. The end
    /// of a file counts as a hole. [`None`] if there is no such offset.
    pub fn seek(&self, offset: u64, size: u64, data: bool) -> Option<u64> {
        if offset >= size {
            return None;
        }
        let inside = |at: u64| {
            self.at_or_before(at).filter(|(start, piece)| start + piece.len > at).map(|(s, p)| s + p.len)
        };
        if data {
            if inside(offset).is_some() {
                return Some(offset);
            }
            return self.at_or_after(offset).map(|(start, _)| start).filter(|start| *start < size);
        }
        let mut at = offset;
        while let Some(end) = inside(at) {
            at = end;
        }
        Some(at.min(size))
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.all()).finish()
    }
}

/// Reads from a blob: fills the buffer with its bytes from an offset on.
pub(super) type ReadBlob<'a> = dyn FnMut(&BlobRef, u64, &mut [u8]) -> crate::Result<()> + 'a;

/// Fills `buf` with a piece's bytes from `skip` on, blobs through `blob`.
pub(super) fn fill(piece: &Piece, skip: u64, buf: &mut [u8], blob: &mut ReadBlob<'_>) -> crate::Result<()> {
    let (offset, len) = (piece.off + skip, buf.len());
    let failed = |e: io::Error, what: &dyn fmt::Debug| {
        let damaged = matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof);
        let message = format!("cannot read {len} bytes at {offset} of {what:?}");
        if e.kind() == io::ErrorKind::WouldBlock {
            return crate::Error::new(crate::ErrorKind::Waits, message);
        }
        if damaged {
            crate::Error::new(crate::ErrorKind::Damaged, message).with_source(e)
        } else {
            crate::Error::io(e, message)
        }
    };
    match &piece.src {
        Src::Blob(of) => blob(of, offset, buf),
        Src::Journal(generation) => match generation.read_journal(buf, offset) {
            Ok(()) => Ok(()),
            Err(e) => Err(failed(e, generation)),
        },
        Src::Data(file) => match file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(e) => Err(failed(e, file)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(n: u8, len: u64) -> Piece {
        let blob = BlobRef { digest: Digest::of(&[n % 3]), size: 1 << 20 };
        Piece { len, off: u64::from(n % 3) * 1000, src: Src::Blob(Arc::new(blob)) }
    }

    /// The source of each of the first 600 bytes: a digest and an offset, or nothing.
    fn flat(pieces: &Pieces) -> Vec<Option<(Digest, u64)>> {
        let mut flat = vec![None; 600];
        let mut last = 0;
        for (at, piece) in pieces.all() {
            assert!(at >= last && piece.len > 0, "{pieces:?}");
            last = at + piece.len;
            let Src::Blob(blob) = &piece.src else { panic!() };
            for i in 0..piece.len {
                flat[(at + i) as usize] = Some((blob.digest, piece.off + i));
            }
        }
        flat
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn pieces_hold_the_last_written_bytes_everywhere(
            ops in proptest::collection::vec((any::<bool>(), 0u64..500, 1u64..60, any::<u8>()), 0..120)
        ) {
            let mut pieces = Pieces::default();
            let mut model = vec![None; 600];
            for (put, at, len, n) in ops {
                let new = piece(n, len);
                for i in 0..len {
                    let Src::Blob(blob) = &new.src else { panic!() };
                    model[(at + i) as usize] = put.then_some((blob.digest, new.off + i));
                }
                if put { pieces.put(at, new) } else { pieces.clear(at, at + len) }
                prop_assert_eq!(&flat(&pieces), &model);
                let (from, to) = (at.saturating_sub(20), at + len / 2 + 7);
                let mut part = Pieces::default();
                for (at, piece) in pieces.range(from, to) { part.insert(at, piece); }
                let expected: Vec<_> = model.iter().enumerate()
                    .map(|(i, b)| b.filter(|_| (from..to).contains(&(i as u64)))).collect();
                prop_assert_eq!(flat(&part), expected);
                for (data, offset) in [(true, at), (false, at), (true, at + len), (false, 0)] {
                    let found = (offset..550).find(|i| model[*i as usize].is_some() == data);
                    let found = if data { found } else { Some(found.unwrap_or(550)) };
                    prop_assert_eq!(pieces.seek(offset, 550, data), found.filter(|_| offset < 550));
                }
            }
        }
    }

    #[test]
    fn writes_that_follow_each_other_become_one_piece() {
        let mut pieces = Pieces::default();
        let src = piece(0, 1).src;
        for i in (0..1000).rev().step_by(2).chain((0..1000).step_by(2)) {
            pieces.put(i * 10, Piece { len: 10, off: i * 10, src: src.clone() });
        }
        assert_eq!(pieces.count(), 1);
    }
}
