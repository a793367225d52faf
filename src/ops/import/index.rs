//! The index of an earlier import of a directory, so that unchanged files are not read again.
//!
//! ```text
//! "pfimgidx" │ version u32 │ started i64 │ image 32 │ limits 32 │ count u32 │ records │ crc32c u32
//! record: path length u16, path │ size u64 │ mtime i64 │ ctime i64 │ inode u64 │ device u64 │ flags u8 │ digest 32, of files
//! ```
//! Each path of the image has a record. The directory itself has the empty path. The records of one directory stand together.
//! `limits` identifies the rules by which the import left files out. It is zero if the image does not depend on the records alone.
//!
//! Little-endian, times in nanoseconds since 1970. The checksum covers everything before it. A damaged index counts as none:
//! the import then takes longer, but is never wrong.

use std::collections::HashMap;

use crate::digest::Digest;

const MAGIC: &[u8; 8] = b"pfimgidx";
const VERSION: u32 = 3;

/// Stands for the limits of an image that does not depend on the records alone.
const NO_LIMITS: Digest = Digest::from_bytes([0; 32]);

/// Bytes of a record without its path: two of them for the path's length. Records of files also have a digest.
const FIXED: usize = 2 + 8 * 5 + 1;

/// Set in a record's flags if the file has extended attributes.
const HAS_XATTRS: u8 = 1;

/// Set in a record's flags if it has a digest.
const HAS_CONTENT: u8 = 2;

/// Two changes within this many nanoseconds may leave the same time, since kernels count in ticks.
const TICK: i64 = 100_000_000;

/// The same, on filesystems whose times are whole seconds.
const COARSE_TICK: i64 = 2_000_000_000;

const SECOND: i64 = 1_000_000_000;

/// Attributes that show whether a file has changed, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time in nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Inode.
    pub ino: u64,
    /// Its device.
    pub dev: u64,
}

/// What an index records of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its attributes at that time.
    pub stamp: Stamp,
    /// A file's content.
    pub content: Option<Digest>,
    /// Whether it had extended attributes.
    pub xattrs: bool,
}

/// An index. Paths are relative to the directory.
#[derive(Debug, Default)]
pub struct Index<'a> {
    /// When the import began, in nanoseconds since 1970, by the clock of file times.
    pub started_ns: i64,
    /// The image that it made.
    pub image: Option<Digest>,
    /// The rules by which the import left files out. None if the image does not depend on the records alone.
    pub limits: Option<Digest>,
    /// The records of the image's files, by path.
    pub records: HashMap<&'a [u8], Record>,
}

/// An index in the order of its file, in which the records of one directory stand together. It is made much faster than an
/// [`Index`].
#[derive(Debug, Default)]
pub struct InOrder<'a> {
    /// As in [`Index`].
    pub started_ns: i64,
    /// As in [`Index`].
    pub image: Option<Digest>,
    /// As in [`Index`].
    pub limits: Option<Digest>,
    /// The records of the image's files, with their paths.
    pub records: Vec<(&'a [u8], Record)>,
}

