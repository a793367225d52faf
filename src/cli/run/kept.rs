//! The output of a run, kept for `pfimg output`: `forks/.runs/NAME.out` in the store.
//!
//! The file begins with a line of fixed length that names the removed bytes: of long output the beginning and
//! the end are kept. The removed part becomes a hole. So every other byte stays at its place, where a reader
//! that follows finds it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::record::Record;
use crate::cli::text::count;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::beside;
use crate::store::Sharing;

/// The length of the first line: the format, and the bounds of the removed part.
const HEADER: u64 = 57;

/// The bytes kept of the beginning and of the end, and the excess above both that is allowed before a cut.
const FIRST: u64 = 4 << 20;
const LAST: u64 = 12 << 20;
const SLACK: u64 = 1 << 20;

/// The interval between looks for more output.
const LOOK: Duration = Duration::from_millis(100);

/// The bytes that are read at a time.
const PIECE: usize = 64 << 10;

fn header((from, to): (u64, u64)) -> String {
    format!("pfimg-output 1 {from:020} {to:020}\n")
}

fn parse(line: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("pfimg-output 1 ")?;
    let (from, to) = text.trim_end().split_once(' ')?;
    let cut: (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    (cut.0 <= cut.1).then_some(cut)
}

/// The output of a run that has not ended.
#[derive(Debug)]
pub(super) struct Kept {
    file: File,
    /// Bytes of output so far, and the removed part of them.
    len: u64,
    cut: (u64, u64),
    /// Whether the file is full, because this filesystem has no holes.
    is_full: bool,
}

impl Kept {
    /// Starts a new file for a fork.
    pub(super) fn begin(store: &Path, fork: &str) -> Result<Self> {
        let path = beside::run_output(store, fork);
        let begin = || {
            beside::make_runs(store)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = Sharing::of(store).create_new(&path)?;
            file.write_all_at(header((0, 0)).as_bytes(), 0)?;
            Ok(file)
        };
        let file = begin().map_err(|e| Error::io(e, format!("cannot write {}", path.display())))?;
        Ok(Self { file, len: 0, cut: (0, 0), is_full: false })
    }

    /// Adds output.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        if self.is_full {
            self.cut.1 = self.len;
            return self.file.write_all_at(header(self.cut).as_bytes(), 0);
        }
        self.file.write_all_at(bytes, HEADER + self.len - bytes.len() as u64)?;
        if self.len - self.cut.1.max(FIRST).min(self.len) > LAST + SLACK { self.shorten() } else { Ok(()) }
    }

    fn shorten(&mut self) -> io::Result<()> {
        let from = self.cut.1.max(FIRST);
        let to = self.len - LAST;
        // The header is written before the cut: a reader ignores the bytes that the header names.
        self.file.write_all_at(header((FIRST, to)).as_bytes(), 0)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, hole, HEADER + from, to - from).is_ok() {
            self.cut = (FIRST, to);
        } else {
            (self.cut, self.is_full) = ((self.len, self.len), true);
            self.file.write_all_at(header(self.cut).as_bytes(), 0)?;
        }
        Ok(())
    }
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) bytes: u64,
    pub(crate) cut: u64,
}

/// Copies the output of a fork's last run; with `follow` until that run ends. Calls `cut` with a text for
/// removed bytes, at their place.
pub(crate) fn copy(
    store: &Path,
    fork: &str,
    follow: bool,
    out: &mut dyn Write,
    cut: &mut dyn FnMut(&str),
) -> Result<Copied> {
    let path = beside::run_output(store, fork);
    let record = Record::read(store, fork)?;
    let failed = |e: io::Error| {
        match e.kind() {
        io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("pfimg kept no output of a run in fork {fork:?}")).with_hint(
                "run in several forks, or with --json, to keep the output; a run in one fork prints to the terminal",
            )
        }
        _ => Error::io(e, format!("cannot read {}", path.display())),
    }
    };
    let file = File::open(&path).map_err(failed)?;
    if record.is_none() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    let read_cut = || {
        let mut line = [0; HEADER as usize];
        file.read_exact_at(&mut line, 0).map_err(failed)?;
        parse(&line).ok_or_else(|| {
            Error::new(ErrorKind::Damaged, format!("{} is not the output of a run", path.display()))
        })
    };
    let (mut at, mut copied, mut piece) = (0, Copied::default(), vec![0; PIECE]);
    loop {
        let is_running = follow && Record::read(store, fork)?.is_some_and(|record| record.is_running());
        let (from, to) = read_cut()?;
        if (from..to).contains(&at) {
            cut(&format!("{} of output were removed here", count(to - at, "byte")));
            copied.cut += to - at;
            at = to;
        }
        let most = if at < from { (from - at).min(PIECE as u64) as usize } else { PIECE };
        let len = file.read_at(&mut piece[..most], HEADER + at).map_err(failed)?;
        if read_cut()? != (from, to) {
            // The bytes read may be zeros of a new hole.
            continue;
        }
        match len {
            0 if is_running => thread::sleep(LOOK),
            0 => return Ok(copied),
            len => {
                match out.write_all(&piece[..len]).and_then(|()| out.flush()) {
                    // The reader has closed the output.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(copied),
                    written => written.map_err(|e| Error::io(e, "cannot write to stdout"))?,
                }
                at += len as u64;
                copied.bytes += len as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_first_line_names_the_removed_part() {
        assert_eq!(header((0, 0)).len() as u64, HEADER);
        assert_eq!(parse(header((7, u64::MAX)).as_bytes()), Some((7, u64::MAX)));
        assert_eq!((parse(b"pfimg-output 1 9 8\n"), parse(b"else"), parse(b"")), (None, None, None));
    }

    #[test]
    fn long_output_keeps_its_beginning_and_its_end_in_place() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("forks")).unwrap();
        let mut kept = Kept::begin(dir.path(), "a").unwrap();
        let piece = |n: u64| format!("{n:09}\n").into_bytes().repeat(1 << 16);
        let pieces = 64;
        for n in 0..pieces {
            kept.add(&piece(n)).unwrap();
        }
        let size = piece(0).len() as u64;
        assert_eq!(kept.len, pieces * size);
        assert!(kept.cut.0 == FIRST && kept.len - kept.cut.1 >= LAST, "{:?}", kept.cut);
        let path = beside::run_output(dir.path(), "a");
        let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(on_disk <= FIRST + LAST + 2 * SLACK, "{on_disk}");
        let file = File::open(&path).unwrap();
        for (at, n) in [(0, 0), (FIRST - 10, (FIRST - 10) / size), (kept.len - 10, pieces - 1)] {
            let mut bytes = [0; 10];
            file.read_exact_at(&mut bytes, HEADER + at - at % 10).unwrap();
            assert_eq!(bytes, format!("{n:09}\n").as_bytes(), "{at}");
        }
    }
}
