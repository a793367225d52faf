//! Collects every message of the program, with its kind and its hints.

use std::collections::{BTreeMap, BTreeSet};

use syn::Expr;

use super::source::{Call, Code};
use super::text::{HOLE, Reader, Scope, Unread, is_phrase};

/// A message, as the page has it.
#[derive(Debug, Default)]
pub struct Message {
    /// The names of its kinds, as in the code. Empty if the code computes it.
    pub kinds: BTreeSet<String>,
    pub hints: BTreeSet<String>,
    pub places: BTreeSet<String>,
}

/// All that is found.
#[derive(Debug, Default)]
pub struct Found {
    pub messages: BTreeMap<String, Message>,
    /// Hints that are added to an error made elsewhere.
    pub hints: BTreeMap<String, BTreeSet<String>>,
    /// The calls whose text cannot be read, with the reason.
    pub unread: BTreeSet<String>,
}

/// The kind of errors of the operating system, and of what is put before other errors: the cause decides it.
pub const OF_THE_CAUSE: &str = "cause";
/// The kind of a line that a command prints before it continues.
pub const NOTE: &str = "note";
/// The kind of a line of the daemon's log.
pub const LOG: &str = "log";

/// The kind that makes a worker repeat an operation.
const WAITS: &str = "Waits";

/// A comment with these words above a call names the type or function that makes its text.
const MARKER: &str = "text comes from `";

/// How many functions a text is passed through before it reaches an error.
const STEPS: usize = 4;

impl Found {
    /// Adds a message. One without a word has its text from elsewhere, and one that [`WAITS`] reaches no user.
    fn add(&mut self, text: &str, kind: Option<&str>, hints: &BTreeSet<String>, place: String) {
        if kind == Some(WAITS) || !text.contains(char::is_alphabetic) {
            return;
        }
        let message = self.messages.entry(normalised(text)).or_default();
        message.kinds.extend(kind.map(str::to_owned));
        message.hints.extend(hints.iter().map(|hint| normalised(hint)));
        message.places.insert(place);
    }
}

/// A text on one line, with one `…` for each run of unknown parts.
pub fn normalised(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let mut line = line.join(" ");
    while line.contains("……") {
        line = line.replace("……", HOLE);
    }
    line
}

