//! A log whose callers pay no more than a place in a queue: a separate thread writes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use serde_json::json;

use super::event::SessionEvent;
use super::file::{self, Appender};
use super::note;
use super::verdict::Verdict;
use crate::crashpack::{Crashpack, Steps};
use crate::error::{Error, ErrorKind, Result};
use crate::oracle::{Transfer, TransferKind, TransferOracle};
use crate::sync::Mutex;
use crate::util::sharing::Sharing;

/// Events that wait to be written. Further events are counted and dropped: a flood of events must not fill
/// the memory.
const QUEUE: usize = 4096;

/// How long events are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(200);

/// The time between a failed attempt to write and the next one, if no event arrives before.
const AGAIN: Duration = Duration::from_secs(1);

/// The key for the number of times that an event happened.
const COUNT: &str = "count";

/// How many paths of one operation are named among events that are written together: a program that tries
/// every file of a tree must not fill the log.
const PATHS: usize = 16;

/// Events of a mount that only looks; they wait for the first event of a change.
const PENDING: usize = 256;

type Timed = (DateTime<Utc>, SessionEvent);

enum Message {
    /// An event; `true` if it starts a log where there is none yet.
    Note(Box<Timed>, bool),
    /// Asks for an answer once everything before this is written.
    Flush(Sender<()>),
    Stop,
}

struct Inner {
    store: PathBuf,
    /// Nothing if only crash packs are kept.
    queue: Option<Queue>,
    /// The number of violations so far.
    violations: AtomicU64,
}

struct Queue {
    sender: Sender<Message>,
    lost: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A handle to a store's log; clones write to the same one. An event is on disk within a second, after
/// [`Log::flush`], or when the last handle is dropped. If the log cannot be written, it warns, and tries
/// again until the last handle is dropped.
///
/// Looking at a store writes nothing into it: a log that does not exist is not made before the first change.
#[derive(Clone)]
pub struct Log(Option<Arc<Inner>>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.0.as_ref().map(|inner| &inner.store)).finish()
    }
}

/// Keeps a crash pack in a store.
fn keep(pack: &Crashpack, store: &Path) -> Result<PathBuf> {
    let (dir, sharing) = (file::crash_dir(store), Sharing::of(store));
    sharing
        .create_dir_below(store, &dir)
        .map_err(|e| Error::io(e, format!("cannot create {}", dir.display())))?;
    pack.keep_shared(&dir, sharing)
}

impl Log {
    /// A log that writes nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// A log that writes no events, but keeps violations as crash packs of the store in `store`.
    pub fn packs_only(store: &Path) -> Self {
        Self(Some(Arc::new(Inner { store: store.to_owned(), queue: None, violations: AtomicU64::new(0) })))
    }

    /// Starts writing the log of the store in `store`, for `command`.
    pub fn start(store: &Path, command: &str) -> std::io::Result<Self> {
        Self::start_warning(store, command, |what| tracing::warn!("{what}"))
    }

    /// Does the same, with a function that is called with each failure to write.
    pub fn start_warning(store: &Path, command: &str, warn: fn(&str)) -> std::io::Result<Self> {
        let (sender, messages) = bounded(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let recorder = Recorder {
            appender: Appender::new(store, command),
            awake: false,
            pending: Vec::new(),
            lost: Arc::clone(&lost),
            warned: false,
            warn,
        };
        let thread =
            thread::Builder::new().name("pfimg-audit".into()).spawn(move || recorder.run(&messages))?;
        let queue = Queue { sender, lost, thread: Mutex::new(Some(thread)) };
        let violations = AtomicU64::new(0);
        Ok(Self(Some(Arc::new(Inner { store: store.to_owned(), queue: Some(queue), violations }))))
    }

    /// Whether events are written.
    pub fn is_written(&self) -> bool {
        self.queue().is_some()
    }

    /// The number of violations that were reported to this log.
    pub fn violations(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.violations.load(Ordering::Relaxed))
    }

