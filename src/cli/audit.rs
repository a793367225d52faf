//! `pfimg audit`: summarizes the log of events, and checks that it is complete.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::envelope::print_json;
use super::packs;
use super::store_arg::StoreArg;
use super::text::{count, plain, print, table};
use crate::audit::broken::BrokenAt;
use crate::audit::read::{Faults, Mode, Unreadable};
use crate::audit::{
    Categories, Follower, OsSnapshot, Packs, SessionEvent, Tally, Violations, file, log, read,
    rebuild_os_snapshot_from_events,
};
use crate::daemon::forks;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::fork;
use crate::store::{Size, Store};

/// Largest trace that is read, in bytes.
const MAX_TRACE: u64 = 1 << 30;

/// Summarize the store's audit log, or the events of an image, fork or file. The log lists what pfimg did with the
/// store, and damage that it found. Exits with 4 if an event lacks a field that its kind needs.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct AuditArgs {
    /// Image or fork whose trace (its messages) to summarize [default: the store's own log]
    #[arg(value_name = "IMAGE|FORK", conflicts_with = "events")]
    subject: Option<String>,
    /// File with events of an agent's session: a JSON array, or one event after the other
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Check the chain of hashes in the log; if it is broken, name the first wrong line and exit with 4
    #[arg(long, conflicts_with = "subject")]
    verify: bool,
    /// Accept events that lack fields of their kind, and files without any event
    #[arg(long)]
    lenient: bool,
    /// List the store's crash packs, newest first. pfimg writes a crash pack, a directory with the evidence, when a
    /// check of its promises finds an error. Exits with 4 if one was changed
    #[arg(long, conflicts_with_all = ["subject", "events", "verify", "lenient"])]
    packs: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl AuditArgs {
    fn mode(&self) -> Mode {
        if self.lenient { Mode::Lenient } else { Mode::Strict }
    }
}

/// The figures of a log.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where the events come from.
    source: String,
    events: u64,
    /// Lines that are not session events.
    others: u64,
    /// Events that lack a field of their kind.
    faults: Faults,
    #[serde(flatten)]
    tally: Tally,
    /// Number and hash of the last line of a chained log.
    head: Option<ShownHead>,
    broken: Option<BrokenAt>,
    /// The findings of a store's oracles.
    #[serde(flatten)]
    found: Option<Found>,
    snapshot: OsSnapshot,
}

/// Violations in the log of a store, and its crash packs.
#[derive(Debug, Serialize)]
struct Found {
    violations: Violations,
    packs: Packs,
}

#[derive(Debug, Serialize)]
struct ShownHead {
    seq: u64,
    hash: String,
}

/// Writes a command's change to the store's log. The change is already made, so a failure is only a warning.
pub(crate) fn tell(store: &Store, command: &str, events: impl IntoIterator<Item = SessionEvent>) {
    if let Err(error) = log::tell(store.root(), command, events) {
        eprintln!("pfimg: {error}");
    }
}

/// Opens the log for the events of a running command. Without a log the command continues.
pub(crate) fn told(store: &Store, command: &str) -> log::Log {
    let warn = |what: &str| eprintln!("pfimg: {what}");
    log::Log::start_warning(store.root(), command, warn).unwrap_or_else(|error| {
        eprintln!("pfimg: cannot write the audit log: {error}");
        log::Log::off()
    })
}

