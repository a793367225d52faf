//! A store's log on disk: `audit/events.jsonl`, and its older files.
//!
//! ```text
//! <store>/audit/events.jsonl                 the newest lines
//! <store>/audit/events-<first seq>.jsonl     older ones, 12 digits; the chain continues from file to file
//! <store>/audit/torn-<seq>-<hash12>          the end of a line that was not finished, cut off
//! <store>/audit/crash/                       crash packs
//! <store>/audit/.lock                        flock(2): exclusive to append, shared to read
//! ```
//! Several programs may append. Each takes the lock, finds the end of the chain, and writes its lines with one
//! write(2). A crash may leave an end without a line feed: it is kept, cut off, and the next line says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::fs::FlockOperation;
use serde_json::json;

use super::broken::BrokenAt;
use super::chain::{self, Break, Head, Writer};
use super::event::SessionEvent;
use super::note;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::util::home::Home;
use crate::util::sharing::Sharing;

/// The newest lines.
pub(super) const CURRENT: &str = "events.jsonl";
const LOCK: &str = ".lock";

/// A file that would grow beyond this, in bytes, is set aside and a new one begins.
const MAX_FILE: u64 = 8 << 20;

/// How much of a file's end is read to find the head of the chain, in bytes.
const TAIL: u64 = 64 << 10;

/// How long another process may hold the lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a store's log is.
pub fn dir(store: &Path) -> PathBuf {
    store.join("audit")
}

/// Where a store's crash packs are.
pub fn crash_dir(store: &Path) -> PathBuf {
    dir(store).join("crash")
}

/// The store may be another user's: links are not followed, and fifos are not waited for.
const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a regular file of a log.
pub(super) fn open_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    regular(options.custom_flags(FLAGS).open(path)?)
}

/// Does the same with a file that is made if it does not exist.
fn open_or_create(sharing: Sharing, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    regular(sharing.open_or_create(options.custom_flags(FLAGS), path)?)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Takes the lock to read, and gives up when another program holds it for seconds: a log must not block the
/// work that it records.
pub(super) fn lock_to_read(dir: &Path) -> io::Result<File> {
    let file = open_file(File::options().read(true), &dir.join(LOCK))?;
    lock(file, FlockOperation::NonBlockingLockShared)
}

/// Does the same to append.
fn lock_to_append(dir: &Path, sharing: Sharing) -> io::Result<File> {
    let file = open_or_create(sharing, File::options().write(true), &dir.join(LOCK))?;
    lock(file, FlockOperation::NonBlockingLockExclusive)
}

fn lock(file: File, operation: FlockOperation) -> io::Result<File> {
    let until = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// The number in an older file's name.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("events-")?.strip_suffix(".jsonl")?.parse().ok()
}

/// The files of a log in the order of the chain.
pub(super) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut older = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some(first) = number(&path) {
            older.push((first, path));
        }
    }
    older.sort_unstable();
    let mut files: Vec<PathBuf> = older.into_iter().map(|(_, path)| path).collect();
    if dir.join(CURRENT).exists() {
        files.push(dir.join(CURRENT));
    }
    Ok(files)
}

/// The known state of the file after the last write: the file is not read again unless another process wrote
/// to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    ino: u64,
    len: u64,
    head: Head,
}

/// Appends to a store's log.
#[derive(Debug)]
pub struct Appender {
    dir: PathBuf,
    home: Home,
    sharing: Sharing,
    writer: Writer,
    max_file: u64,
    known: Option<Known>,
}

impl Appender {
    /// Appends for `command` to the log of the store in `store`. Touches nothing yet.
    pub fn new(store: &Path, command: &str) -> Self {
        let (writer, sharing) = (Writer::this(command), Sharing::of(store));
        Self { dir: dir(store), home: Home::new(store), sharing, writer, max_file: MAX_FILE, known: None }
    }

    /// Whether there is a log already.
    pub(super) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// The path of the log.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    /// Appends events with their times and returns the new head. Either all of them are written or, after an
    /// error, none. If a partial write cannot be undone, the next program that appends checks it.
    pub fn append(&mut self, events: &[(DateTime<Utc>, SessionEvent)]) -> Result<Head> {
        let path = self.path();
        let failed = |e: io::Error| Error::io(e, format!("cannot write the audit log {}", path.display()));
        // Another store may be at its path now.
        self.home.require()?;
        let store = self.dir.parent().unwrap_or(&self.dir);
        self.sharing.create_dir_below(store, &self.dir).map_err(failed)?;
        // The store may be another user's: the log must not be written elsewhere.
        if !fs::symlink_metadata(&self.dir).map_err(failed)?.is_dir() {
            return Err(failed(io::Error::other("its directory is a link")));
        }
        let _lock = lock_to_append(&self.dir, self.sharing).map_err(failed)?;
        self.append_locked(&path, events).map_err(failed)
    }

