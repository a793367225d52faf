//! A run in one fork, whose command has the caller's terminal.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::args::RunArgs;
use super::changes::{Changes, line};
use super::commits::Commits;
use super::forks::{Fork, Runs};
use super::record::Record;
use super::sandboxed::{self, Job};
use crate::cli::envelope;
use crate::cli::text::plain;
use crate::control::protocol::Sealed;
use crate::daemon::calls;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::About;
use crate::fork::beside::{self, OnDisk};
use crate::ops::line::Line;
use crate::sandbox::{self, CANNOT_RUN, NO_COMMAND, Outcome};

/// A longer command is not repeated in full, in characters.
const LONGEST: usize = 80;

/// The exit code after a timeout, as in timeout(1).
pub(super) const TIMED_OUT: u8 = 124;

/// An ended run, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Ended<'a> {
    pub(super) event: &'static str,
    pub(super) fork: &'a str,
    /// Whether this run made the fork.
    pub(super) made: bool,
    /// The image that was made for `--tag`.
    pub(super) image: Option<Digest>,
    #[serde(flatten)]
    pub(super) record: &'a Record,
}

/// The destination of JSON lines.
pub(super) struct Lines(Option<File>);

impl Lines {
    /// Opens the file that the caller named.
    pub(super) fn to_file(args: &RunArgs) -> Result<Self> {
        let path = args.json.clone().filter(|_| !args.is_json_on_stdout());
        let open = |path: PathBuf| {
            File::create(&path).map_err(|e| Error::io(e, format!("cannot write {}", path.display())))
        };
        path.map(open).transpose().map(Self)
    }

    pub(super) fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.0
            && let Err(error) = file.write_all(line.as_bytes())
        {
            sandbox::tell(&format_args!("cannot write the JSON of this run: {error}"));
            self.0 = None;
        }
    }
}

/// The line for the start of a run.
pub(super) fn started_line(fork: &Fork) -> String {
    let at = fork.at.as_ref().map(|at| at.to_string_lossy());
    envelope::result_line(
        "run",
        &json!({"event": "started", "fork": fork.name, "made": fork.is_made, "at": at}),
    )
}

/// Runs the command and prints its changes. Returns its exit code.
pub(super) fn run(runs: &Runs, args: &RunArgs) -> Result<u8> {
    let [fork] = &runs.forks[..] else { return Err(Error::new(ErrorKind::NotFound, "no fork")) };
    let mut lines = Lines::to_file(args)?;
    let mut run = || {
        if let (Some(commit), true) = (&args.from_commit, fork.is_made) {
            check_out(runs, fork, args, commit)?;
        }
        lines.write(&started_line(fork));
        one(runs, fork, args)
    };
    let done = match run() {
        Ok(done) => done,
        Err(error) => {
            runs.discard_made(!args.rm);
            return Err(error);
        }
    };
    let is_gone = fork.is_made && (args.rm || could_not_run(done.outcome.code));
    if is_gone {
        // A changed fork is discarded on request only.
        runs.discard_made(!args.rm);
    }
    let Done { record, image, outcome } = done;
    let failed = image.is_none() && args.tag.is_some();
    lines.write(&envelope::result_line(
        "run",
        &Ended { event: "ended", fork: &fork.name, made: fork.is_made, image, record: &record },
    ));
    if is_told(runs, fork, args) {
        sandbox::say(&format_args!("  {}  {}", plain(&fork.name, usize::MAX), line(&record)));
        if let (Some(image), Some(tag)) = (image, &args.tag) {
            sandbox::tell(&format_args!("sealed {} as {tag} ({})", fork.name, &image.hex()[..12]));
        }
        if !is_gone {
            if record.interrupted {
                sandbox::say(&again(runs, &[&fork.name], &args.command));
            } else if is_changed(runs, &fork.name, &record) {
                sandbox::say(&next(runs, &fork.name));
            } else if is_there(runs, &fork.name) {
                sandbox::say(&next_if_unchanged(runs, &[&fork.name]));
            }
        } else if !args.rm {
            sandbox::tell(&format_args!("discarded fork {:?}: its command could not be started", fork.name));
        }
        if let Some(hidden) = hidden_program(outcome.code, &args.command, fork.at.as_deref()) {
            let hidden = plain(&hidden.to_string_lossy(), usize::MAX);
            sandbox::tell(&format_args!(
                "{hidden} is hidden in the run, which has a private /tmp (allow it with `--read {hidden}`)"
            ));
        }
    }
    let code = if outcome.timed_out { TIMED_OUT } else { outcome.pass_on() };
    // The work exists, but not under the requested name.
    Ok(if failed && code == 0 { CANNOT_RUN } else { code })
}

/// Returns whether an exit code means that the command was not started.
pub(super) fn could_not_run(code: u8) -> bool {
    (CANNOT_RUN..=NO_COMMAND).contains(&code)
}

