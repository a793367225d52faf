//! The documents: lines that fit a terminal, command lines that exist, and what the architecture says is absent.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use super::checkout::{files, top};

/// The longest line of prose in columns. Tables, code and the targets of links may be longer.
const COLUMNS: usize = 110;

/// The documents by their paths.
fn documents() -> Vec<(PathBuf, String)> {
    let mut all = files("docs", "md");
    all.extend(["README.md", "CONTRIBUTING.md"].map(PathBuf::from));
    assert!(all.len() > 10, "only {all:?} are found");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(top().join(&path)).unwrap();
        (path, text)
    };
    all.into_iter().map(read).collect()
}

/// A line without the targets of its links: `[text](target)` becomes `[text]`.
fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push(']');
        text.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    text
}

/// Whether a line is one piece of code, which cannot be broken.
fn is_span(line: &str) -> bool {
    let line = line.trim().trim_end_matches(['.', ',', ';', ':']);
    line.len() > 1 && line.starts_with('`') && line.ends_with('`') && line.matches('`').count() == 2
}

/// The lines of prose that are too long: their numbers and lengths.
fn long_lines(text: &str) -> Vec<(usize, usize)> {
    let mut is_code = false;
    let mut long = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code && !line.trim_start().starts_with('|') && !is_span(line) {
            let columns = without_targets(line).chars().count();
            if columns > COLUMNS {
                long.push((at + 1, columns));
            }
        }
    }
    long
}

