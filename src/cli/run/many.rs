//! Runs side by side, each in its own fork. Their output is kept, and each run has one line on the terminal.

use std::ffi::OsString;
use std::io::{IsTerminal as _, PipeReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, waitid};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use super::args::{RunArgs, option};
use super::changes::line;
use super::forks::{Fork, Runs};
use super::kept::Kept;
use super::one::{
    Ended, Lines, after_run, again, check_out, could_not_run, has_counts, is_changed, is_there, next,
    next_if_unchanged, seal, started_line,
};
use super::record::Record;
use crate::cli::envelope;
use crate::cli::text::{count, plain, plain_bytes, print};
use crate::error::{Error, Result};
use crate::sandbox::{self, CANNOT_RUN};
use crate::sync::Mutex;
use crate::util::limits;

/// The signals that are passed on to the runs.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGCONT];

/// The characters of the last line of output that a live line shows.
const SHOWN: usize = 200;

/// One of several runs.
struct Member<'a> {
    fork: &'a Fork,
    child: Child,
    output: PipeReader,
    bar: ProgressBar,
}

/// Runs the command in each fork and gives the largest exit code.
pub(super) fn run(runs: &Runs, args: &RunArgs) -> Result<u8> {
    let mut lines = Lines::to_file(args)?;
    let mut write = |line: &str| {
        if args.is_json_on_stdout() {
            let _ = print(line);
        }
        lines.write(line);
    };
    let failed = |error: Error| {
        runs.discard_made(!args.rm);
        error
    };
    if let Some(commit) = &args.from_commit {
        for fork in runs.forks.iter().filter(|fork| fork.is_made) {
            check_out(runs, fork, args, commit).map_err(failed)?;
        }
    }
    let started = Instant::now();
    let is_quiet = args.quiet || runs.conf.quiet;
    let bars = if is_quiet || !std::io::stderr().is_terminal() { None } else { Some(MultiProgress::new()) };
    let width = runs.forks.iter().map(|fork| fork.name.chars().count()).max().unwrap_or_default();
    // Before the first run starts, so that no signal is missed.
    let signals = Signals::new(PASSED_ON).map_err(|e| Error::io(e, "cannot handle signals"))?;
    let stop = signals.handle();
    let pids = Arc::new(Mutex::new(Vec::new()));
    let interrupted = pass_on(signals, &pids)?;
    let mut members = Vec::new();
    for fork in &runs.forks {
        // On this thread, which lives as long as the process: the kernel ends a run with the thread that
        // started it.
        match start(runs, fork, args) {
            Ok((child, output)) => {
                pids.lock().push(Pid::from_child(&child));
                write(&started_line(fork));
                let bar = bar(bars.as_ref(), &fork.name, width);
                members.push(Member { fork, child, output, bar });
            }
            Err(error) => {
                send(&pids, Signal::TERM);
                return Err(failed(error));
            }
        }
    }
    let ended = Mutex::new(Vec::new());
    let write = Mutex::new(write);
    thread::scope(|scope| {
        for member in members {
            let (ended, write, pids) = (&ended, &write, &*pids);
            scope.spawn(move || {
                let fork = member.fork;
                let (end, bar) = wait(runs, member, pids);
                // If the image cannot get the requested name, the other results still count.
                let image = args.tag.as_ref().and_then(|tag| {
                    let sealed = seal(runs, &fork.name, Some(tag), after_run(args))
                        .inspect_err(|error| sandbox::tell(error));
                    sealed.ok().map(|done| done.image)
                });
                let record = &end.record;
                let object = Ended { event: "ended", fork: &fork.name, made: fork.is_made, image, record };
                (*write.lock())(&envelope::result_line("run", &object));
                let text = end.text();
                bar.finish_with_message(text.lines().next().unwrap_or_default().to_owned());
                let failed = args.tag.is_some() && image.is_none();
                ended.lock().push((fork.name.clone(), end, failed));
            });
        }
    });
    stop.close();
    let ended = std::mem::take(&mut *ended.lock());
    let code = ended
        .iter()
        .map(|(_, end, failed)| if *failed && end.code == 0 { CANNOT_RUN } else { end.code })
        .max();
    let code = code.unwrap_or_default();
    if args.rm {
        runs.discard_made(false);
    }
    if let Some(bars) = bars {
        let _ = bars.clear();
    }
    if !is_quiet {
        // In the order of the names, and at a terminal again in full: above all, no deletion may be missing.
        for fork in &runs.forks {
            if let Some((name, end, _)) = ended.iter().find(|(name, _, _)| *name == fork.name) {
                sandbox::say(&format_args!("  {:width$}  {}", plain(name, usize::MAX), end.text()));
            }
        }
        let shown = best(runs, &ended);
        let output = if args.rm {
            String::new()
        } else {
            format!(". Output: pfimg{} output {}", runs.store_words, plain(&shown, usize::MAX))
        };
        sandbox::tell(&format_args!(
            "{} in {:.1} s, largest exit code {code}{output}",
            count(ended.len() as u64, "run"),
            started.elapsed().as_secs_f64(),
        ));
        if !args.rm {
            let changed = |(name, end, _): &(String, End, bool)| is_changed(runs, name, &end.record);
            let is_interrupted =
                |name: &str| ended.iter().any(|(of, end, _)| of == name && end.record.interrupted);
            let names = runs.forks.iter().map(|fork| fork.name.as_str());
            let interrupted: Vec<&str> = names.filter(|name| is_interrupted(name)).collect();
            if !interrupted.is_empty() {
                sandbox::say(&again(runs, &interrupted, &args.command));
            }
            if is_interrupted(&shown) {
                // No run ended by itself.
            } else if ended.iter().any(changed) {
                sandbox::say(&next(runs, &shown));
            } else {
                let names = runs.forks.iter().map(|fork| fork.name.as_str());
                let names: Vec<&str> = names.filter(|name| is_there(runs, name)).collect();
                if !names.is_empty() {
                    sandbox::say(&next_if_unchanged(runs, &names));
                }
            }
        }
    }
    if interrupted.lock().is_some() {
        // Only then does a shell end its loops and scripts.
        sandbox::end_by(SIGINT);
    }
    Ok(code)
}