pub(crate) fn run(store: &StoreArg, args: &AuditArgs) -> Result<ExitCode> {
    if args.packs {
        let whole = packs::list(&store.open()?, args.json)?;
        return Ok(if whole { ExitCode::SUCCESS } else { Exit::Damage.into() });
    }
    let shown = match (&args.events, &args.subject) {
        (Some(file), _) => of_file(file, args)?,
        (None, Some(subject)) => of_trace(&Arc::new(store.open()?), subject, args.mode())?,
        (None, None) => of_store(&store.open()?, args.mode())?,
    };
    if args.json {
        print_json(&shown)?;
    } else {
        print(&render(&shown, args.verify))?;
    }
    for fault in &shown.faults.first {
        eprintln!("pfimg: {}: {}", shown.source, plain(&fault.to_string(), 300));
    }
    let more = shown.faults.count - shown.faults.first.len() as u64;
    if more > 0 {
        eprintln!("pfimg: {}: and {}", shown.source, count(more, "more faulty event"));
    }
    if let Some(broken) = &shown.broken {
        eprintln!("pfimg: {}: line {}: {}", broken.file.display(), broken.line, plain(&broken.fault, 300));
    }
    let damaged = shown.faults.count > 0 || (args.verify && shown.broken.is_some());
    Ok(if damaged { Exit::Damage.into() } else { ExitCode::SUCCESS })
}

fn of_store(store: &Store, mode: Mode) -> Result<Shown> {
    let report = Follower::new(store.root()).catch_up()?;
    Ok(Shown {
        source: file::dir(store.root()).display().to_string(),
        events: report.events,
        others: 0,
        faults: if mode == Mode::Strict { report.faults } else { Faults::default() },
        tally: report.tally,
        head: Some(ShownHead { seq: report.seq, hash: report.head }),
        broken: report.broken,
        found: Some(Found { violations: report.violations, packs: report.packs }),
        snapshot: report.snapshot,
    })
}

fn of_file(path: &Path, args: &AuditArgs) -> Result<Shown> {
    let failed = |e| Error::io(e, format!("cannot read {}", path.display())).with_path(path);
    let bytes = std::fs::read(path).map_err(failed)?;
    let mut shown = of_bytes(path.display().to_string(), &bytes, args.mode())?;
    if args.mode() == Mode::Strict && shown.events == 0 && shown.faults.count == 0 {
        let what = if bytes.trim_ascii().is_empty() { "is empty" } else { "holds no session event" };
        return Err(Error::new(ErrorKind::InvalidInput, format!("{} {what}", path.display()))
            .with_hint("name a file with session events, or accept files without one with --lenient"));
    }
    if args.verify {
        match file::verify(path, &bytes)? {
            Ok(head) => shown.head = Some(ShownHead { seq: head.seq, hash: head.hash.hex() }),
            Err(broken) => shown.broken = Some(broken),
        }
    }
    Ok(shown)
}

fn of_bytes(source: String, bytes: &[u8], mode: Mode) -> Result<Shown> {
    let parsed = read::parse(bytes, mode).map_err(|unreadable| {
        let error = Error::new(ErrorKind::InvalidInput, format!("cannot read {source}: {unreadable}"));
        match unreadable {
            Unreadable::Encoding(from) => {
                error.with_hint(format!("convert the file with `iconv -f {from} -t UTF-8`"))
            }
            Unreadable::Array(_) => error,
        }
    })?;
    let mut tally = Tally::default();
    for event in &parsed.events {
        tally.apply(event);
    }
    Ok(Shown {
        source,
        events: parsed.events.len() as u64,
        others: parsed.others,
        faults: parsed.faults,
        tally,
        head: None,
        broken: None,
        found: None,
        snapshot: rebuild_os_snapshot_from_events(&parsed.events),
    })
}

fn of_trace(store: &Arc<Store>, subject: &str, mode: Mode) -> Result<Shown> {
    let registry = forks::registry(store, true)?;
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
        return of_bytes(format!("the trace of fork {subject}"), &bytes, mode);
    }
    let id = forks::image(store, subject)?;
    let trace = store.image(&id)?.manifest.trace.messages;
    let bytes = store
        .blobs()
        .read(&trace, Size::AtMost(MAX_TRACE))
        .map_err(|e| Error::from(e).context(format_args!("the trace of image {id}")))?;
    of_bytes(format!("the trace of image {id}"), &bytes, mode)
}

