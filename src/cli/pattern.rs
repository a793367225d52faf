//! Several names in one word: `try-{1..4}`, which some shells do not expand, and `'try-*'`.

use globset::Glob;

use crate::error::{Error, ErrorKind, Result};

/// The most names that one word may stand for.
const MOST: usize = 10_000;

/// Expands braces as bash does: `a{b,c}`, `{1..4}`, `{01..10}`, `{a..c}`. A word without such braces is itself.
pub(crate) fn expand(word: &str) -> Result<Vec<String>> {
    let mut words = vec![word.to_owned()];
    // The text before the first pair stays; the result of an expansion is expanded again.
    let mut done = Vec::new();
    while let Some(word) = words.pop() {
        if words.len() + done.len() > MOST {
            let what = format!("{word:?} stands for more than {MOST} names");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        match first_braces(&word) {
            Some((before, choices, after)) => {
                words.extend(choices.iter().rev().map(|choice| format!("{before}{choice}{after}")));
            }
            None => done.push(word),
        }
    }
    Ok(done)
}

/// Returns the first braces with choices, and the text before and behind them.
fn first_braces(word: &str) -> Option<(&str, Vec<String>, &str)> {
    word.match_indices('{').find_map(|(open, _)| {
        let inside = &word[open + 1..];
        let (mut depth, mut parts, mut from) = (0, Vec::new(), 0);
        for (at, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                ',' if depth == 0 => {
                    parts.push(inside[from..at].to_owned());
                    from = at + 1;
                }
                '}' if depth > 0 => depth -= 1,
                '}' => {
                    let last = &inside[from..at];
                    let choices = if parts.is_empty() {
                        range(last)?
                    } else {
                        parts.push(last.to_owned());
                        parts
                    };
                    return Some((&word[..open], choices, &inside[at + 1..]));
                }
                _ => {}
            }
        }
        None
    })
}

/// Expands `1..4` and `a..c`.
fn range(inside: &str) -> Option<Vec<String>> {
    let (first, last) = inside.split_once("..")?;
    let letter = |text: &str| text.chars().next().filter(|c| text.len() == 1 && c.is_ascii_alphabetic());
    if let (Some(first), Some(last)) = (letter(first), letter(last)) {
        return Some(
            in_order(i64::from(u32::from(first)), i64::from(u32::from(last)))
                .filter_map(|code| Some(char::from_u32(u32::try_from(code).ok()?)?.to_string()))
                .collect(),
        );
    }
    let number = |text: &str| text.parse::<i64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (low, high) = (number(first)?, number(last)?);
    if low.abs_diff(high) >= MOST as u64 {
        return None;
    }
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    Some(in_order(low, high).map(|number| format!("{number:0width$}")).collect())
}

/// Counts from one to the other, up or down.
fn in_order(first: i64, last: i64) -> Box<dyn Iterator<Item = i64>> {
    if first <= last { Box::new(first..=last) } else { Box::new((last..=first).rev()) }
}

/// Returns the names that a word stands for, of those that exist: the name itself, a pattern with `*`, `?` or
/// `[…]`, or braces. Returns a missing name as it is; a pattern without a match is an error.
pub(crate) fn names(word: &str, there: &[String]) -> Result<Vec<String>> {
    if there.iter().any(|name| name == word) {
        return Ok(vec![word.to_owned()]);
    }
    let mut names = Vec::new();
    for word in expand(word)? {
        if there.contains(&word) || !word.contains(['*', '?', '[']) {
            names.push(word);
            continue;
        }
        let glob = Glob::new(&word).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("{word:?} is not a pattern: {}", e.kind()))
        })?;
        let glob = glob.compile_matcher();
        let before = names.len();
        names.extend(there.iter().filter(|name| glob.is_match(name)).cloned());
        if names.len() == before {
            return Err(Error::new(ErrorKind::NotFound, format!("no fork matches {word:?}"))
                .with_hint("list the forks with `pfimg forks`; no fork was discarded"));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_expanded_as_bash_does() {
        for (word, expanded) in [
            ("try", &["try"][..]),
            ("try-{1..3}", &["try-1", "try-2", "try-3"]),
            ("{3..1}", &["3", "2", "1"]),
            ("{08..10}", &["08", "09", "10"]),
            ("{a..c}x", &["ax", "bx", "cx"]),
            ("a{b,c}{1,2}", &["ab1", "ab2", "ac1", "ac2"]),
            ("a{b,}", &["ab", "a"]),
            ("{a{1,2},b}", &["a1", "a2", "b"]),
            ("{a}", &["{a}"]),
            ("{", &["{"]),
            ("a}{", &["a}{"]),
            ("{1..x}", &["{1..x}"]),
            ("{1..99999999}", &["{1..99999999}"]),
        ] {
            assert_eq!(expand(word).unwrap(), expanded, "{word}");
        }
        assert!(expand(&"{1..99}".repeat(9)).is_err());
    }

    #[test]
    fn a_pattern_stands_for_the_names_that_fit_and_a_name_for_itself() {
        let there: Vec<String> = ["try-1", "try-2", "other", "odd*"].map(str::to_owned).into();
        for (word, expected) in [
            ("try-*", &["try-1", "try-2"][..]),
            ("try-[13]", &["try-1"]),
            ("t?y-2", &["try-2"]),
            ("odd*", &["odd*"]),
            ("try-{2..3}", &["try-2", "try-3"]),
            ("nobody", &["nobody"]),
        ] {
            assert_eq!(names(word, &there).unwrap(), expected, "{word}");
        }
        assert_eq!(names("x*", &there).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names("[", &there).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