/// The kind that an expression names, such as `NotFound` or `NotEmpty`.
fn kind_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Path(path) if path.path.segments.len() > 1 => {
            Some(path.path.segments.last()?.ident.to_string())
        }
        Expr::Call(call) => match &*call.func {
            Expr::Path(path) if path.path.segments.last()?.ident == "Posix" => kind_of(call.args.first()?),
            Expr::Path(path) if path.path.segments.last()?.ident == "Io" => Some("Io".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// What a call makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Makes {
    New,
    Io,
    Context,
    Hint,
    /// The cause of an error, made by pfimg.
    Source,
    /// The last part of an error about a format.
    Reason,
}

fn makes(call: &Call) -> Option<Makes> {
    let parts: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let count = call.arguments.len();
    match parts.as_slice() {
        ["context"] if call.is_method && count == 1 => Some(Makes::Context),
        ["with_hint"] if call.is_method => Some(Makes::Hint),
        [.., "FormatError", "new"] if count == 3 => Some(Makes::Reason),
        [.., "io", "Error", "new"] if count == 2 => Some(Makes::Source),
        [.., "io", "Error", "other"] if count == 1 => Some(Makes::Source),
        [.., of, name] if count == 2 => {
            let is_error = (*of == "Error" && !matches!(parts.as_slice(), [.., "io" | "fmt", _, _]))
                || (*of == "Self" && call.of.as_deref() == Some("Error"));
            match *name {
                "new" if is_error => Some(Makes::New),
                "io" if is_error => Some(Makes::Io),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The place where the chain of method calls begins that `expr` is.
fn base(expr: &Expr) -> Option<(usize, usize)> {
    match expr {
        Expr::MethodCall(call) => base(&call.receiver),
        Expr::Paren(inner) => base(&inner.expr),
        Expr::Call(call) => {
            let start = syn::spanned::Spanned::span(call).start();
            Some((start.line, start.column))
        }
        _ => None,
    }
}

/// Says whether a call stands in an `impl From<E> for Error`, with the texts of `E` in its attributes.
fn is_conversion(reader: &Reader<'_>, call: &Call) -> bool {
    call.of.as_deref() == Some("Error")
        && call.within.is_some_and(|within| {
            let function = &reader.code.functions[within];
            let of = |of: &str| reader.code.attributed.iter().any(|one| one.of == of);
            function.name == "from" && function.parameters.first().is_some_and(|(_, from)| of(from))
        })
}

pub fn collect(code: &Code) -> Found {
    let reader = Reader::new(code);
    let mut found = Found::default();
    // Hints by the call that makes their error.
    let mut chained: BTreeMap<(usize, usize, usize), Vec<&Call>> = BTreeMap::new();
    let made: BTreeSet<(usize, usize, usize)> = code
        .calls
        .iter()
        .filter(|call| matches!(makes(call), Some(Makes::New | Makes::Io)))
        .map(|call| (call.file, call.line, call.column))
        .collect();
    for call in code.calls.iter().filter(|call| makes(call) == Some(Makes::Hint)) {
        let begins = call.receiver.as_ref().and_then(base).map(|(line, column)| (call.file, line, column));
        if let Some(begins) = begins.filter(|begins| made.contains(begins)) {
            chained.entry(begins).or_default().push(call);
            continue;
        }
        let place = code.place(call.file, call.line);
        each(&reader, call, &mut found, &[], &|found, scope| {
            for text in reader.texts(&call.arguments[0], scope)? {
                found.hints.entry(normalised(&text)).or_default().insert(place.clone());
            }
            Ok(())
        });
    }
    for call in &code.calls {
        let (text, suffix) = match makes(call) {
            Some(Makes::New) => (&call.arguments[1], ""),
            Some(Makes::Io) => (&call.arguments[1], ": …"),
            Some(Makes::Context) => (&call.arguments[0], ": …"),
            Some(Makes::Source | Makes::Reason) => (call.arguments.last().unwrap(), ""),
            _ => continue,
        };
        let what = makes(call);
        let place = code.place(call.file, call.line);
        let hints = chained.get(&(call.file, call.line, call.column)).map_or(&[][..], Vec::as_slice);
        each(&reader, call, &mut found, &[], &|found, scope| {
            let mut said = BTreeSet::new();
            for hint in hints {
                said.extend(reader.texts(&hint.arguments[0], scope)?);
            }
            let texts = match reader.texts(text, scope) {
                // The error that is converted has the text. The hints stand alone.
                Err(_) if is_conversion(&reader, call) => {
                    for hint in said {
                        found.hints.entry(normalised(&hint)).or_default().insert(place.clone());
                    }
                    return Ok(());
                }
                // A context that is not a text is a name, and such a cause is an error.
                Err(Unread::Expression(_))
                    if matches!(what, Some(Makes::Context | Makes::Source | Makes::Reason)) =>
                {
                    return Ok(());
                }
                texts => texts?,
            };
            let of_kind = match what {
                Some(Makes::New) => kind(&call.arguments[0], scope),
                Some(Makes::Reason) => None,
                _ => Some(OF_THE_CAUSE.to_owned()),
            };
            for text in texts {
                let is_part = matches!(what, Some(Makes::Context | Makes::Reason));
                if !is_part || is_phrase(&text) {
                    found.add(&format!("{text}{suffix}"), of_kind.as_deref(), &said, place.clone());
                }
            }
            Ok(())
        });
    }
    for print in &code.prints {
        let Some(Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(format), .. })) = print.arguments.first() else {
            continue;
        };
        if !format.value().starts_with("pfimg: ") {
            continue;
        }
        let place = code.place(print.file, print.line);
        let scope = Scope::new(print.file, print.within);
        for text in reader.format(&print.arguments, &scope).unwrap_or_default() {
            let text = text.trim_start_matches("pfimg: ").to_owned();
            if is_phrase(&text) {
                found.add(&text, Some(NOTE), &BTreeSet::new(), place.clone());
            }
        }
    }
    for error in &code.attributed {
        found.add(&with_holes(&error.text), None, &BTreeSet::new(), code.place(error.file, error.line));
    }
    for line in &code.logged {
        let text = with_holes(&line.text);
        if is_phrase(&text) {
            found.add(&text, Some(LOG), &BTreeSet::new(), code.place(line.file, line.line));
        }
    }
    for shown in &code.shown {
        let scope = Scope::new(shown.file, shown.within);
        for text in reader.format(&shown.arguments, &scope).unwrap_or_default() {
            if is_phrase(&text) {
                found.add(&text, None, &BTreeSet::new(), code.place(shown.file, shown.line));
            }
        }
    }
    refusals(&reader, &mut found);
    reports(&reader, &mut found);
    found
}

/// A format string with `…` for each placeholder.
fn with_holes(format: &str) -> String {
    let (mut text, mut rest) = (String::new(), format);
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        text.push_str(HOLE);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    text + rest
}

/// Says whether an expression is an error or its text: `error`, `&error.context(…)` or `error.to_string()`.
fn is_error_text(expr: &Expr) -> bool {
    match expr {
        Expr::MethodCall(call) => call.method == "context" || call.method == "to_string",
        Expr::Reference(inner) => is_error_text(&inner.expr),
        Expr::Path(path) => path.path.get_ident().is_some_and(|name| name == "error"),
        _ => false,
    }
}

/// Says whether a call is one of the function with which the processes of a run print.
fn is_tell(reader: &Reader<'_>, call: &Call) -> bool {
    reader.called_by(call).iter().any(|&at| {
        let function = &reader.code.functions[at];
        function.name == "tell" && function.parameters.iter().any(|(_, of)| of.contains("Display"))
    })
}

fn member(member: &syn::Member) -> String {
    match member {
        syn::Member::Named(name) => name.to_string(),
        syn::Member::Unnamed(_) => String::new(),
    }
}

/// The lists of lines that a command prints when it is done.
const LISTS: [&str; 4] = ["reports", "notes", "problems", "warnings"];

/// Adds what is reported while an operation continues: by functions named `report`, and in lists.
fn reports(reader: &Reader<'_>, found: &mut Found) {
    // The audit log has notes for programs, and a finding of `verify` its own table.
    let other = ["src/audit", "src/ops/verify"];
    let is_other = |call: &Call| other.iter().any(|room| reader.code.files[call.file].name.starts_with(room));
    for call in reader.code.calls.iter().filter(|call| !is_other(call)) {
        let to_list = || match &call.receiver {
            Some(Expr::Field(field)) => {
                matches!(&field.member, syn::Member::Named(name) if LISTS.contains(&name.to_string().as_str()))
            }
            Some(Expr::Path(path)) => LISTS.iter().any(|list| path.path.is_ident(list)),
            _ => false,
        };
        let text = match (call.path.last().unwrap().as_str(), call.arguments.as_slice()) {
            ("report", [text]) => text,
            ("push" | "extend", [text]) if to_list() => text,
            ("tell", [text]) if is_tell(reader, call) => text,
            _ => continue,
        };
        let text = match text {
            // A remark about a path.
            Expr::Struct(about) => match about.fields.iter().find(|field| member(&field.member) == "why") {
                Some(field) => &field.expr,
                None => continue,
            },
            text => text,
        };
        let place = reader.code.place(call.file, call.line);
        each(reader, call, found, &[], &|found, scope| {
            let texts = match reader.texts(text, scope) {
                // An error's own text has its own row.
                Err(Unread::Expression(_))
                    if is_error_text(text) || call.path.ends_with(&["extend".to_owned()]) =>
                {
                    Vec::new()
                }
                texts => texts?,
            };
            for text in texts {
                found.add(&text, Some(NOTE), &BTreeSet::new(), place.clone());
            }
            Ok(())
        });
    }
}

/// Adds what functions return whose error is a text.
fn refusals(reader: &Reader<'_>, found: &mut Found) {
    let code = reader.code;
    let refuses = |function: usize| {
        let returns = &code.functions[function].returns;
        [",String>", ",&'staticstr>"]
            .iter()
            .any(|error| returns.starts_with("Result<") && returns.ends_with(error))
            || returns.starts_with("std::result::Result<") && returns.ends_with(",String>")
    };
    let is_shown = |function: usize| code.functions[function].name == "fmt";
    for call in &code.calls {
        let Some(within) = call.within else { continue };
        let text = match (call.path.last().unwrap().as_str(), call.arguments.as_slice()) {
            ("Err" | "ok_or", [text]) if refuses(within) => text.clone(),
            ("ok_or_else" | "map_err", [Expr::Closure(closure)]) if refuses(within) => {
                (*closure.body).clone()
            }
            ("write_str", [text @ Expr::Lit(_)])
                if is_shown(within) && is_phrase(&quote::quote!(#text).to_string()) =>
            {
                text.clone()
            }
            _ => continue,
        };
        let place = code.place(call.file, call.line);
        each(reader, call, found, &[], &|found, scope| {
            for text in reader.texts(&text, scope)? {
                found.add(&text, None, &BTreeSet::new(), place.clone());
            }
            Ok(())
        });
    }
}

/// Adds what a call says. As long as a text depends on parameters of a function, adds it for each call of the function.
fn each(
    reader: &Reader<'_>,
    call: &Call,
    found: &mut Found,
    chain: &[(usize, &Call)],
    add: &dyn Fn(&mut Found, &Scope) -> Result<(), Unread>,
) {
    // The last of the chain is the outermost call.
    let scope = chain.iter().rev().fold(None, |outer: Option<Scope>, (function, caller)| {
        let outer = outer.unwrap_or_else(|| Scope::new(caller.file, caller.within));
        Some(reader.inner(*function, &caller.arguments, &outer))
    });
    let scope = scope.unwrap_or_else(|| Scope::new(call.file, call.within));
    reader.wanted.take();
    let mut trial = Found::default();
    let result = add(&mut trial, &scope);
    let mut wanted = reader.wanted.take();
    // A part of a text is worth one step, the text itself several.
    wanted.retain(|function| chain.is_empty() && Some(*function) == call.within);
    if let Err(Unread::Parameter(function)) = result {
        wanted.insert(function);
    }
    let callers = wanted.first().filter(|_| chain.len() < STEPS);
    let callers: Vec<(usize, &Call)> = callers
        .into_iter()
        .flat_map(|&function| reader.callers(function).into_iter().map(move |call| (function, call)))
        .collect();
    if !callers.is_empty() {
        for caller in callers {
            each(reader, call, found, &[chain, &[caller]].concat(), add);
        }
        return;
    }
    let said_at = chain.last().map_or(call, |(_, caller)| caller);
    let place = reader.code.place(said_at.file, said_at.line);
    match result {
        Ok(()) => {
            for message in trial.messages.values_mut() {
                message.places = [place.clone()].into();
            }
            merge(found, trial);
        }
        Err(why) => {
            let lines: Vec<&str> = reader.code.files[call.file].text.lines().collect();
            let near = &lines[call.line.saturating_sub(4)..call.line];
            let from = near.iter().find_map(|line| line.split_once(MARKER)?.1.split('`').next());
            match from {
                Some(name) if reader.code.has(name) => {
                    for text in reader.made_by(name, call.file) {
                        found.add(&text, None, &BTreeSet::new(), place.clone());
                    }
                }
                _ => {
                    found.unread.insert(format!("{place} ({why:?})"));
                }
            }
        }
    }
}

fn merge(found: &mut Found, other: Found) {
    for (text, message) in other.messages {
        let into = found.messages.entry(text).or_default();
        into.kinds.extend(message.kinds);
        into.hints.extend(message.hints);
        into.places.extend(message.places);
    }
    for (hint, places) in other.hints {
        found.hints.entry(hint).or_default().extend(places);
    }
    found.unread.extend(other.unread);
}

/// The name of the kind that an expression is, if need be by the argument of a parameter.
fn kind(expr: &Expr, scope: &Scope) -> Option<String> {
    kind_of(expr).or_else(|| {
        let (value, outer) = Reader::given(expr, scope)?;
        kind(&value, &outer)
    })
}
