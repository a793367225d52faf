//! `--json`: one object on stdout, whether a command succeeds or fails. The only place that makes it.
//!
//! ```text
//! {"pfimg":1,"command":"images","result":{…}}
//! {"pfimg":1,"command":"images","error":{"kind":"not-found","message":"…","path":null,"hint":"…"}}
//! ```
//! `kind` is [`ErrorKind::name`](crate::error::ErrorKind::name), or `usage` where the command line cannot be parsed. People read
//! the same error on stderr.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use serde::Serialize;

use super::text::print;
use crate::error::{Error, ErrorKind, Exit, Result};

/// The version of the object. It changes only if a program that reads this one would misread the next.
const VERSION: u32 = 1;

/// The error kind of a command line that cannot be parsed.
const USAGE: &str = "usage";

/// The word that ends the options.
const END_OF_OPTIONS: &str = "--";

static CALL: OnceLock<Call> = OnceLock::new();

/// The facts about a call before its command line is parsed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    /// The command, by its full name.
    command: Option<String>,
    json: bool,
}

impl Call {
    fn of(args: &[OsString], cli: &Command) -> Self {
        let words = words(args);
        let command = command_at(args, cli).and_then(|at| words.get(at)?.to_str());
        let command = command.and_then(|name| cli.find_subcommand(name));
        let json = words.iter().any(|word| word == "--json");
        Self { command: command.map(|command| command.get_name().to_owned()), json }
    }
}

/// Returns the words of a command line before the end of its options.
fn words(args: &[OsString]) -> &[OsString] {
    args.split(|arg| arg == END_OF_OPTIONS).next().unwrap_or_default()
}

/// Returns the index of the word that names the command.
pub(crate) fn command_at(args: &[OsString], cli: &Command) -> Option<usize> {
    let mut is_value = false;
    words(args).iter().enumerate().skip(1).find_map(|(at, word)| {
        let word = word.to_str().unwrap_or_default();
        // The only option before the command that takes a value.
        let names =
            !std::mem::replace(&mut is_value, word == "--store") && cli.find_subcommand(word).is_some();
        names.then_some(at)
    })
}

/// Remembers the call for later output.
pub(crate) fn begin(args: &[OsString], cli: &Command) {
    let _ = CALL.set(Call::of(args, cli));
}

/// Remembers whether a call asks for JSON, if its command line cannot be parsed.
pub(crate) fn begin_unparsed(args: &[OsString]) {
    let _ = CALL.set(Call { command: None, json: words(args).iter().any(|word| word == "--json") });
}

fn command() -> Option<&'static str> {
    CALL.get()?.command.as_deref()
}

/// Returns whether the words of the command line ask for JSON.
pub(crate) fn is_wanted() -> bool {
    CALL.get().is_some_and(|call| call.json)
}

#[derive(Serialize)]
struct Envelope<'a, T: Serialize> {
    pfimg: u32,
    command: Option<&'a str>,
    #[serde(flatten)]
    outcome: Outcome<'a, T>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome<'a, T: Serialize> {
    Result(&'a T),
    Error(&'a Failure),
}

/// An error for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    kind: &'static str,
    message: String,
    path: Option<String>,
    hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name(),
            message: error.message(),
            path: error.path().map(|path| path.to_string_lossy().into_owned()),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// Writes the result of a command as JSON to stdout. Call it once.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    write(Outcome::Result(value))
}

fn write<T: Serialize>(outcome: Outcome<'_, T>) -> Result<()> {
    print_pretty(&Envelope { pfimg: VERSION, command: command(), outcome })
}

fn print_pretty(envelope: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(envelope)
        .map_err(|e| Error::new(ErrorKind::Io(None), "cannot write JSON").with_source(e))?;
    print(&format!("{json}\n"))
}

/// Writes the error of a failed command as JSON to stdout. Call it once, and only without a result.
pub(crate) fn print_error(error: &Error) {
    write_failure(&error.into());
}

/// Writes the error of a failed command, with details, as JSON to stdout. Call it once, and only without a
/// result.
pub(crate) fn print_failure(error: &Error, details: &impl Serialize) -> Result<()> {
    #[derive(Serialize)]
    struct Detailed<'a, T: Serialize> {
        #[serde(flatten)]
        failure: Failure,
        #[serde(flatten)]
        details: &'a T,
    }
    #[derive(Serialize)]
    struct Whole<'a, T: Serialize> {
        pfimg: u32,
        command: Option<&'a str>,
        error: Detailed<'a, T>,
    }
    let error = Detailed { failure: error.into(), details };
    print_pretty(&Whole { pfimg: VERSION, command: command(), error })
}

