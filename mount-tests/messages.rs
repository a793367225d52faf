//! Compares docs/MESSAGES.md with the messages in `src`, so that each message has a row that explains it.

mod collect;
mod page;
mod source;
mod text;

use std::fs;

use crate::checkout::top;
use collect::{Found, collect};
use page::{Kinds, PAGE, differences};
use source::Code;

fn kinds() -> Kinds {
    Kinds::read(&fs::read_to_string(top().join("docs/TROUBLESHOOTING.md")).unwrap())
}

#[test]
fn every_message_has_a_row_and_every_row_a_message() {
    let found = collect(&Code::read());
    assert!(found.messages.len() > 600, "only {} messages are found", found.messages.len());
    let page = fs::read_to_string(top().join(PAGE)).unwrap();
    let wrong = differences(&page, &found, &kinds());
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Options of other programs on the page: of container runtimes.
const OF_OTHERS: [&str; 3] = ["cap-add", "device", "security-opt"];

/// What stands between backticks in the last cells of the page, by words.
fn codes(page: &str) -> Vec<Vec<&str>> {
    let last =
        page.lines().filter_map(|line| line.strip_suffix('|')?.strip_prefix('|')?.rsplit(" | ").next());
    last.flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter_map(|code| code.rsplit("&& ").next())
        .map(|code| code.split_whitespace().take_while(|word| *word != "--").collect())
        .filter(|words: &Vec<&str>| !words.is_empty())
        .collect()
}

#[test]
fn every_command_and_option_on_the_page_exists() {
    let page = fs::read_to_string(top().join(PAGE)).unwrap();
    let definition = pfimg::cli::definition();
    let is_option_of = |command: &clap::Command, option: &str| {
        command
            .get_arguments()
            .any(|argument| argument.get_long_and_visible_aliases().unwrap_or_default().contains(&option))
    };
    let mut count = 0;
    for words in codes(&page) {
        let options = words.iter().filter_map(|word| word.strip_prefix("--"));
        if words[0] == "pfimg" {
            count += 1;
            let command = definition.find_subcommand(words[1]);
            let command = command.unwrap_or_else(|| panic!("there is no command {words:?}"));
            for option in options {
                let is_known = is_option_of(command, option) || is_option_of(&definition, option);
                assert!(is_known, "{} has no option --{option}: {words:?}", words[1]);
            }
        } else if words[0].starts_with("--") {
            for option in options.filter(|option| !OF_OTHERS.contains(option)) {
                let mut all = definition.get_subcommands().chain([&definition]);
                assert!(all.any(|command| is_option_of(command, option)), "no command has --{option}");
            }
        }
    }
    assert!(count > 100, "only {count} commands are found");
}

/// The messages of a file with this text.
fn found_in(text: &str) -> Found {
    collect(&Code::of([("planted.rs".to_owned(), text.to_owned())]))
}

#[test]
fn a_message_that_is_planted_is_found_however_it_is_written() {
    for (text, message) in [
        (r#"fn f() { Error::new(ErrorKind::NotFound, "the plain text"); }"#, "the plain text"),
        (r#"fn f() { Error::new(ErrorKind::NotFound, format!("no {name:?} in {}", dir())); }"#, "no … in …"),
        (r#"fn f() { let what = format!("a {x}"); g(); Error::new(ErrorKind::Busy, what); }"#, "a …"),
        (r#"const T: &str = "of a constant"; fn f() { Error::new(ErrorKind::Busy, T); }"#, "of a constant"),
        (r#"fn f() { Error::new(ErrorKind::Busy, if a { "one" } else { "other" }); }"#, "other"),
        (r#"fn f() { Error::new(ErrorKind::Busy, match a { 1 => "one", _ => "other" }); }"#, "other"),
        (
            r#"fn no(what: &str) -> Error { Error::new(ErrorKind::Busy, what) } fn f() { no("given"); }"#,
            "given",
        ),
        (
            r#"fn no(why: &str) -> Error { Error::new(ErrorKind::Busy, format!("{x}: {why}")) }
               fn f() { no("it is in use"); }"#,
            "…: it is in use",
        ),
        (r#"fn f() { let no = |what: &str| Error::new(ErrorKind::Busy, what); no("given"); }"#, "given"),
        (
            r#"fn why() -> &'static str { "from a function" } fn f() { Error::new(ErrorKind::Busy, why()); }"#,
            "from a function",
        ),
        (r#"fn f() { g().map_err(|e| Error::io(e, format!("cannot read {x}")))?; }"#, "cannot read …: …"),
        (
            r#"fn f() { g().map_err(|e| e.context(format!("cannot seal fork {x}"))); }"#,
            "cannot seal fork …: …",
        ),
        (r#"enum E { #[error("blob {0} is missing")] Missing(u8) }"#, "blob … is missing"),
        (r#"fn f() -> Result<u8, String> { Err(format!("{x} has no unit")) }"#, "… has no unit"),
        (r#"fn f() { eprintln!("pfimg: the fork {x} stays"); }"#, "the fork … stays"),
        (r#"fn f() { FormatError::new(T, "x", "it is listed twice"); }"#, "it is listed twice"),
        (r#"fn f() { io::Error::other(format!("{x} is a link")); }"#, "… is a link"),
        (
            r#"impl Display for E { fn fmt(&self) { write!(f, "line {} is not valid", self.0) } }"#,
            "line … is not valid",
        ),
        (r#"fn tell(what: &dyn Display) {} fn f() { tell(&format_args!("{x} is hidden")); }"#, "… is hidden"),
        (r#"fn f() { self.reports.push(format!("{x} is left out")); }"#, "… is left out"),
        (r#"fn f() { tracing::warn!(path = %p, "cannot read it"); }"#, "cannot read it"),
    ] {
        let found = found_in(text);
        assert!(found.messages.contains_key(message), "{text}: {found:?}");
        let wrong = differences("", &found, &kinds());
        assert!(wrong.iter().any(|one| one.contains(message)), "{text}: {wrong:?}");
    }
}

#[test]
fn a_text_that_cannot_be_read_is_an_error_and_names_its_place() {
    let found = found_in("fn f() {\n    Error::new(ErrorKind::Busy, table[3]);\n}");
    assert_eq!(found.unread.len(), 1, "{found:?}");
    let wrong = differences("", &found, &kinds());
    assert!(wrong[0].contains("planted.rs:2"), "{wrong:?}");
    // A comment says where the text comes from.
    let found =
        found_in("fn f() {\n    // The text comes from `f`.\n    Error::new(ErrorKind::Busy, e.said);\n}");
    assert_eq!(found.unread.len(), 0, "{found:?}");
}

#[test]
fn a_row_must_have_the_kind_and_the_hint_of_the_code() {
    let found = found_in(
        r#"fn f() { Error::new(ErrorKind::NotFound, format!("there is no fork {x}")).with_hint("list them"); }"#,
    );
    let page = |row: &str| format!("| message | kind | cause | what to do |\n|---|---|---|---|\n{row}\n");
    let wrong = |row: &str| differences(&page(row), &found, &kinds());
    assert_eq!(
        wrong("| `there is no fork …` | `not-found` 5 | It has another name. | List them. |"),
        [""; 0]
    );
    for row in [
        "| `there is no fork …` | `busy` 7 | It has another name. | List them. |",
        "| `there is no fork …` | `not-found` 5 | It has another name. | Look. |",
        "| `there is no fork …` | `not-found` 5 |  | List them. |",
        "| `there is no tag …` | `not-found` 5 | It has another name. | List them. |",
    ] {
        assert!(!wrong(row).is_empty(), "{row}");
    }
}
