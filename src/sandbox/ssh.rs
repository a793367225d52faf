//! Finds root's settings files that OpenSSH would refuse in a run.
//!
//! `ssh` refuses a settings file that belongs neither to root nor to its user. An ordinary user's namespace contains only that
//! user, so root's files show the kernel's substitute for an owner. The view therefore shows copies that belong to the user.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::secrets;

/// Settings files of the whole system. Some distributions use the second path.
const SYSTEM: [&str; 2] = ["/etc/ssh/ssh_config", "/usr/etc/ssh/ssh_config"];

/// The depth to which OpenSSH follows `Include`.
const MAX_DEPTH: usize = 16;
/// The most settings files that are read. No real settings have as many.
const MAX_FILES: usize = 256;
/// The longest settings file in bytes that is copied.
const MAX_BYTES: u64 = 1 << 20;

/// A file of root's that the view shows as the user's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Returns root's files that `ssh` reads for this user. Must be called before this process enters a new namespace, where owners
/// are not shown.
pub(super) fn settings_of_root(home: Option<&Path>) -> Vec<Settings> {
    let mut found = BTreeMap::new();
    for system in SYSTEM {
        read(
            Path::new(system),
            Path::new(system).parent().unwrap_or(Path::new("/")),
            home,
            MAX_DEPTH,
            &mut found,
        );
    }
    if let Some(own) = home.map(|home| home.join(".ssh")) {
        read(&own.join("config"), &own, home, MAX_DEPTH, &mut found);
    }
    found
        .into_iter()
        .filter_map(|(path, settings)| settings.map(|(content, mode)| Settings { path, content, mode }))
        .collect()
}

/// Content and mode of each file that was read; `None` if it does not belong to root.
type Found = BTreeMap<PathBuf, Option<(Vec<u8>, u32)>>;

fn read(path: &Path, base: &Path, home: Option<&Path>, depth: usize, found: &mut Found) {
    let Ok(path) = fs::canonicalize(path) else { return };
    let Ok(metadata) = fs::metadata(&path) else { return };
    if depth == 0
        || found.len() >= MAX_FILES
        || found.contains_key(&path)
        || !metadata.is_file()
        || metadata.len() > MAX_BYTES
    {
        return;
    }
    let Ok(content) = fs::read(&path) else { return };
    let text = String::from_utf8_lossy(&content).into_owned();
    let is_roots = metadata.uid() == 0;
    found.insert(path, is_roots.then_some((content, metadata.mode() & 0o777)));
    for pattern in text.lines().flat_map(included) {
        let pattern = match (pattern.strip_prefix("~/"), home) {
            (Some(below), Some(home)) => home.join(below),
            _ => base.join(pattern),
        };
        for path in expand(&pattern) {
            read(&path, base, home, depth - 1, found);
        }
    }
}

/// Returns the patterns that a line includes, by the rules of `ssh_config(5)`.
fn included(line: &str) -> Vec<String> {
    let Some((word, rest)) = line.trim().split_once([' ', '\t', '=']) else { return Vec::new() };
    if !word.eq_ignore_ascii_case("include") {
        return Vec::new();
    }
    let mut patterns = Vec::new();
    let mut rest = rest.trim_start_matches([' ', '\t', '=']);
    while !rest.is_empty() && !rest.starts_with('#') {
        let (pattern, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once([' ', '\t']).unwrap_or((rest, "")),
        };
        if !pattern.is_empty() {
            patterns.push(pattern.to_owned());
        }
        rest = after.trim_start();
    }
    patterns
}

/// Returns the files that match a pattern with `*` and `?`.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/")];
    for part in pattern.components().skip(1) {
        let part = part.as_os_str();
        paths = match part.to_str().filter(|part| part.contains(['*', '?', '['])) {
            None => paths.into_iter().map(|path| path.join(part)).collect(),
            Some(part) => paths.iter().flat_map(|path| matching(path, part)).take(MAX_FILES).collect(),
        };
    }
    paths
}

fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = widened(pattern);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name()).filter(|name| secrets::matches(&pattern, name));
    names.map(|name| folder.join(name)).collect()
}

/// Replaces `?` and `[…]` in a pattern by `*`. It then matches more files, which does no harm: the view shows each unchanged.
fn widened(pattern: &str) -> String {
    let mut wide = String::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        if c == '[' {
            rest.by_ref().find(|c| *c == ']');
        }
        wide.push(if c == '[' || c == '?' { '*' } else { c });
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_of_a_line_are_read_as_in_ssh() {
        for (line, patterns) in [
            ("Include /etc/ssh/ssh_config.d/*.conf", &["/etc/ssh/ssh_config.d/*.conf"][..]),
            ("  include=a  \"b c\"\t~/d # e", &["a", "b c", "~/d"]),
            ("INCLUDE \"open", &["open"]),
            ("#Include a", &[]),
            ("IncludeMore a", &[]),
            ("Include", &[]),
            ("Host a", &[]),
        ] {
            assert_eq!(included(line), patterns, "{line}");
        }
    }

    #[test]
    fn patterns_mean_files_and_settings_include_each_other_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        let at = |path: &str| home.join(path);
        fs::create_dir_all(at(".ssh/d")).unwrap();
        for (file, text) in [
            (".ssh/config", "Include d/*.conf\nInclude ~/.ssh/config nothing\n"),
            (".ssh/d/a.conf", "Include other\n"),
            (".ssh/d/b.conf", ""),
            (".ssh/d/c.old", ""),
            (".ssh/other", "Include d/a.conf\n"),
        ] {
            fs::write(at(file), text).unwrap();
        }
        assert_eq!(expand(&at(".ssh/d/?.conf")).len(), 2);
        assert_eq!(expand(&at(".ssh/d/[ab].conf")).len(), 2);
        let mut found = BTreeMap::new();
        read(&at(".ssh/config"), &at(".ssh"), Some(&home), MAX_DEPTH, &mut found);
        let names = [".ssh/config", ".ssh/d/a.conf", ".ssh/d/b.conf", ".ssh/other"].map(at);
        assert_eq!(found.into_keys().collect::<Vec<_>>(), names);
    }
}
