//! Finds the command among the words of `pfimg run`, before they are parsed.
//!
//! `run [NAME…] [OPTIONS] -- COMMAND…` takes any number of forks. `run FORK COMMAND…` is the older form: the
//! word after the fork begins the command. Here both become the first form, the older one with a mark.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use rustix::fs::Access;

use crate::error::{Error, ErrorKind, Result};

/// The option that marks the older form.
pub(crate) const OLDER_FORM: &str = "--older-form";

/// The word that ends the options.
const END: &str = "--";

/// The most names that one word may stand for.
const MAX_NAMES: usize = 1000;

/// The facts about a word that may be a fork's name.
pub(crate) trait Known {
    /// Returns whether an option takes the next word as its value. The option is given as typed, with its
    /// dashes.
    fn takes_value(&self, option: &str) -> bool;
    /// Returns whether there is a fork with this name.
    fn is_fork(&self, name: &str) -> bool;
    /// Returns whether there is a program with this name.
    fn is_program(&self, name: &OsStr) -> bool;
}

/// Returns the words behind `run`, with the command always behind `--`.
pub(crate) fn arrange(words: Vec<OsString>, known: &dyn Known) -> Result<Vec<OsString>> {
    let Some(first) = first_name(&words, known) else { return Ok(words) };
    // The end of the options has a command behind it; `run FORK echo --` has none.
    let end = words[first..].iter().position(|word| word == END).map(|at| first + at);
    let end = end.filter(|end| end + 1 < words.len());
    let is_older = match end {
        Some(end) if end == first + 1 => false,
        Some(end) => is_command(&words[first..end], known)?,
        // A lone `--` leaves the command out.
        None => words.len() > first + 1 && words[first + 1..] != [END],
    };
    let mut words = words;
    if is_older {
        words.insert(first + 1, END.into());
        words.insert(first, OLDER_FORM.into());
    }
    Ok(words)
}

/// Returns the index of the first word that belongs to no option.
fn first_name(words: &[OsString], known: &dyn Known) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let text = word.to_string_lossy();
        if text == END {
            return None;
        }
        if !text.starts_with('-') || text == "-" {
            return Some(at);
        }
        at += 1 + usize::from(takes_next(&text, known));
    }
    None
}

/// Returns whether the next word is the value of an option, or of the last of several letters.
fn takes_next(option: &str, known: &dyn Known) -> bool {
    if option.starts_with(END) {
        return !option.contains('=') && known.takes_value(option);
    }
    let letters = &option[1..];
    let with_value = letters.char_indices().find(|(_, letter)| known.takes_value(&format!("-{letter}")));
    with_value.is_some_and(|(at, letter)| at + letter.len_utf8() == letters.len())
}

/// Returns whether the words before `--` are a fork and the beginning of a command that itself contains `--`,
/// such as `a cargo test -- --nocapture`. Fails if that is unclear: a wrong guess would run another command.
fn is_command(words: &[OsString], known: &dyn Known) -> Result<bool> {
    let [fork, second, ..] = words else { return Ok(false) };
    let is_fork = |name: &OsStr| name.to_str().is_some_and(|name| known.is_fork(name));
    // An option may contain a slash, as in `--json=/some/file`.
    let is_option = second.as_encoded_bytes().starts_with(b"-");
    if is_option || is_fork(second) || !known.is_program(second) {
        return Ok(false);
    }
    let named = fork.to_string_lossy();
    if is_fork(fork) || named.contains('@') {
        return Ok(true);
    }
    let program = second.to_string_lossy();
    Err(Error::new(ErrorKind::InvalidInput, format!("{program:?} is a program, not a fork"))
        .with_hint(format!("write `pfimg run {named} -- {program} …` to run it in fork {named}")))
}

/// Returns whether a program with this name can be executed.
pub(super) fn is_program(name: &OsStr) -> bool {
    let runs = |file: &Path| {
        fs::metadata(file).is_ok_and(|file| file.is_file())
            && rustix::fs::access(file, Access::EXEC_OK).is_ok()
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| runs(&folder.join(name)))
}