/// Returns the program that a run did not find because it lies in a directory for temporary files: a run has its own.
/// A program at `at`, where the fork is shown, is one of the fork.
fn hidden_program<'a>(code: u8, command: &'a [OsString], at: Option<&Path>) -> Option<&'a Path> {
    let program = Path::new(command.first().filter(|_| code == NO_COMMAND)?);
    let is_private = ["/tmp", "/var/tmp"].iter().any(|dir| program.starts_with(dir));
    let is_of_fork = at.is_some_and(|at| program.starts_with(at));
    (is_private && !is_of_fork && program.is_file()).then_some(program)
}

/// Returns whether to find and print the changes of a run: only if the fork is shown in its project's place, as
/// in a run with `--`. The older form, in a fork's own directory, stays silent.
fn is_told(runs: &Runs, fork: &Fork, args: &RunArgs) -> bool {
    !args.quiet && !runs.conf.quiet && is_compared(fork, args) && !args.member
}

fn is_compared(fork: &Fork, args: &RunArgs) -> bool {
    !args.older_form || fork.at.is_some()
}

/// An ended run.
struct Done {
    record: Record,
    image: Option<Digest>,
    outcome: Outcome,
}

fn one(runs: &Runs, fork: &Fork, args: &RunArgs) -> Result<Done> {
    let (store, name) = (&runs.store, fork.name.as_str());
    let files = calls::files_of(&runs.mountpoint, name);
    let is_compared = is_compared(fork, args);
    // Also if nothing is compared: the state before a mistake is kept.
    let before = if is_compared || !fork.is_made { before(runs, fork, &args.command) } else { None };
    let commits = if is_compared { Commits::read(&files) } else { Commits::default() };
    let mut record = Record::begin(&args.command, &OnDisk::read(store.root(), name)?, fork.at.as_deref());
    // A read-only store has no records.
    let is_recorded = record.write(store.root(), name).is_ok();
    let started = Instant::now();
    let job = Job {
        store,
        mountpoint: &runs.mountpoint,
        socket: runs.client.socket(),
        cache_dir: &runs.cache_dir,
        fork: name,
        at: fork.at.as_deref(),
        project: fork.project.as_deref(),
        start: &fork.start,
        command: &args.command,
    };
    let ran = sandboxed::run(&job, args, &runs.conf, runs.given(args));
    let seconds = started.elapsed().as_secs_f64();
    record.end();
    let outcome = match ran {
        Ok(outcome) => outcome,
        Err(error) => {
            let _ = record.write(store.root(), name);
            return Err(error);
        }
    };
    record.exit = Some(if outcome.timed_out { TIMED_OUT } else { outcome.code });
    record.timed_out = outcome.timed_out;
    record.seconds = Some((seconds * 1000.0).round() / 1000.0);
    // A fork that was discarded during the run cannot be compared.
    let is_there = OnDisk::read(store.root(), name).is_ok_and(|now| now.created_ns == record.fork_created_ns);
    if is_there && is_compared {
        record.commits = Commits::read(&files).since(&commits).map(|made| made.number);
        match changes(runs, fork, before) {
            Ok(Some(changes)) => {
                (record.added, record.changed, record.deleted) =
                    (Some(changes.added), Some(changes.changed), Some(changes.deleted));
                record.deletions = changes.deletions;
            }
            Ok(None) => {}
            Err(error) => {
                record.interrupted = crate::mount::silent::is_dead(&runs.mountpoint);
                sandbox::tell(&error.context(format_args!("cannot tell what changed in fork {name:?}")));
            }
        }
    }
    if !is_there {
        sandbox::tell(&format_args!("fork {name:?} was discarded while the command ran"));
    } else if is_recorded && let Err(error) = record.write(store.root(), name) {
        sandbox::tell(&error);
    }
    let image = args.tag.as_ref().filter(|_| is_there).and_then(|tag| {
        let sealed = seal(runs, name, Some(tag), after_run(args)).inspect_err(|error| sandbox::tell(error));
        sealed.ok().map(|done| done.image)
    });
    Ok(Done { record, image, outcome })
}

/// The image that equals a fork before a run, or nothing.
#[derive(Clone, Copy, Debug)]
struct Before(Option<Digest>);

/// Returns the state of a fork before a run: an image, or nothing. Unsealed changes are sealed, so that this
/// state can be restored. `None` if that fails.
fn before(runs: &Runs, fork: &Fork, command: &[OsString]) -> Option<Before> {
    let look = || {
        if !fork.is_made {
            calls::flush(&runs.client, &fork.name)?;
        }
        let now = OnDisk::read(runs.store.root(), &fork.name)?;
        if now.is_untouched {
            return Ok(Before(now.base));
        }
        let about = About::after(format!("before run of {}", command_word(command)));
        seal(runs, &fork.name, None, about).map(|done| Before(Some(done.image)))
    };
    look()
        .inspect_err(|error: &Error| {
            sandbox::tell(&format_args!(
                "cannot keep the state of fork {:?} before this run: {error}",
                fork.name
            ));
        })
        .ok()
}