impl<'a> InOrder<'a> {
    /// Reads an index. Returns none if it is damaged.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut rest = body;
        if take::<8>(&mut rest)? != *MAGIC || u32::from_le_bytes(take(&mut rest)?) != VERSION {
            return None;
        }
        let started_ns = i64::from_le_bytes(take(&mut rest)?);
        let image = Digest::from_bytes(take(&mut rest)?);
        let limits = Digest::from_bytes(take(&mut rest)?);
        let count = u32::from_le_bytes(take(&mut rest)?) as usize;
        // Does not allocate for a count that the length of the file contradicts.
        let mut records = Vec::with_capacity(count.min(rest.len() / FIXED));
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
            let (path, after) = rest.split_at_checked(length)?;
            rest = after;
            let stamp = Stamp {
                size: u64::from_le_bytes(take(&mut rest)?),
                mtime_ns: i64::from_le_bytes(take(&mut rest)?),
                ctime_ns: i64::from_le_bytes(take(&mut rest)?),
                ino: u64::from_le_bytes(take(&mut rest)?),
                dev: u64::from_le_bytes(take(&mut rest)?),
            };
            let [flags] = take(&mut rest)?;
            let content = match flags & HAS_CONTENT {
                0 => None,
                _ => Some(Digest::from_bytes(take(&mut rest)?)),
            };
            records.push((path, Record { stamp, content, xattrs: flags & HAS_XATTRS != 0 }));
        }
        let limits = (limits != NO_LIMITS).then_some(limits);
        rest.is_empty().then_some(Self { started_ns, image: Some(image), limits, records })
    }

    /// Arranges the records by path.
    pub fn by_path(self) -> Index<'a> {
        let Self { started_ns, image, limits, records } = self;
        Index { started_ns, image, limits, records: records.into_iter().collect() }
    }

    /// Whether a file with these attributes is the one that its record describes, as [`Index::unchanged`].
    pub fn is_unchanged(&self, record: &Record, now: &Stamp) -> bool {
        record.is_of(now, self.started_ns)
    }
}

impl Record {
    /// Whether the file has these attributes, and had them well before the index was begun.
    fn is_of(&self, now: &Stamp, started_ns: i64) -> bool {
        let tick = if now.mtime_ns % SECOND == 0 { COARSE_TICK } else { TICK };
        let settled = now.mtime_ns.max(now.ctime_ns) < started_ns.saturating_sub(tick);
        self.stamp == *now && settled
    }
}

impl<'a> Index<'a> {
    /// Reads an index. Returns none if it is damaged.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        InOrder::parse(bytes).map(InOrder::by_path)
    }

    /// Writes an index of an import that began at `started_ns` and made `image`. `limits` is as in [`Index`]. Paths that are too
    /// long for an index are left out.
    pub fn write(
        started_ns: i64,
        image: &Digest,
        limits: Option<Digest>,
        records: &[(&[u8], Record)],
    ) -> Vec<u8> {
        let all = records.len();
        let mut records: Vec<_> = records
            .iter()
            .filter_map(|(path, record)| Some((*path, u16::try_from(path.len()).ok()?, record)))
            .collect();
        records.sort_unstable_by(|(a, ..), (b, ..)| parent_and_name(a).cmp(&parent_and_name(b)));
        let limits = limits.filter(|_| records.len() == all).unwrap_or(NO_LIMITS);
        let length = records.iter().map(|(path, ..)| path.len() + FIXED + 32).sum::<usize>();
        let mut out = Vec::with_capacity(64 + length);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&started_ns.to_le_bytes());
        out.extend_from_slice(image.as_bytes());
        out.extend_from_slice(limits.as_bytes());
        out.extend_from_slice(&(records.len() as u32).to_le_bytes());
        for (path, length, record) in records {
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(path);
            let stamp = &record.stamp;
            out.extend_from_slice(&stamp.size.to_le_bytes());
            out.extend_from_slice(&stamp.mtime_ns.to_le_bytes());
            out.extend_from_slice(&stamp.ctime_ns.to_le_bytes());
            out.extend_from_slice(&stamp.ino.to_le_bytes());
            out.extend_from_slice(&stamp.dev.to_le_bytes());
            let content = if record.content.is_some() { HAS_CONTENT } else { 0 };
            out.push(content | if record.xattrs { HAS_XATTRS } else { 0 });
            out.extend(record.content.iter().flat_map(Digest::as_bytes));
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Returns the record of a path with these attributes. Returns none if the path has changed. Also returns none if it changed
    /// shortly before it was looked at, since a later change may have left the same times.
    pub fn unchanged(&self, path: &[u8], now: &Stamp) -> Option<Record> {
        self.records.get(path).filter(|record| record.is_of(now, self.started_ns)).copied()
    }
}

