//! `pfimg audit`: what happened, and whether the log of it is whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::StoreArg;
use super::images::DAMAGED;
use super::place;
use super::text::{count, plain, print, print_json, table};
use crate::audit::chain::{self, Head};
use crate::audit::follow::BrokenAt;
use crate::audit::{
    Follower, OsSnapshot, SessionEvent, log, read, rebuild_os_snapshot_from_events,
    session_log_has_required_categories,
};
use crate::error::{Error, ErrorKind, Result};
use crate::fork;
use crate::store::{Size, Store};

/// Largest trace that is read, in bytes.
const MAX_TRACE: u64 = 1 << 30;

/// Show what the store's log, an image's or fork's trace, or a file of session events adds up to.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// An image or fork whose trace holds session events [default: the store's own log]
    #[arg(value_name = "IMAGE|FORK", conflicts_with = "events")]
    subject: Option<String>,
    /// A file of session events: an array of them, or one a line
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Check the chain; exits with 4 and names the first line that breaks it
    #[arg(long, conflicts_with = "subject")]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What there is to say of a log.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where the events come from.
    source: String,
    events: u64,
    /// Lines that are no session events.
    others: u64,
    /// Whether every decision says its category.
    categories: bool,
    /// Number and hash of the last line, of a chained log.
    head: Option<ShownHead>,
    broken: Option<BrokenAt>,
    snapshot: OsSnapshot,
}

#[derive(Debug, Serialize)]
struct ShownHead {
    seq: u64,
    hash: String,
}

/// Tells a store's log what a command changed. The change is made: a log that cannot be written is a warning.
pub(crate) fn tell(store: &Store, command: &str, events: impl IntoIterator<Item = SessionEvent>) {
    if let Err(error) = log::tell(store.root(), command, events) {
        eprintln!("pfimg: {error}");
    }
}

/// The log that a command tells of what it does as it goes. Without one it goes on.
pub(crate) fn told(store: &Store, command: &str) -> log::Log {
    let warn = |what: &str| eprintln!("pfimg: {what}");
    log::Log::start_warning(store.root(), command, warn).unwrap_or_else(|error| {
        eprintln!("pfimg: the audit log is not written: {error}");
        log::Log::off()
    })
}

pub(crate) fn run(store: &StoreArg, args: &AuditArgs) -> Result<ExitCode> {
    let shown = match (&args.events, &args.subject) {
        (Some(file), _) => of_file(file, args.verify)?,
        (None, Some(subject)) => of_trace(&Arc::new(store.open()?), subject)?,
        (None, None) => of_store(&store.open()?)?,
    };
    if args.json {
        print_json(&shown)?;
    } else {
        print(&render(&shown, args.verify))?;
    }
    if let Some(broken) = &shown.broken {
        eprintln!("pfimg: {}: line {}: {}", broken.file.display(), broken.line, plain(&broken.fault, 300));
    }
    Ok(if args.verify && shown.broken.is_some() { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS })
}

fn of_store(store: &Store) -> Result<Shown> {
    let report = Follower::new(store.root()).catch_up()?;
    Ok(Shown {
        source: crate::audit::file::dir(store.root()).display().to_string(),
        events: report.events,
        others: 0,
        categories: report.categories,
        head: Some(ShownHead { seq: report.seq, hash: report.head }),
        broken: report.broken,
        snapshot: report.snapshot,
    })
}

fn of_file(path: &Path, verify: bool) -> Result<Shown> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(e, format!("cannot read {}", path.display())))?;
    let mut shown = of_bytes(path.display().to_string(), &bytes);
    if verify {
        // A file that is part of a longer chain says itself what it hangs on.
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let start = chain::decode(first).ok().and_then(|(record, _)| {
            let hash = crate::store::Digest::from_hex(&record.prev).ok()?;
            Some(Head { seq: record.seq.checked_sub(1)?, hash })
        });
        match chain::verify(start.unwrap_or(Head::START), &bytes) {
            Ok(head) => shown.head = Some(ShownHead { seq: head.seq, hash: head.hash.hex() }),
            Err(broken) => {
                let fault = broken.fault.to_string();
                shown.broken = Some(BrokenAt { file: path.to_owned(), line: broken.line, fault });
            }
        }
    }
    Ok(shown)
}

