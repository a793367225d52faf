//! Suggests existing names for a name that does not exist.

use std::fs;

use super::store_arg::StoreArg;
use crate::error::{Error, ErrorKind};
use crate::store::Store;
use crate::store::images::MIN_PREFIX;

/// The most names that are suggested.
const MOST: usize = 3;

/// Shorter names are part of too many others.
const LONG_ENOUGH: usize = 3;

/// Adds similar names to the error of a name that does not exist.
pub(crate) fn explain(store: &StoreArg, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    let Some(name) = error.missing_name() else { return error };
    let Ok(store) = store.open() else { return error };
    let near = nearest(name, names(&store).iter().map(String::as_str));
    let near = if near.is_empty() { ids(&store, name) } else { near };
    let Some(question) = question(&near) else { return error };
    let hint = match error.hint() {
        Some(hint) => format!("{question} {hint}"),
        None => question,
    };
    error.with_hint(hint)
}

/// Returns the names of forks and tags.
fn names(store: &Store) -> Vec<String> {
    let mut names = store.tags().names().unwrap_or_default();
    for head in fs::read_dir(store.root().join("forks/heads")).into_iter().flatten().flatten() {
        let name = head.file_name().into_string().ok();
        let name = name.as_deref().and_then(|name| name.strip_suffix(".json"));
        names.extend(name.filter(|name| !name.starts_with('.')).map(str::to_owned));
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns the images whose ids begin nearly the same.
fn ids(store: &Store, name: &str) -> Vec<String> {
    let digits = name.strip_prefix("sha256:").unwrap_or(name).to_ascii_lowercase();
    if digits.len() < MIN_PREFIX || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Vec::new();
    }
    let ids = store.images().ids(&mut |_| ()).unwrap_or_default();
    let begins = |hex: &String| hex.get(..digits.len()).is_some_and(|begin| distance(begin, &digits) <= 1);
    let shown = digits.len().max(super::images::SHORT);
    ids.iter()
        .map(crate::digest::Digest::hex)
        .filter(begins)
        .take(MOST)
        .map(|hex| hex.chars().take(shown).collect())
        .collect()
}

/// Counts the letters to change, add, leave out, or swap with the next one.
fn distance(a: &str, b: &str) -> usize {
    strsim::osa_distance(a, b)
}

/// Returns the names similar to a mistyped one, the nearest first.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let length = name.chars().count();
    let most = (length / 3).clamp(1, 3);
    let lower = name.to_lowercase();
    let mut found: Vec<(usize, &str)> = names
        .filter_map(|other| {
            let far = distance(&lower, &other.to_lowercase());
            let far = if length >= LONG_ENOUGH && other.starts_with(name) { far.min(most) } else { far };
            // A name that differs in every letter is not similar.
            (far <= most && far < length.max(other.chars().count())).then_some((far, other))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().take(MOST).map(|(_, name)| name.to_owned()).collect()
}

fn question(names: &[String]) -> Option<String> {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let (last, others) = quoted.split_last()?;
    if others.is_empty() {
        return Some(format!("did you mean {last}?"));
    }
    Some(format!("did you mean {} or {last}?", others.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_near_the_meant_one_and_not_near_others() {
        let names = ["project", "try-1", "try-2", "docs", "green", "a"];
        for (typed, near) in [
            ("projcet", &["project"][..]),
            ("Project", &["project"]),
            ("proj", &["project"]),
            ("try1", &["try-1"]),
            ("try-3", &["try-1", "try-2"]),
            ("dcos", &["docs"]),
            ("b", &[]),
            ("nobody", &[]),
            ("gren", &["green"]),
            ("", &[]),
        ] {
            assert_eq!(nearest(typed, names.into_iter()), near, "{typed}");
        }
    }

    #[test]
    fn a_question_lists_its_names() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(question(&[]), None);
        assert_eq!(question(&names(&["a"])).unwrap(), "did you mean \"a\"?");
        assert_eq!(question(&names(&["a", "b", "c"])).unwrap(), "did you mean \"a\", \"b\" or \"c\"?");
    }
}