#[test]
fn no_line_of_prose_in_the_documents_is_longer_than_110_columns() {
    let mut wrong = String::new();
    for (path, text) in documents() {
        for (line, columns) in long_lines(&text) {
            write!(wrong, "\n{}:{line}: {columns} columns", path.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "break these lines at {COLUMNS} columns:{wrong}");

    let long = "a ".repeat(60);
    let page = format!("{long}\n| {long} |\n```\n{long}\n```\n- {long}\n[a](https://{long})\n");
    let page = format!("{page}  `{long}`,\n`a` {long} `b`\n");
    assert_eq!(long_lines(&page).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 6, 9]);
}

/// Options that the documents name and that other programs have: benches, scripts, containers.
const FOREIGN: [&str; 17] = [
    "cap-add",
    "device",
    "files",
    "images",
    "lower",
    "most",
    "no-group",
    "only",
    "patience",
    "pfimg",
    "proc",
    "runs",
    "security-opt",
    "user",
    "validate-oracles",
    "workdir",
    "workload",
];

/// The pieces of code of a document: spans between backticks, and the lines of fenced blocks.
fn code(text: &str) -> Vec<String> {
    let (mut found, mut prose, mut is_code) = (Vec::new(), String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if is_code {
            let line = line.trim_start().trim_start_matches("$ ");
            found.push(line.split(" #").next().unwrap_or_default().to_owned());
        } else {
            prose.push_str(line);
            // A span can be broken at the end of a line.
            prose.push(if line.trim().is_empty() { '\n' } else { ' ' });
        }
    }
    for paragraph in prose.lines() {
        found.extend(paragraph.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    found
}

/// The words behind `pfimg` of each command in a piece of code. Variables may be set before it.
fn command_lines(code: &str) -> Vec<Vec<&str>> {
    let commands = code.split([';', '|', '&', '\n']).map(|command| {
        let is_before = |word: &&str| word.contains('=') || *word == "sudo";
        command.split_whitespace().skip_while(is_before).collect::<Vec<_>>()
    });
    commands
        .filter_map(|words| {
            let (first, rest) = words.split_first()?;
            (*first == "pfimg" || first.ends_with("/pfimg")).then(|| rest.to_vec())
        })
        .collect()
}

/// A word of a usage line without its brackets and commas: `[--json]`, `--keep-last=N,`.
fn bare(word: &str) -> &str {
    let word = word.trim_matches(|c: char| "[](){}<>,.…'\"".contains(c));
    word.split_once('=').map_or(word, |(name, _)| name)
}

/// Whether a word can be the name of a command. Others stand for one (`COMMAND`), or are a mountpoint of mount(8).
fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
}

/// The options of a command line that the program does not have, or its command if that does not exist. The second
/// value is the number of options that were looked up.
fn unknown(words: &[&str], program: &clap::Command) -> (Vec<String>, usize) {
    let mut wrong = Vec::new();
    let mut looked_up = 0;
    let (mut command, mut named, mut plain) = (program, false, 0);
    let is_new_form = words.contains(&"--");
    for word in words {
        let word = bare(word);
        if *word == *"--" {
            break;
        }
        let has = |option: &str, command: &clap::Command| {
            command.get_arguments().any(|argument| {
                argument.get_long() == Some(option)
                    || argument.get_all_aliases().is_some_and(|all| all.contains(&option))
            })
        };
        if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) {
            looked_up += 1;
            if !has(option, command) {
                wrong.push(word.to_owned());
            }
        } else if let Some(letter) = word.strip_prefix('-').and_then(|word| word.chars().next()) {
            looked_up += 1;
            if !command.get_arguments().any(|argument| argument.get_short() == Some(letter)) {
                wrong.push(word.to_owned());
            }
        } else if !named {
            named = true;
            match program.find_subcommand(word) {
                Some(found) => command = found,
                None if is_name(word) => return (vec![word.to_owned()], looked_up),
                // Any command: `pfimg COMMAND --json`.
                None => return (wrong, looked_up),
            }
        } else {
            plain += 1;
            // Behind a fork, `run` without `--` takes the words of another program.
            if command.get_name() == "run" && !is_new_form && plain == 2 {
                break;
            }
        }
    }
    (wrong, looked_up)
}

#[test]
fn every_command_line_in_the_documents_has_a_command_and_options_that_exist() {
    let mut program = pfimg::cli::definition();
    program.build();
    let of_all: BTreeSet<&str> = program
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .flat_map(|option| option.get_long().into_iter().chain(option.get_all_aliases().unwrap_or_default()))
        .collect();
    let (mut commands, mut options, mut wrong) = (BTreeSet::new(), 0, String::new());
    for (path, text) in documents() {
        for code in code(&text) {
            // An option without its command: some command has to have it.
            if let Some(option) = code.strip_prefix("--") {
                let name = option.split([' ', '=', '[', ',', ':']).next().unwrap_or_default();
                if name.starts_with(|first: char| first.is_ascii_lowercase())
                    && !of_all.contains(name)
                    && !FOREIGN.contains(&name)
                {
                    write!(wrong, "\n{}: `{code}`", path.display()).unwrap();
                }
            }
            for words in command_lines(&code) {
                let (unknown, looked_up) = unknown(&words, &program);
                // These pages quote messages, which can begin with the name of the program.
                let first = words.first().copied().unwrap_or_default();
                let quotes = ["MESSAGES.md", "TROUBLESHOOTING.md"].iter().any(|page| path.ends_with(page));
                if quotes && unknown == [first] {
                    continue;
                }
                options += looked_up;
                commands.extend(words.first().map(|word| (*word).to_owned()));
                if !unknown.is_empty() {
                    write!(wrong, "\n{}: `{}`: {unknown:?}", path.display(), code.trim()).unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "pfimg has no such command or option:{wrong}");
    assert!(commands.len() > 20 && options > 30, "only {options} options of {commands:?} are found");

    let judge = |code: &str| {
        command_lines(code).iter().flat_map(|words| unknown(words, &program).0).collect::<Vec<_>>()
    };
    assert_eq!(judge("pfimg --json frobnicate x"), ["frobnicate"]);
    assert_eq!(judge("cd x && pfimg seal f --tags=a; pfimg gc --dry-run"), ["--tags"]);
    assert_eq!(judge("pfimg run -q f -- ls --colour; pfimg run f ls --colour"), [""; 0]);
    assert_eq!(judge("pfimg run -Q f"), ["-Q"]);
    let page = "a `pfimg a\n--b` c\n```sh\n$ pfimg d # pfimg e\n```\n";
    assert_eq!(code(page), ["pfimg d", "pfimg a --b"]);
}

/// The text of a source file without comments and without its module of tests.
fn product(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_the_architecture_says_is_absent_is_absent() {
    let all: Vec<(PathBuf, String)> = files("src", "rs")
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(top().join(path)).unwrap()))
        .collect();
    // Files that are modules of tests as a whole.
    let mut tests = BTreeSet::new();
    for (_, text) in &all {
        for declared in text.split("#[cfg(test)]\n").skip(1) {
            let line = declared.lines().next().unwrap_or_default();
            let name = line.trim_start_matches("pub(crate) ").strip_prefix("mod ");
            tests.extend(name.and_then(|name| name.strip_suffix(';')).map(str::to_owned));
        }
    }
    assert!(tests.contains("failing"), "{tests:?}");
    let found = |words: &[&str]| -> BTreeSet<String> {
        let mut places = BTreeSet::new();
        for (path, text) in &all {
            let below = path.strip_prefix("src").unwrap().with_extension("");
            let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
            if parts.iter().any(|part| tests.contains(*part)) {
                continue;
            }
            if words.iter().any(|word| product(text).contains(word)) {
                places.insert(parts[0].to_owned());
            }
        }
        places
    };
    // Rooms that have any of the words, and those that may.
    let rules: [(&[&str], &[&str]); 6] = [
        (&["fuser::"], &["fuse"]),
        (&["println!(", "eprintln!(", "print!("], &["cli", "sandbox"]),
        (&["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"], &[]),
        (&["process::exit(", "process::abort("], &[]),
        (&["_exit("], &["mount"]),
        (&["unsafe {", "unsafe fn", "unsafe impl"], &["cache", "mount", "sandbox", "util", "vfs"]),
    ];
    for (words, rooms) in rules {
        let elsewhere: Vec<String> =
            found(words).into_iter().filter(|room| !rooms.contains(&room.as_str())).collect();
        assert!(
            elsewhere.is_empty(),
            "{words:?} in {elsewhere:?}; docs/ARCHITECTURE.md allows it in {rooms:?}"
        );
    }
    assert!(!found(&["fuser::"]).is_empty(), "nothing is found at all");
    let pure = found(&["std::fs", "rustix::fs", "File::open", "env::var"]);
    for room in ["layers", "tree", "oracle"] {
        assert!(!pure.contains(room), "{room} reads a file or the environment");
    }
    for path in files("src", "rs").into_iter().chain(files("mount-tests", "rs")) {
        let text = fs::read_to_string(top().join(&path)).unwrap();
        let is_ignored = text.lines().any(|line| line.trim_start().starts_with("#[ignore"));
        assert!(!is_ignored, "{} has a test that never runs", path.display());
    }
}