    fn queue(&self) -> Option<&Queue> {
        self.0.as_ref()?.queue.as_ref()
    }

    fn send(&self, event: SessionEvent, loud: bool) {
        let Some(queue) = self.queue() else { return };
        let message = Message::Note(Box::new((Utc::now(), event)), loud);
        if let Err(TrySendError::Full(_)) = queue.sender.try_send(message) {
            queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Logs a change or a refusal.
    pub fn note(&self, event: SessionEvent) {
        self.send(event, true);
    }

    /// Logs an event of a program that only looks; it does not make a log.
    pub fn note_quietly(&self, event: SessionEvent) {
        self.send(event, false);
    }

    /// Logs a failed operation, if the cause was a lack of room.
    pub fn note_failed(&self, operation: &str, error: &Error) {
        if error.kind() == ErrorKind::NoSpace {
            self.note(note::budget_exceeded("disk", operation));
        }
    }

    /// Waits until everything logged so far is written.
    pub fn flush(&self) {
        let Some(queue) = self.queue() else { return };
        let (done, written) = bounded(1);
        if queue.sender.send(Message::Flush(done)).is_ok() {
            let _ = written.recv();
        }
    }

    /// Judges a transfer by all five checks; see [`Log::judge_steps`].
    ///
    /// ```
    /// # use pfimg::audit::Log;
    /// # use pfimg::oracle::{Transfer, TransferKind, TransferState};
    /// # fn seal(log: &Log) -> pfimg::Result<()> {
    /// let state = TransferState { pending_operations: 1, ..TransferState::default() };
    /// let transfer = Transfer { kind: TransferKind::Seal, subject: "try-1".into(), state };
    /// if let Some(error) = log.judge(&transfer).error() {
    ///     return Err(error);
    /// }
    /// # Ok(())
    /// # }
    /// # assert!(seal(&Log::off()).is_err());
    /// ```
    pub fn judge(&self, transfer: &Transfer) -> Verdict {
        let oracle = TransferOracle::new(transfer.kind.name());
        self.judged(&oracle, transfer, None, || {
            Crashpack::new().with_judged(oracle.clone(), transfer.clone())
        })
    }

    /// Judges a transfer by the state that its steps give, by all five checks. A violation is logged and kept
    /// as a crash pack with the steps; the caller turns it into an error with [`Verdict::error`].
    pub fn judge_steps(&self, kind: TransferKind, subject: &str, steps: &Steps) -> Verdict {
        let (oracle, transfer) = (TransferOracle::new(kind.name()), steps.transfer(kind, subject));
        let wrong = steps.first_wrong().map(str::to_owned);
        self.judged(&oracle, &transfer, wrong, || steps.clone().into_pack(oracle.clone(), transfer.clone()))
    }

    fn judged(
        &self,
        oracle: &TransferOracle,
        transfer: &Transfer,
        seen: Option<String>,
        pack: impl FnOnce() -> Crashpack,
    ) -> Verdict {
        let result = oracle.validate_transfer(&transfer.state);
        let Some(error) = result.error() else { return Verdict { result, pack: None, seen } };
        tracing::error!(subject = transfer.subject, "{error}");
        let pack = pack()
            .with_metadata("pfimg", env!("CARGO_PKG_VERSION"))
            .with_metadata("subject", &transfer.subject);
        if let Some(inner) = &self.0 {
            inner.violations.fetch_add(1, Ordering::Relaxed);
        }
        let kept = self.0.as_ref().map(|inner| keep(&pack, &inner.store));
        let kept = match kept {
            Some(Ok(dir)) => {
                tracing::error!("a crash pack was kept in {}; `pfimg replay` judges it again", dir.display());
                Some(dir)
            }
            Some(Err(error)) => {
                tracing::warn!("{error}");
                None
            }
            None => None,
        };
        let name = kept.as_ref().and_then(|dir| dir.file_name()).map(|name| name.to_string_lossy());
        self.note(note::violation(
            transfer.kind.name(),
            &transfer.subject,
            &error.to_string(),
            name.as_deref(),
        ));
        Verdict { result, pack: kept, seen }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The queue may be full: the thread empties it.
        let _ = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// The state of the writing thread.
struct Recorder {
    appender: Appender,
    /// Whether there is a log, or an event to make one for.
    awake: bool,
    pending: Vec<Timed>,
    lost: Arc<AtomicU64>,
    warned: bool,
    warn: fn(&str),
}

impl Recorder {
    fn run(mut self, messages: &Receiver<Message>) {
        self.awake = self.appender.exists();
        let mut stop = false;
        while !stop {
            let mut next = if self.awake && !self.pending.is_empty() {
                match messages.recv_timeout(AGAIN) {
                    Err(RecvTimeoutError::Disconnected) => break,
                    message => message.ok(),
                }
            } else {
                let Ok(message) = messages.recv() else { break };
                Some(message)
            };
            let until = Instant::now() + GATHER;
            let mut flushed = Vec::new();
            let mut gathered = 0;
            while let Some(message) = next.take() {
                match message {
                    Message::Note(event, loud) => {
                        self.awake |= loud;
                        self.pending.push(*event);
                        gathered += 1;
                    }
                    Message::Flush(done) => flushed.push(done),
                    Message::Stop => stop = true,
                }
                if !stop && flushed.is_empty() && gathered < QUEUE {
                    next = messages.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
                }
            }
            self.write();
            for done in flushed {
                let _ = done.send(());
            }
        }
        if self.awake && !self.pending.is_empty() {
            let lost = self.pending.len() as u64 + self.lost.load(Ordering::Relaxed);
            let path = self.appender.path();
            (self.warn)(&format!(
                "{lost} events are not in {}: the program ended before it could write them",
                path.display()
            ));
        }
    }

    /// Writes the waiting events. If that fails they stay in the queue, up to its limit.
    fn write(&mut self) {
        if !self.awake {
            self.awake = self.appender.exists();
        }
        if !self.awake {
            let excess = self.pending.len().saturating_sub(PENDING);
            self.pending.drain(..excess);
            return;
        }
        self.pending = merge(std::mem::take(&mut self.pending));
        let waiting = self.pending.len();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.pending.push((Utc::now(), note::about_the_log("events_lost", json!({"count": lost}))));
        }
        if self.pending.is_empty() {
            return;
        }
        match self.appender.append(&self.pending) {
            Ok(_) => {
                self.pending.clear();
                self.warned = false;
            }
            Err(error) => {
                self.pending.truncate(waiting.min(QUEUE));
                let excess = (waiting - self.pending.len()) as u64;
                self.lost.fetch_add(lost + excess, Ordering::Relaxed);
                if !self.warned {
                    (self.warn)(&error.to_string());
                    self.warned = true;
                }
            }
        }
    }
}

/// Merges calls that were refused for the same reason at the same path into one event with a count. Only the
/// first paths of one operation have separate events; the rest share one that names no path.
fn merge(events: Vec<Timed>) -> Vec<Timed> {
    let mut merged: Vec<Timed> = Vec::with_capacity(events.len());
    let mut seen: HashMap<String, (usize, u64)> = HashMap::new();
    let mut paths: HashMap<String, usize> = HashMap::new();
    for (time, mut event) in events {
        let mut key = key(&event);
        if let (Some(known), SessionEvent::ToolGated(noted)) = (&key, &mut event)
            && !seen.contains_key(known)
        {
            let operation = format!("{:?} {:?}", noted.extra.get("tool"), noted.extra.get("reason"));
            let number = paths.entry(operation).or_default();
            *number += 1;
            if *number > PATHS {
                noted.extra.remove("path");
                key = self::key(&event);
            }
        }
        let Some(key) = key else {
            merged.push((time, event));
            continue;
        };
        if let Some((index, count)) = seen.get_mut(&key) {
            *count += times(&event);
            if let Some(noted) = merged.get_mut(*index).and_then(|(_, event)| event.noted_mut()) {
                noted.extra.insert(COUNT.to_owned(), (*count).into());
            }
        } else {
            seen.insert(key, (merged.len(), times(&event)));
            merged.push((time, event));
        }
    }
    merged
}

/// How often it happened, by the count in a merged event.
fn times(event: &SessionEvent) -> u64 {
    let said = event.noted().and_then(|noted| noted.extra.get(COUNT));
    said.and_then(serde_json::Value::as_u64).unwrap_or(1)
}

/// The key by which two events are merged: everything but the number of the call. Nothing for events that are
/// not merged.
fn key(event: &SessionEvent) -> Option<String> {
    if !matches!(event, SessionEvent::ToolGated(_) | SessionEvent::BudgetExceeded(_)) {
        return None;
    }
    let mut event = event.clone();
    let noted = event.noted_mut()?;
    noted.extra.remove("call_id");
    noted.extra.remove(COUNT);
    serde_json::to_string(&event).ok()
}

/// Logs events of a command that is about to end.
pub fn tell(store: &Path, command: &str, events: impl IntoIterator<Item = SessionEvent>) -> Result<()> {
    file::append_now(store, command, events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::follow::Follower;
    use crate::oracle::TransferState;

    #[test]
    fn events_are_in_the_log_after_a_flush_and_after_the_last_handle_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut follower = Follower::new(dir.path());
        let log = Log::start(dir.path(), "test").unwrap();
        log.note(note::fork_made("a", None));
        log.flush();
        assert_eq!(follower.catch_up().unwrap().snapshot.process_by_agent.len(), 1);
        let other = log.clone();
        drop(log);
        other.note(note::fork_made("b", None));
        drop(other);
        let report = follower.catch_up().unwrap();
        assert_eq!((report.snapshot.process_by_agent.len(), report.broken), (2, None));
    }

    #[test]
    fn reading_makes_no_log_and_the_first_change_writes_earlier_events() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(dir.path(), "test").unwrap();
        log.note_quietly(note::resumed("/mnt"));
        log.flush();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        log.note(note::fork_made("a", None));
        log.flush();
        let report = Follower::new(dir.path()).catch_up().unwrap();
        assert_eq!((report.events, report.snapshot.last_resumed_turn), (2, Some(1)));
    }

    #[test]
    fn a_repeated_refusal_is_one_event_with_a_count() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(dir.path(), "test").unwrap();
        for n in 0..1000 {
            log.note(note::gated("write", "read-only", Some("a"), &format!("7-{n}")));
        }
        log.note(note::gated("unlink", "read-only", Some("a"), "7-1000"));
        drop(log);
        let bytes = std::fs::read_to_string(file::dir(dir.path()).join(file::CURRENT)).unwrap();
        assert!(bytes.lines().count() < 20, "{bytes}");
        let count: u64 = bytes
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
            .filter(|event| event["tool"] == "write")
            .map(|event| event.get("count").map_or(1, |count| count.as_u64().unwrap()))
            .sum();
        assert_eq!(count, 1000);
    }

    #[test]
    fn calls_of_different_paths_are_told_apart_up_to_a_number_of_paths() {
        let gated = |path: String, call: usize| {
            (Utc::now(), note::gated("unlink", "read-only", Some(&path), &format!("7-{call}")))
        };
        let events = (0..100).map(|n| gated(format!("p{}", n % 50), n)).collect();
        let merged: Vec<serde_json::Value> =
            merge(events).iter().map(|(_, event)| serde_json::to_value(event).unwrap()).collect();
        assert_eq!(merged.len(), PATHS + 1);
        assert_eq!(
            (&merged[0]["path"], &merged[0]["call_id"], &merged[0]["count"]),
            (&json!("p0"), &json!("7-0"), &json!(2))
        );
        let rest = &merged[PATHS];
        assert_eq!((rest.get("path"), &rest["count"]), (None, &json!(2 * (50 - PATHS))));
        // Events that could not be written are merged again with later ones.
        let again = merge(merge((0..40).map(|n| gated(format!("p{}", n % 20), n)).collect()));
        let count: u64 = again.iter().map(|(_, event)| times(event)).sum();
        assert_eq!((again.len(), count), (PATHS + 1, 40));
    }

    #[test]
    fn unwritten_events_are_written_later_and_dropped_ones_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let told = QUEUE as u64 + 500;
        let log = Log::start(dir.path(), "test").unwrap();
        // The folder of a log cannot be made there.
        std::fs::write(file::dir(dir.path()), b"in the way").unwrap();
        for n in 0..told {
            log.note(note::fork_made(&format!("f{n}"), None));
            if n % 1000 == 0 {
                log.flush();
            }
        }
        log.flush();
        log.flush();
        std::fs::remove_file(file::dir(dir.path())).unwrap();
        let current = file::dir(dir.path()).join(file::CURRENT);
        let until = Instant::now() + Duration::from_secs(30);
        while !current.exists() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        drop(log);
        let report = Follower::new(dir.path()).catch_up().unwrap();
        assert_eq!(report.snapshot.process_by_agent[0].agent_id, "f0");
        let bytes = std::fs::read_to_string(current).unwrap();
        let lost: u64 = bytes
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
            .filter(|event| event["kind"] == "events_lost")
            .map(|event| event["count"].as_u64().unwrap())
            .sum();
        assert_eq!((lost, report.snapshot.process_by_agent.len() as u64 + lost), (500, told));
        assert_eq!(report.broken, None);
    }