fn write_failure(failure: &Failure) {
    // If stdout cannot be written, the error goes to stderr.
    let _ = write(Outcome::<()>::Error(failure));
}

/// Returns the object of a result in one line, for commands that print several.
pub(crate) fn result_line(command: &str, result: &impl Serialize) -> String {
    line(command, Outcome::Result(result))
}

/// Returns the object of an error in one line.
pub(crate) fn error_line(command: &str, error: &Error) -> String {
    line(command, Outcome::<()>::Error(&error.into()))
}

fn line<T: Serialize>(command: &str, outcome: Outcome<'_, T>) -> String {
    let envelope = Envelope { pfimg: VERSION, command: Some(command), outcome };
    match serde_json::to_string(&envelope) {
        Ok(json) => format!("{json}\n"),
        // Only a map with keys that are not strings cannot be written.
        Err(e) => error_line(command, &Error::new(ErrorKind::Io(None), "cannot write JSON").with_source(e)),
    }
}

/// Prints the error that ends a command.
pub(crate) fn fail(error: &Error) -> ExitCode {
    eprintln!("pfimg: {error}");
    if is_wanted() {
        print_error(error);
    }
    error.kind().exit().into()
}

/// Ends a call whose command line cannot be parsed, or that asks for help.
pub(crate) fn refuse(error: &clap::Error) -> ExitCode {
    if !is_wanted() {
        error.exit();
    }
    if matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        let text = serde_json::json!({"text": error.render().to_string()});
        return print_json(&text).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
    }
    let _ = error.print();
    write_failure(&failure(error));
    Exit::Usage.into()
}

/// Splits the parser's text into message and hint. The text has `error: …`, tips, the usage, and where to read
/// more, with a blank line between each.
fn failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let tips: Vec<&str> = text.lines().filter_map(|line| line.trim_start().strip_prefix("tip: ")).collect();
    let usage = error.get(ContextKind::Usage).and_then(|usage| match usage {
        ContextValue::StyledStr(usage) => Some(usage.to_string()),
        _ => None,
    });
    let usage = usage.map(|usage| usage.split_whitespace().collect::<Vec<_>>().join(" "));
    let hint = if tips.is_empty() { usage } else { Some(tips.join("; ")) };
    // The help has the list of commands.
    let lines = message.lines().map(str::trim).filter(|line| !line.starts_with("[subcommands:"));
    let message = lines.collect::<Vec<_>>().join(" ");
    Failure { kind: USAGE, message, path: None, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn call(words: &[&str]) -> Call {
        let args: Vec<OsString> = std::iter::once(&"pfimg").chain(words).map(OsString::from).collect();
        Call::of(&args, &crate::cli::Cli::command())
    }

    #[test]
    fn a_call_is_known_by_its_words_before_the_end_of_options() {
        let known = |command: Option<&str>, json| Call { command: command.map(str::to_owned), json };
        for (words, expected) in [
            (&[][..], known(None, false)),
            (&["--json"], known(None, true)),
            (&["images", "--json"], known(Some("images"), true)),
            (&["--json", "unmount", "x"], known(Some("umount"), true)),
            (&["--store", "tags", "images"], known(Some("images"), false)),
            (&["run", "f", "--", "tool", "--json"], known(Some("run"), false)),
            (&["nonsense", "--json"], known(None, true)),
        ] {
            assert_eq!(call(words), expected, "{words:?}");
        }
    }

    #[test]
    fn a_result_and_an_error_are_one_line_each() {
        let result = result_line("run", &serde_json::json!({"a": 1}));
        assert_eq!(result, "{\"pfimg\":1,\"command\":\"run\",\"result\":{\"a\":1}}\n");
        let error = Error::new(ErrorKind::NotFound, "no\nfork").with_hint("try");
        let text = error_line("run", &error);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["error"]["kind"], &value["error"]["hint"]), (&"not-found".into(), &"try".into()));
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_parse_error_is_a_message_and_a_hint_without_line_ends() {
        let error = crate::cli::Cli::command().try_get_matches_from(["pfimg", "imagse"]).unwrap_err();
        let failure = failure(&error);
        assert_eq!(failure.message, "unrecognized subcommand 'imagse'");
        assert!(failure.hint.is_some_and(|hint| hint.contains("images") && !hint.contains('\n')));
    }
}