/// The end of one of several runs.
struct End {
    code: u8,
    record: Record,
    last: String,
}

impl End {
    fn text(&self) -> String {
        let line = line(&self.record);
        // The output tells why a command could not be run.
        if could_not_run(self.code) && !self.last.is_empty() {
            format!("{line}   {}", self.last)
        } else {
            line
        }
    }
}

/// Returns the fork to look at first: one with changes, and of these one whose command succeeded.
fn best(runs: &Runs, ended: &[(String, End, bool)]) -> String {
    let rank = |name: &str| {
        let end = ended.iter().find(|(of, _, _)| of == name).map(|(_, end, _)| end);
        end.map_or((true, true, true, true), |end| {
            (
                end.record.interrupted,
                !is_changed(runs, name, &end.record),
                end.code != 0,
                !has_counts(&end.record),
            )
        })
    };
    let names = runs.forks.iter().map(|fork| fork.name.clone());
    names.min_by_key(|name| rank(name)).unwrap_or_default()
}

fn bar(bars: Option<&MultiProgress>, name: &str, width: usize) -> ProgressBar {
    let Some(bars) = bars else { return ProgressBar::hidden() };
    let bar = bars.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("  {prefix}  {elapsed:>4}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(format!("{:width$}", plain(name, usize::MAX)));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Starts this program for one fork.
fn start(runs: &Runs, fork: &Fork, args: &RunArgs) -> Result<(Child, PipeReader)> {
    let doing = "cannot start a process to run the command in";
    let failed = |e| Error::io(e, doing);
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let mut words: Vec<OsString> = vec![option("store", runs.store.root()), "run".into(), "--member".into()];
    for (name, paths) in [("write", &args.write), ("read", &args.read), ("hide", &args.hide)] {
        words.extend(paths.iter().map(|path| option(name, path)));
    }
    words.extend(args.env.iter().map(|env| option("env", env)));
    words.extend(args.at.iter().map(|at| option("at", at)));
    words.extend(args.timeout.map(|timeout| option("timeout", &format!("{}ms", timeout.as_millis()))));
    if args.no_network {
        words.push("--no-network".into());
    }
    words.extend([fork.name.clone().into(), "--".into()]);
    words.extend(args.command.iter().cloned());
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(words).stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let child = limits::with_original(|| command.spawn()).map_err(failed)?;
    Ok((child, reader))
}

/// Keeps what a run prints, and waits for its end.
fn wait(runs: &Runs, member: Member<'_>, pids: &Mutex<Vec<Pid>>) -> (End, ProgressBar) {
    let Member { fork, mut child, mut output, bar } = member;
    let store = runs.store.root();
    let pid = child.id();
    let mut kept = Kept::begin(store, &fork.name).inspect_err(|error| sandbox::tell(error)).ok();
    let (mut piece, mut last) = (vec![0; 64 << 10], Vec::new());
    loop {
        match output.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => {
                let bytes = &piece[..len];
                if let Some(Err(error)) = kept.as_mut().map(|kept| kept.add(bytes)) {
                    sandbox::tell(&format_args!("the output of {} is no longer kept: {error}", fork.name));
                    kept = None;
                }
                if let Some(line) = last_line(bytes) {
                    last = line.to_vec();
                    bar.set_message(plain_bytes(line, SHOWN));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // After the wait, another process may get its number.
    let _ = waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let mut pids = pids.lock();
    pids.retain(|pid| *pid != Pid::from_child(&child));
    let code = match child.wait() {
        Ok(status) => {
            use std::os::unix::process::ExitStatusExt as _;
            let code = status.code().or_else(|| Some(128 + status.signal()?));
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT_RUN)
        }
        Err(_) => CANNOT_RUN,
    };
    drop(pids);
    let record = Record::read(store, &fork.name).ok().flatten().filter(|record| record.pid == pid);
    let mut record = record.unwrap_or_default();
    record.exit = Some(code);
    (End { code, record, last: plain_bytes(&last, SHOWN) }, bar)
}

/// Returns the last line with text in a piece of output.
fn last_line(bytes: &[u8]) -> Option<&[u8]> {
    let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.rev().map(<[u8]>::trim_ascii).find(|line| !line.is_empty())
}

fn send(pids: &Mutex<Vec<Pid>>, signal: Signal) {
    for pid in pids.lock().iter() {
        let _ = kill_process(*pid, signal);
    }
}

/// Passes signals on to the runs, from a new thread. Returns whether SIGINT arrived.
fn pass_on(mut signals: Signals, pids: &Arc<Mutex<Vec<Pid>>>) -> Result<Arc<Mutex<Option<()>>>> {
    let (pids, interrupted) = (Arc::clone(pids), Arc::new(Mutex::new(None)));
    let noted = Arc::clone(&interrupted);
    let pass = move || {
        for signal in signals.forever() {
            let Some(named) = Signal::from_named_raw(signal) else { continue };
            if signal == SIGINT {
                *noted.lock() = Some(());
            }
            send(&pids, named);
            if signal == SIGTSTP {
                let _ = kill_process(getpid(), Signal::STOP);
            }
        }
    };
    thread::Builder::new()
        .name("pfimg-signals".into())
        .spawn(pass)
        .map_err(|e| Error::io(e, "cannot start a thread"))?;
    Ok(interrupted)
}