fn render(shown: &Shown, verified: bool) -> String {
    let mut out = format!("{}: {}", plain(&shown.source, 300), count(shown.events, "event"));
    if shown.faults.count > 0 {
        let _ = write!(out, ", {}", count(shown.faults.count, "faulty event"));
    }
    if shown.others > 0 {
        let _ = write!(out, ", {}", count(shown.others, "other line"));
    }
    if let Some(head) = &shown.head {
        let _ = write!(out, ", head {} {}", head.seq, &head.hash[..head.hash.len().min(16)]);
    }
    out.push_str(match (&shown.broken, verified) {
        (Some(_), _) => ", BROKEN\n",
        (None, true) if shown.events == 0 => ", empty\n",
        (None, true) => ", whole\n",
        (None, false) => "\n",
    });
    render_tally(&mut out, &shown.tally);
    if let Some(found) = &shown.found {
        render_found(&mut out, found);
    }
    render_snapshot(&mut out, &shown.snapshot);
    out
}

fn render_tally(out: &mut String, tally: &Tally) {
    let from = match tally.categories {
        Categories::Said => "said",
        Categories::Inferred => "inferred from the kind where an event says none",
    };
    let counts: Vec<String> =
        tally.by_category.iter().map(|(name, number)| format!("{name} {number}")).collect();
    let counts = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
    let _ = writeln!(out, "  categories  {from}{counts}");
    for (what, names) in
        [("categories", &tally.unknown_categories), ("primitives", &tally.unknown_primitives)]
    {
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| plain(name, 80)).collect();
            let _ = writeln!(out, "  unknown {what}  {}", names.join(", "));
        }
    }
}

fn render_found(out: &mut String, found: &Found) {
    let _ = writeln!(out, "  violations  {}", found.violations.count);
    for violation in &found.violations.newest {
        let (transfer, subject) = (plain(&violation.transfer, 80), plain(&violation.subject, 200));
        let pack = violation.crashpack.as_deref().map(|pack| format!(" [{}]", plain(pack, 80)));
        let (reason, pack) = (plain(&violation.reason, 500), pack.unwrap_or_default());
        let _ = writeln!(out, "    turn {}: {transfer} of {subject}: {reason}{pack}", violation.turn);
    }
    let _ = writeln!(out, "  crash_packs  {}", found.packs.count);
    for name in &found.packs.newest {
        let _ = writeln!(out, "    {}", plain(name, 80));
    }
}

fn render_snapshot(out: &mut String, snapshot: &OsSnapshot) {
    let resumed =
        snapshot.last_resumed_turn.map_or_else(|| "never".to_owned(), |turn| format!("turn {turn}"));
    let _ = writeln!(out, "  last_resumed  {resumed}");
    let suspended = snapshot.last_suspend.as_ref().map_or_else(
        || "never".to_owned(),
        |last| {
            let calls: Vec<String> = last.pending_calls.iter().map(|call| plain(call, 80)).collect();
            let waiting =
                if calls.is_empty() { String::new() } else { format!(", waiting for {}", calls.join(", ")) };
            format!("turn {}: {}{waiting}", last.turn, plain(&last.reason, 200))
        },
    );
    let _ = writeln!(out, "  last_suspend  {suspended}");
    for (name, number) in [
        ("page_in", snapshot.page_in_count),
        ("page_out", snapshot.page_out_count),
        ("tool_gated", snapshot.tool_gated_count),
        ("memory_written", snapshot.memory_written_count),
        ("memory_queried", snapshot.memory_queried_count),
        ("memory_validation_failed", snapshot.memory_validation_failed_count),
        ("memory_retrieval_result", snapshot.memory_retrieval_result_count),
    ] {
        let _ = writeln!(out, "  {name}  {number}");
    }
    for exceeded in &snapshot.budget_exceeded {
        let _ = writeln!(out, "  budget_exceeded  turn {}: {}", exceeded.turn, plain(&exceeded.budget, 200));
    }
    for signal in &snapshot.signals {
        let (id, disposition) = (plain(&signal.signal_id, 80), plain(&signal.disposition, 80));
        let _ = writeln!(
            out,
            "  signal  turn {}: {id}, {disposition}, queue_depth {}",
            signal.turn, signal.queue_depth
        );
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
}