/// Returns the names that a word stands for: `try-{1..3}` and `{a,b}` stand for several, in any shell.
pub(super) fn expand(word: &str) -> Result<Vec<String>> {
    let mut names = vec![String::new()];
    let mut rest = word;
    while let Some((before, choices, after)) = next_braces(rest) {
        let choices = choices_of(choices)?;
        if names.len().saturating_mul(choices.len()) > MAX_NAMES {
            let what = format!("{word:?} stands for more than {MAX_NAMES} forks");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let with = |name: &String| {
            choices.iter().map(move |choice| format!("{name}{before}{choice}")).collect::<Vec<_>>()
        };
        names = names.iter().flat_map(with).collect();
        rest = after;
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

/// Returns the text before, in and behind the first braces that stand for several names.
fn next_braces(text: &str) -> Option<(&str, &str, &str)> {
    let open = text.find('{')?;
    let close = open + text[open..].find('}')?;
    let inside = &text[open + 1..close];
    (inside.contains(',') || inside.contains("..")).then(|| (&text[..open], inside, &text[close + 1..]))
}

fn choices_of(inside: &str) -> Result<Vec<String>> {
    if inside.contains(',') {
        return Ok(inside.split(',').map(str::to_owned).collect());
    }
    let odd = || {
        Error::new(ErrorKind::InvalidInput, format!("{{{inside}}} is not a range of numbers"))
            .with_hint("write {1..4}, or {a,b} for names")
    };
    let (first, last) = inside.split_once("..").ok_or_else(odd)?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| odd());
    let (from, to) = (number(first)?, number(last)?);
    if from.abs_diff(to) as usize >= MAX_NAMES {
        return Err(odd());
    }
    // As in bash: {01..10} has two digits everywhere.
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    let numbers: Vec<u32> = if from <= to { (from..=to).collect() } else { (to..=from).rev().collect() };
    Ok(numbers.into_iter().map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stub;

    impl Known for Stub {
        fn takes_value(&self, option: &str) -> bool {
            ["--write", "--timeout", "-n"].contains(&option)
        }

        fn is_fork(&self, name: &str) -> bool {
            ["a", "b", "test"].contains(&name)
        }

        fn is_program(&self, name: &OsStr) -> bool {
            let has_slash = name.as_encoded_bytes().contains(&b'/');
            has_slash || ["cargo", "git", "sh", "test"].iter().any(|program| name == *program)
        }
    }

    fn arranged(text: &str) -> Result<String> {
        let words = text.split_whitespace().map(OsString::from).collect();
        Ok(arrange(words, &Stub)?.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_command_of_either_form_is_found() {
        for (typed, meant) in [
            ("-- sh -c x", "-- sh -c x"),
            ("a -- sh", "a -- sh"),
            ("--write p -qn 3 new --timeout 5s -- sh", "--write p -qn 3 new --timeout 5s -- sh"),
            ("new newer -- sh", "new newer -- sh"),
            ("a sh -c x", "--older-form a -- sh -c x"),
            ("-q --write=p a echo --write -n --", "-q --write=p --older-form a -- echo --write -n --"),
            ("a cargo test -- --nocapture", "--older-form a -- cargo test -- --nocapture"),
            ("a@b git checkout -- file", "--older-form a@b -- git checkout -- file"),
            ("-n2 a test -- sh", "-n2 a test -- sh"),
            ("a --json=/tmp/j -- sh", "a --json=/tmp/j -- sh"),
            ("a ./sh -- x", "--older-form a -- ./sh -- x"),
            ("a", "a"),
            ("a --", "a --"),
            ("--write", "--write"),
        ] {
            assert_eq!(arranged(typed).unwrap(), meant, "{typed}");
        }
    }

    #[test]
    fn a_program_among_the_names_of_new_forks_is_refused() {
        let error = arranged("new cargo test -- --nocapture").unwrap_err().to_string();
        assert!(error.contains("\"cargo\" is a program") && error.contains("run new -- cargo"), "{error}");
    }

    #[test]
    fn braces_mean_several_names() {
        for (word, names) in [
            ("a", &["a"][..]),
            ("try-{1..3}", &["try-1", "try-2", "try-3"]),
            ("{a,b}-{2..1}", &["a-2", "a-1", "b-2", "b-1"]),
            ("n{08..10}", &["n08", "n09", "n10"]),
            ("{1..2}@start", &["1@start", "2@start"]),
            ("a{b}c", &["a{b}c"]),
            ("a}{", &["a}{"]),
        ] {
            assert_eq!(expand(word).unwrap(), names, "{word}");
        }
        for word in ["{a..c}", "{1..5000}", "{1..100}{1..100}", "{..}"] {
            assert!(expand(word).is_err(), "{word}");
        }
    }
}
