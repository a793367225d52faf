//! Reads a store's log as it grows: the sum of its events, and the first break of its chain.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::broken::BrokenAt;
use super::chain::{self, Break, Checker, Fault, Head};
use super::file;
use super::read::Faults;
use super::snapshot::{Fold, OsSnapshot, Tally};
use super::violations::{Packs, Violations};
use crate::error::{Error, Result};

/// The content of a log, and whether it is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of the last line; 0 without any.
    pub seq: u64,
    /// Its hash, 64 hex digits.
    pub head: String,
    /// The number of records; other lines are not counted.
    pub events: u64,
    /// Categories of its events, and their sources.
    #[serde(flatten)]
    pub tally: Tally,
    /// Events without a field that their kind needs; pfimg writes no such events. A line counts in its file.
    pub faults: Faults,
    /// The first break of the chain.
    pub broken: Option<BrokenAt>,
    /// The violations in the log.
    pub violations: Violations,
    /// The crash packs of the store, also those that no log names.
    pub packs: Packs,
    /// The sum of the events. Damaged lines are left out.
    pub snapshot: OsSnapshot,
}

/// Reads the lines that were appended since the last call.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    /// The first file at the last call: if it changed, everything is read again.
    first: Option<PathBuf>,
    /// The index of the file that is being read, and the position in it.
    index: usize,
    offset: u64,
    line: u64,
    head: Head,
    events: u64,
    tally: Tally,
    faults: Faults,
    violations: Violations,
    broken: Option<BrokenAt>,
    /// The incomplete line at the end: the next program that appends finishes it or cuts it off.
    torn: Option<BrokenAt>,
    fold: Fold,
}

impl Follower {
    /// Follows the log of the store in `store`. Reads nothing yet.
    pub fn new(store: &Path) -> Self {
        Self {
            dir: file::dir(store),
            first: None,
            index: 0,
            offset: 0,
            line: 0,
            head: Head::START,
            events: 0,
            tally: Tally::default(),
            faults: Faults::default(),
            violations: Violations::default(),
            broken: None,
            torn: None,
            fold: Fold::default(),
        }
    }

    /// Reads new lines and returns the present sum. A store without a log has an empty one.
    pub fn catch_up(&mut self) -> Result<Report> {
        let failed = |e: io::Error| Error::io(e, "cannot read the audit log");
        if let Some(lock) = lock(&self.dir).map_err(failed)? {
            self.read().map_err(|e| failed(e).context(self.dir.display()))?;
            drop(lock);
        }
        Ok(Report {
            seq: self.head.seq,
            head: self.head.hash.hex(),
            events: self.events,
            tally: self.tally.clone(),
            faults: self.faults.clone(),
            violations: self.violations.clone(),
            packs: Packs::of(self.dir.parent().unwrap_or(&self.dir))?,
            broken: self.broken.clone().or_else(|| self.torn.clone()),
            snapshot: self.fold.snapshot().clone(),
        })
    }

    fn read(&mut self) -> io::Result<()> {
        let files = file::files(&self.dir)?;
        // The only file gets another name when it is set aside.
        let same_first = self.first.is_none() || self.index == 0 || self.first.as_ref() == files.first();
        let is_shorter = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.len() < self.offset);
        if !same_first || files.get(self.index).is_none_or(is_shorter) {
            // Files were removed or cut: the lines that were read are not the ones on disk.
            let store = self.dir.parent().unwrap_or(&self.dir).to_owned();
            *self = Self::new(&store);
        }
        self.torn = None;
        self.first = files.first().cloned();
        while let Some(path) = files.get(self.index) {
            self.read_file(path, self.index + 1 == files.len())?;
            if self.index + 1 == files.len() {
                break;
            }
            (self.index, self.offset, self.line) = (self.index + 1, 0, 0);
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, last: bool) -> io::Result<()> {
        let mut file = file::open_file(File::options().read(true), path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if let Some(text) = line.strip_suffix(b"\n") {
                self.offset += line.len() as u64;
                self.line += 1;
                self.take(path, text);
            } else {
                let torn = Break { line: self.line + 1, fault: Fault::Torn };
                if last {
                    self.torn = Some(at(path, &torn));
                } else {
                    self.breaks(path, &torn);
                    self.head = self.head.behind_damage(line);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, path: &Path, line: &[u8]) {
        let mut checker = Checker::behind(self.head);
        let event = match checker.line(line) {
            Ok(record) => {
                self.head = checker.head();
                record.event
            }
            Err(broken) => {
                self.breaks(path, &Break { line: self.line, fault: broken.fault });
                let Ok((record, hash)) = chain::decode(line) else {
                    self.head = self.head.behind_damage(line);
                    return;
                };
                self.head = Head { seq: record.seq, hash };
                record.event
            }
        };
        self.events += 1;
        self.tally.apply(&event);
        self.violations.apply(&event);
        if let Some(fault) = event.fault() {
            self.faults.add(self.line, event.kind(), fault);
        }
        self.fold.apply(&event);
    }

    fn breaks(&mut self, path: &Path, broken: &Break) {
        if self.broken.is_none() {
            self.broken = Some(at(path, broken));
        }
    }
}

fn at(path: &Path, broken: &Break) -> BrokenAt {
    BrokenAt { file: path.to_owned(), line: broken.line, fault: broken.fault.to_string() }
}

/// Keeps a log unchanged for a reader.
enum Held {
    /// By its lock, until this is dropped.
    Locked(#[allow(dead_code)] File),
    /// The log was copied without its lock: no program appends to it.
    Alone,
}

/// Keeps a log unchanged, if there is one.
fn lock(dir: &Path) -> io::Result<Option<Held>> {
    let exists = || dir.join(file::CURRENT).exists();
    match file::lock_to_read(dir) {
        Ok(lock) => return Ok(Some(Held::Locked(lock))),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Err(_) if !exists() => return Ok(None),
        Err(_) => {}
    }
    // A program that begins a log makes the lock first. So the log may have begun just before this check.
    match file::lock_to_read(dir) {
        Ok(lock) => Ok(Some(Held::Locked(lock))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Some(Held::Alone)),
        Err(e) => Err(e),
    }
}

/// The last lines of a store's log, at most `max` bytes of them, whole lines only.
pub fn last_lines(store: &Path, max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let dir = file::dir(store);
        let _lock = file::lock_to_read(&dir)?;
        let mut lines = Vec::new();
        // The newest file is nearly empty if the one before was set aside just now.
        for path in file::files(&dir)?.iter().rev() {
            let mut file = file::open_file(File::options().read(true), path)?;
            let start = file.metadata()?.len().saturating_sub(max.saturating_sub(lines.len() as u64));
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            if start > 0 {
                let first = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                bytes.drain(..first);
            }
            bytes.append(&mut lines);
            lines = bytes;
            if start > 0 {
                break;
            }
        }
        Ok(lines)
    };
    // A missing log counts as empty.
    read().unwrap_or_default()
}