pub(super) fn seal(runs: &Runs, fork: &str, tag: Option<&str>, about: About) -> Result<Sealed> {
    calls::seal(&runs.client, fork, tag, false, about)
}

/// The reason for a seal at the end of a run.
pub(super) fn after_run(args: &RunArgs) -> About {
    About::after(format!("run of {}", command_word(&args.command)))
}

/// Returns the command in one word.
fn command_word(command: &[OsString]) -> String {
    let program = command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
    beside::command_name(&program)
}

fn changes(runs: &Runs, fork: &Fork, before: Option<Before>) -> Result<Option<Changes>> {
    let Some(Before(before)) = before else { return Ok(None) };
    calls::flush(&runs.client, &fork.name)?;
    Changes::since(&runs.store, &fork.name, before).map(Some)
}

/// Returns whether a fork exists; another program may have discarded it.
pub(super) fn is_there(runs: &Runs, fork: &str) -> bool {
    OnDisk::read(runs.store.root(), fork).is_ok()
}

/// Returns whether a fork exists and may have changes: of this run, or of earlier ones.
pub(super) fn is_changed(runs: &Runs, fork: &str, record: &Record) -> bool {
    let Ok(now) = OnDisk::read(runs.store.root(), fork) else { return false };
    let is_as_made = |line: Line| now.is_untouched && now.base == line.origin();
    has_counts(record) || !Line::of_name(&runs.store, fork).is_ok_and(is_as_made)
}

/// Returns whether a run itself changed something, as far as that is known.
pub(super) fn has_counts(record: &Record) -> bool {
    [record.added, record.changed, record.deleted, record.commits].into_iter().flatten().any(|n| n > 0)
}

/// Returns the command that removes forks without changes.
pub(super) fn next_if_unchanged(runs: &Runs, forks: &[&str]) -> String {
    let names: Vec<String> = forks.iter().map(|fork| plain(fork, usize::MAX)).collect();
    format!("next:  pfimg{} discard {}", runs.store_words, names.join(" "))
}

/// Returns the two commands that the user probably needs next.
pub(super) fn next(runs: &Runs, fork: &str) -> String {
    let (words, fork) = (&runs.store_words, plain(fork, usize::MAX));
    format!("next:  pfimg{words} diff {fork} -p      pfimg{words} apply {fork}")
}

/// Returns the command that repeats an interrupted run, in the same forks.
pub(super) fn again(runs: &Runs, forks: &[&str], command: &[OsString]) -> String {
    let names: Vec<String> = forks.iter().map(|fork| plain(fork, usize::MAX)).collect();
    let command = shell_words(command);
    format!("again:  pfimg{} run {} -- {command}", runs.store_words, names.join(" "))
}

/// Returns a command as a shell reads it, or its first word if it is long.
fn shell_words(command: &[OsString]) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    let word = |word: &OsString| match word.to_string_lossy() {
        word if !word.is_empty() && word.chars().all(is_bare) => word.into_owned(),
        word => format!("'{}'", plain(&word, usize::MAX).replace('\'', "'\\''")),
    };
    let all: Vec<String> = command.iter().map(word).collect();
    let line = all.join(" ");
    if line.chars().count() <= LONGEST { line } else { format!("{} …", all[0]) }
}

/// Checks out a commit in a new fork. Git runs in the sandbox, since a repository may name any program.
pub(super) fn check_out(runs: &Runs, fork: &Fork, args: &RunArgs, commit: &str) -> Result<()> {
    let git = |words: &[&str]| -> Result<()> {
        let mut command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"]
            .map(OsString::from)
            .to_vec();
        command.extend(words.iter().map(OsString::from));
        let job = Job {
            store: &runs.store,
            mountpoint: &runs.mountpoint,
            socket: runs.client.socket(),
            cache_dir: &runs.cache_dir,
            fork: &fork.name,
            at: fork.at.as_deref(),
            project: fork.project.as_deref(),
            start: Path::new(""),
            command: &command,
        };
        let outcome = sandboxed::run(&job, args, &runs.conf, runs.given(args))?;
        if outcome.code == 0 {
            return Ok(());
        }
        outcome.pass_on();
        let what = format!("cannot check out {commit:?} in fork {:?}", fork.name);
        Err(Error::new(ErrorKind::InvalidInput, what)
            .with_hint("name a commit, branch or tag of the project"))
    };
    if commit.starts_with('-') {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{commit:?} is not a name of a commit")));
    }
    git(&["checkout", "--quiet", "--force", "--detach", commit, "--"])?;
    git(&["clean", "--quiet", "--force", "-d"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_repeated_as_a_shell_reads_it_and_a_long_one_by_its_first_word() {
        let typed = |command: &[&str]| shell_words(&command.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(typed(&["my-agent", "fix it", "don't", ""]), r"my-agent 'fix it' 'don'\''t' ''");
        assert_eq!(typed(&["sh", "-c", &"x ".repeat(60)]), "sh …");
    }
}