/// Splits a path into its directory and its name. The top itself has no directory.
pub(super) fn parent_and_name(path: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (Some(&path[..at]), &path[at + 1..]),
        None => ((!path.is_empty()).then_some(b""), path),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STARTED: i64 = 1_000 * SECOND;

    fn record(mtime_ns: i64) -> Record {
        let stamp = Stamp { size: 5, mtime_ns, ctime_ns: mtime_ns, ino: 7, dev: 8 };
        Record { stamp, content: (mtime_ns % 3 > 0).then(|| Digest::of(b"x")), xattrs: mtime_ns % 2 == 1 }
    }

    #[test]
    fn an_index_comes_back_as_it_was() {
        let files = [(&b"a/b"[..], record(1)), (b"caf\xe9", record(2)), (b"", record(3))];
        let image = Digest::of(b"image");
        let limits = Some(Digest::of(b"limits"));
        let bytes = Index::write(STARTED, &image, limits, &files);
        let index = InOrder::parse(&bytes).unwrap();
        assert_eq!((index.started_ns, index.image, index.limits), (STARTED, Some(image), limits));
        assert_eq!(index.records, [files[2], files[1], files[0]], "by directory, the top first");
        let index = index.by_path();
        assert_eq!((index.started_ns, index.image, index.limits), (STARTED, Some(image), limits));
        assert_eq!(index.records, HashMap::from(files));
        assert_eq!(Index::parse(&Index::write(STARTED, &image, None, &files)).unwrap().limits, None);
    }

    #[test]
    fn an_index_without_all_paths_has_no_limits() {
        let long = vec![b'a'; 1 << 16];
        let files = [(&long[..], record(1)), (b"b", record(2))];
        let bytes = Index::write(STARTED, &Digest::of(b""), Some(Digest::of(b"limits")), &files);
        let index = Index::parse(&bytes).unwrap();
        assert_eq!((index.records.len(), index.limits), (1, None));
    }

    #[test]
    fn a_file_is_unchanged_only_if_all_of_its_stamp_is_and_it_had_settled() {
        let old = record(STARTED - 10 * SECOND + 1);
        let bytes = Index::write(STARTED, &Digest::of(b""), None, &[(b"f", old)]);
        let index = Index::parse(&bytes).unwrap();
        assert_eq!(index.unchanged(b"f", &old.stamp), Some(old));
        assert_eq!(index.unchanged(b"g", &old.stamp), None);
        for other in [
            Stamp { size: 6, ..old.stamp },
            Stamp { mtime_ns: old.stamp.mtime_ns - 1, ..old.stamp },
            Stamp { ctime_ns: old.stamp.ctime_ns + 1, ..old.stamp },
            Stamp { ino: 9, ..old.stamp },
            Stamp { dev: 9, ..old.stamp },
        ] {
            assert_eq!(index.unchanged(b"f", &other), None, "{other:?}");
        }
    }

    #[test]
    fn files_as_young_as_the_index_are_read_again() {
        for (mtime_ns, trusted) in [
            (STARTED - SECOND - 1, true),
            (STARTED - TICK - 1, true),
            (STARTED - TICK + 1, false),
            (STARTED - 1, false),
            (STARTED + SECOND + 1, false),
            // Whole seconds: two files of one second look the same.
            (STARTED - SECOND, false),
            (STARTED - 3 * SECOND, true),
        ] {
            let bytes = Index::write(STARTED, &Digest::of(b""), None, &[(b"f", record(mtime_ns))]);
            let index = Index::parse(&bytes).unwrap();
            assert_eq!(index.unchanged(b"f", &record(mtime_ns).stamp).is_some(), trusted, "{mtime_ns}");
        }
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), sealed: bool) {
            if sealed {
                let mut whole = MAGIC.to_vec();
                whole.extend(VERSION.to_le_bytes());
                whole.append(&mut bytes);
                whole.extend(crc32c::crc32c(&whole).to_le_bytes());
                bytes = whole;
            }
            let _ = Index::parse(&bytes);
        }

        #[test]
        fn an_incomplete_index_is_ignored(at in any::<proptest::sample::Index>(), bit in 0u8..8, cut: bool) {
            let mut bytes = Index::write(STARTED, &Digest::of(b""), None, &[(b"f", record(1)), (b"g", record(2))]);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(Index::parse(&bytes).is_none());
        }
    }
}