fn of_bytes(source: String, bytes: &[u8]) -> Shown {
    let parsed = read::parse(bytes);
    Shown {
        source,
        events: parsed.events.len() as u64,
        others: parsed.others,
        categories: session_log_has_required_categories(&parsed.events),
        head: None,
        broken: None,
        snapshot: rebuild_os_snapshot_from_events(&parsed.events),
    }
}

fn of_trace(store: &Arc<Store>, subject: &str) -> Result<Shown> {
    let registry = place::registry(store, true)?;
    if registry.contains(subject) {
        let fork = registry.get(subject)?;
        let bytes = match fork
            .lookup(fork::Ino::TOP, b"trace")
            .and_then(|trace| fork.lookup(trace.ino, b"messages.jsonl"))
        {
            Ok(file) => {
                let len = usize::try_from(file.size.min(MAX_TRACE)).unwrap_or(usize::MAX);
                fork.read_vec(file.ino, 0, len)?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.context(format_args!("the trace of fork {subject:?}"))),
        };
        return Ok(of_bytes(format!("the trace of fork {subject}"), &bytes));
    }
    let id = store.resolve(subject)?;
    let trace = store.image(&id)?.manifest.trace.messages;
    let bytes = store
        .blobs()
        .read(&trace, Size::AtMost(MAX_TRACE))
        .map_err(|e| Error::from(e).context(format_args!("the trace of image {id}")))?;
    Ok(of_bytes(format!("the trace of image {id}"), &bytes))
}

fn render(shown: &Shown, verified: bool) -> String {
    let snapshot = &shown.snapshot;
    let mut out = format!("{}: {}", plain(&shown.source, 300), count(shown.events, "event"));
    if shown.others > 0 {
        let _ = write!(out, ", {} besides", count(shown.others, "line"));
    }
    if let Some(head) = &shown.head {
        let _ = write!(out, ", head {} {}", head.seq, &head.hash[..head.hash.len().min(16)]);
    }
    out.push_str(match (&shown.broken, verified) {
        (Some(_), _) => ", BROKEN\n",
        (None, true) => ", whole\n",
        (None, false) => "\n",
    });
    if !shown.categories {
        out.push_str("  some decisions say no category\n");
    }
    if let Some(turn) = snapshot.last_resumed_turn {
        let _ = writeln!(out, "  resumed    turn {turn}");
    }
    if let Some(last) = &snapshot.last_suspend {
        let _ = writeln!(out, "  suspended  turn {}: {}", last.turn, plain(&last.reason, 200));
    }
    for (name, number) in [
        ("page_in", snapshot.page_in_count),
        ("page_out", snapshot.page_out_count),
        ("tool_gated", snapshot.tool_gated_count),
        ("memory_written", snapshot.memory_written_count),
        ("memory_queried", snapshot.memory_queried_count),
        ("memory_validation_failed", snapshot.memory_validation_failed_count),
        ("memory_retrieval_result", snapshot.memory_retrieval_result_count),
    ] {
        if number > 0 {
            let _ = writeln!(out, "  {name}  {number}");
        }
    }
    for exceeded in &snapshot.budget_exceeded {
        let _ = writeln!(out, "  budget_exceeded  turn {}: {}", exceeded.turn, plain(&exceeded.budget, 200));
    }
    for signal in &snapshot.signals {
        let (id, disposition) = (plain(&signal.signal_id, 80), plain(&signal.disposition, 80));
        let _ = writeln!(out, "  signal  turn {}: {id}, {disposition}", signal.turn);
    }
    let rows: Vec<[String; 4]> = snapshot
        .process_by_agent
        .iter()
        .map(|process| {
            [
                plain(&process.agent_id, 60),
                plain(&process.state, 30),
                process.turn.to_string(),
                plain(&process.parent_session_id, 80),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.push_str(&table(["AGENT", "STATE", "TURN", "PARENT"], &rows));
    }
    out
}