    #[test]
    fn a_violation_is_an_event_an_error_and_a_pack_that_reproduces_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(dir.path(), "test").unwrap();
        let mut transfer =
            Transfer { kind: TransferKind::Seal, subject: "f".into(), state: TransferState::default() };
        assert!(log.judge(&transfer).result.passed);
        transfer.state.leaked_obligations = 1;
        let verdict = log.judge(&transfer);
        let error = verdict.error().unwrap();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        drop(log);
        let bytes = std::fs::read_to_string(file::dir(dir.path()).join(file::CURRENT)).unwrap();
        let record: serde_json::Value = serde_json::from_str(&bytes).unwrap();
        assert_eq!(record["event"]["kind"], "milestone_blocked");
        let pack = file::crash_dir(dir.path()).join(record["event"]["crashpack"].as_str().unwrap());
        let replay = crate::crashpack::replay::replay(&pack, &[]).unwrap();
        assert!(replay.reproduces() && replay.results == [verdict.result]);
        // The error tells its reader where to look.
        assert!(error.to_string().contains(&format!("pfimg replay {}", pack.display())), "{error}");
    }

    #[test]
    fn a_log_that_is_off_writes_nothing_and_still_judges() {
        let log = Log::off();
        log.note(note::fork_made("a", None));
        log.flush();
        let state = TransferState { journal_gaps: 1, ..TransferState::default() };
        assert!(
            !log.judge(&Transfer { kind: TransferKind::Import, subject: "x".into(), state }).result.passed
        );
    }

    #[test]
    fn a_log_of_packs_only_keeps_what_the_oracles_find_and_writes_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::packs_only(dir.path());
        log.note(note::fork_made("a", None));
        log.flush();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let state = TransferState { journal_gaps: 1, ..TransferState::default() };
        assert!(!log.judge(&Transfer { kind: TransferKind::Seal, subject: "f".into(), state }).result.passed);
        drop(log);
        assert!(!file::dir(dir.path()).join(file::CURRENT).exists());
        let packs: Vec<_> = std::fs::read_dir(file::crash_dir(dir.path())).unwrap().collect();
        let [Ok(pack)] = &packs[..] else { panic!("{packs:?}") };
        assert!(crate::crashpack::replay::replay(&pack.path(), &[]).unwrap().reproduces());
    }
}