    fn append_locked(&mut self, path: &Path, events: &[(DateTime<Utc>, SessionEvent)]) -> io::Result<Head> {
        let open = || open_or_create(self.sharing, File::options().read(true).append(true), path);
        let mut file = open()?;
        let meta = file.metadata()?;
        let mut about = Vec::new();
        let known = self.known.take().filter(|known| (known.ino, known.len) == (meta.ino(), meta.len()));
        let (mut head, mut len) = match known {
            Some(known) => (known.head, known.len),
            None => self.find_end(&mut file, meta.len(), &mut about)?,
        };
        let now = Utc::now();
        let all = about.into_iter().map(|event| (now, event)).chain(events.iter().cloned());
        let mut lines = Vec::new();
        let mut end = head;
        for (time, event) in all {
            lines.extend(chain::encode(&mut end, time, &self.writer, event)?);
        }
        if len > 0 && len.saturating_add(lines.len() as u64) > self.max_file {
            file.sync_all()?;
            // After the file before it and never in its place, whatever this one holds.
            let before = files(&self.dir)?.iter().filter_map(|path| number(path)).max();
            let first = first_seq(&mut file)?.max(before.map_or(0, |before| before.saturating_add(1)));
            fs::rename(path, self.dir.join(format!("events-{first:012}.jsonl")))?;
            file = open()?;
            File::open(&self.dir)?.sync_all()?;
            len = 0;
        }
        // After a partial write on a full disk, the next attempt would write that part a second time.
        file.write_all(&lines).inspect_err(|_| drop(file.set_len(len)))?;
        head = end;
        let known = Known { ino: file.metadata()?.ino(), len: len + lines.len() as u64, head };
        self.known = Some(known);
        Ok(head)
    }

    /// Returns the head at a file's end, and the length of the file after a torn end was cut off.
    fn find_end(&self, file: &mut File, len: u64, about: &mut Vec<SessionEvent>) -> io::Result<(Head, u64)> {
        if len == 0 {
            // The file before ends where this one continues.
            return Ok((before(&self.dir)?.unwrap_or(Head::START), 0));
        }
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        file.read_to_end(&mut tail)?;
        if let Some(whole) = tail.strip_suffix(b"\n") {
            let last = whole.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
            if let Ok((record, hash)) = chain::decode(last) {
                return Ok((Head { seq: record.seq, hash }, len));
            }
        }
        // This is rare, so it may read the whole file.
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        let (mut head, whole, damaged) = walk(&bytes);
        let torn = &bytes[whole..];
        let mut end = whole as u64;
        if let Ok((record, hash)) = chain::decode(torn) {
            // Only the line feed is missing.
            file.write_all(b"\n")?;
            head = Head { seq: record.seq, hash };
            end = len + 1;
        } else if !torn.is_empty() {
            let digest = Digest::of(torn);
            let kept = format!("torn-{:012}-{}", head.seq.saturating_add(1), &digest.hex()[..12]);
            let mut options = File::options();
            let options = options.write(true).truncate(true);
            let mut copy = self.sharing.open_or_create(options, &self.dir.join(&kept))?;
            copy.write_all(torn)?;
            copy.sync_all()?;
            file.set_len(whole as u64)?;
            about.push(note::about_the_log(
                "log_healed",
                json!({"lost_bytes": torn.len(), "sha256": digest.hex(), "kept": kept}),
            ));
        }
        if damaged > 0 {
            about.push(note::about_the_log("log_damaged", json!({"damaged_lines": damaged})));
        }
        Ok((head, end))
    }
}

/// Returns the head after the last whole line, the length of the whole lines in bytes, and the number of
/// damaged lines at the end.
fn walk(bytes: &[u8]) -> (Head, usize, usize) {
    let (mut head, mut whole, mut damaged) = (Head::START, 0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { break };
        whole += line.len();
        if let Ok((record, hash)) = chain::decode(text) {
            (head, damaged) = (Head { seq: record.seq, hash }, 0);
        } else {
            (head, damaged) = (head.behind_damage(text), damaged + 1);
        }
    }
    (head, whole, damaged)
}

/// Checks one file of a log alone. A file that was set aside begins at the number in its name, the newest
/// file where the one before it ends, and `.pfimg/events.jsonl` of a mount anywhere. Every other file begins
/// at 1.
pub fn verify(path: &Path, bytes: &[u8]) -> Result<std::result::Result<Head, BrokenAt>> {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    // The hash and number that the first line states as its predecessor's.
    let said = chain::decode(first).ok().and_then(|(record, _)| {
        let hash = Digest::from_hex(&record.prev).ok()?;
        Some(Head { seq: record.seq.checked_sub(1)?, hash })
    });
    let folder = path.parent().unwrap_or(Path::new(""));
    let start = if let Some(number) = number(path) {
        said.filter(|said| said.seq.checked_add(1) == Some(number))
    } else if path.ends_with(".pfimg/events.jsonl") {
        said
    } else if path.ends_with(CURRENT) {
        before(folder).map_err(|e| Error::io(e, format!("cannot read {}", folder.display())))?
    } else {
        None
    };
    let at = |broken: Break| BrokenAt {
        file: path.to_owned(),
        line: broken.line,
        fault: broken.fault.to_string(),
    };
    Ok(chain::verify(start.unwrap_or(Head::START), bytes).map_err(at))
}

/// The head at the end of the newest file that was set aside in a folder; nothing without such a file.
fn before(folder: &Path) -> io::Result<Option<Head>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let older = files(folder)?.into_iter().rfind(|path| !path.ends_with(CURRENT));
    let Some(path) = older else { return Ok(None) };
    let mut bytes = Vec::new();
    open_file(File::options().read(true), &path)?.read_to_end(&mut bytes)?;
    Ok(Some(walk(&bytes).0))
}

/// The number of a file's first line; computed from a later line if it cannot be read.
fn first_seq(file: &mut File) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    for (skipped, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if let Ok((record, _)) = chain::decode(line) {
            return Ok(record.seq.saturating_sub(skipped as u64));
        }
    }
    Ok(0)
}

/// Appends one event for a command that is about to end.
pub fn append_now(store: &Path, command: &str, events: impl IntoIterator<Item = SessionEvent>) -> Result<()> {
    let now = Utc::now();
    let events: Vec<_> = events.into_iter().map(|event| (now, event)).collect();
    match Appender::new(store, command).append(&events) {
        // A store that cannot be written gets no log of changes that did not happen.
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnly) => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
