//! The changes of a run in its fork: files by comparing, commits by reading.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::record::Record;
use crate::cli::text::{count, plain_bytes};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::fork::beside::OnDisk;
use crate::fork::{Compare, Difference, compare};
use crate::ops;
use crate::store::Store;

/// How often a comparison starts again because the fork was sealed in the meantime.
const ATTEMPTS: usize = 3;

/// Longest list of commits that is read, in bytes.
pub(in crate::cli) const MAX_LOG: u64 = 16 << 20;

/// More deletions than this get a line each.
const IN_LINE: usize = 4;

/// The numbers of added, changed and deleted files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) deleted: u64,
    /// The deleted paths: a file, or a whole directory with a slash behind it.
    pub(super) deletions: Vec<String>,
}

impl Changes {
    /// Returns the changes of a fork since `before`, an image or nothing.
    pub(super) fn since(store: &Arc<Store>, fork: &str, before: Option<Digest>) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::look(store, fork, before) {
                Err(error)
                    if attempt < ATTEMPTS
                        && matches!(error.kind(), ErrorKind::Missing | ErrorKind::Damaged) =>
                {
                    attempt += 1;
                }
                looked => return looked,
            }
        }
    }

    fn look(store: &Arc<Store>, fork: &str, before: Option<Digest>) -> Result<Self> {
        let now = OnDisk::read(store.root(), fork)?;
        if now.is_untouched && now.base == before {
            return Ok(Self::default());
        }
        let forks = forks::registry(store, true)?;
        let (before, after) = (forks.view(before)?, forks.get(fork)?.view());
        let mut found = Vec::new();
        compare(&before, &after, Compare { all: true, read: true }, &mut |difference| {
            found.push(difference);
            Ok(())
        })?;
        Ok(Self::of(&found))
    }

    /// Counts differences, which are listed in full, in the order of a walk.
    fn of(found: &[Difference]) -> Self {
        let counted = ops::changes::Changes::of(found);
        let deletions = counted.deletions.iter().map(|(path, is_folder)| named(path, *is_folder)).collect();
        Self { added: counted.added, changed: counted.changed, deleted: counted.deleted, deletions }
    }
}

fn named(path: &[u8], is_folder: bool) -> String {
    let slash = if is_folder { "/" } else { "" };
    format!("{}{slash}", plain_bytes(path, usize::MAX))
}

/// The commits in a fork, read from git's files. Git itself never runs there: a fork's settings can name
/// programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Commits {
    /// The lines of `.git/logs/HEAD`: one for each time that HEAD changed its commit.
    log: Option<Vec<u8>>,
    /// The content of HEAD, if there is no such file.
    head: Option<Vec<u8>>,
}

impl Commits {
    /// Reads them below a fork's files. Follows no links of the fork.
    pub(super) fn read(files: &Path) -> Self {
        Self::of(&|path| read_below(files, path))
    }

    /// Does the same with `file`, which reads one of a fork's files of at most [`MAX_LOG`] bytes.
    pub(in crate::cli) fn of(file: &dyn Fn(&str) -> Option<Vec<u8>>) -> Self {
        let log = file(".git/logs/HEAD");
        let head = if log.is_none() { file(".git/HEAD").map(|head| resolve(file, head)) } else { None };
        Self { log, head }
    }

    /// Counts the commits since `before` was read. `None` without a repository.
    pub(in crate::cli) fn since(&self, before: &Self) -> Option<u64> {
        let Some(log) = &self.log else {
            let head = self.head.as_ref()?;
            return Some(u64::from(before.head.as_ref().is_some_and(|before| before != head)));
        };
        let old = before.log.as_deref().unwrap_or_default();
        let made = |line: &&[u8]| is_commit(line);
        let lines = |log: &'_ [u8]| log.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let number = if let Some(new) = log.strip_prefix(old) {
            new.split(|byte| *byte == b'\n').filter(made).count()
        } else {
            // Git has removed old lines.
            let old: HashSet<_> = lines(old).into_iter().collect();
            lines(log).iter().filter(|line| !old.contains(*line) && is_commit(line)).count()
        };
        Some(number as u64)
    }
}

/// Returns whether a line records a new commit, and not a checkout or a reset: `OLD NEW NAME <MAIL> TIME
/// ZONE\tcommit: …`.
fn is_commit(line: &[u8]) -> bool {
    let Some(tab) = line.iter().position(|byte| *byte == b'\t') else { return false };
    let what = &line[tab + 1..];
    let verbs: [&[u8]; 5] = [b"commit", b"cherry-pick", b"revert", b"am:", b"merge"];
    let is_rebase = what.starts_with(b"rebase")
        && [&b"(pick)"[..], b"(squash)", b"(fixup)", b"(reword)"]
            .iter()
            .any(|step| what.windows(step.len()).any(|part| part == *step));
    let is_fast_forward = what.ends_with(b"Fast-forward");
    (verbs.iter().any(|verb| what.starts_with(verb)) && !is_fast_forward) || is_rebase
}

/// Returns the commit that a HEAD names, or the HEAD itself if its commit is unknown.
fn resolve(file: &dyn Fn(&str) -> Option<Vec<u8>>, head: Vec<u8>) -> Vec<u8> {
    let name = head.strip_prefix(b"ref: ").and_then(|name| std::str::from_utf8(name.trim_ascii()).ok());
    name.and_then(|name| file(&format!(".git/{name}"))).unwrap_or(head)
}

/// Reads a regular file below a directory, without following links. `None` if it is missing or too long.
fn read_below(folder: &Path, path: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, folder, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let within = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // Opening a fifo would wait for a writer.
    let file = openat2(&top, path, flags | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty(), within).ok()?;
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size.unsigned_abs() > MAX_LOG
    {
        return None;
    }
    let mut bytes = Vec::new();
    File::from(file).take(MAX_LOG).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Returns a run in a line: `exit 0  14.0 s  -1 +1 ~1   deleted: docs/p1.md   1 commit`. Many deletions get one
/// line each below it.
pub(super) fn line(record: &Record) -> String {
    let mut parts = Vec::new();
    parts.push(match (record.timed_out, record.exit) {
        (true, _) => "timeout".to_owned(),
        (false, Some(code)) => format!("exit {code}"),
        (false, None) => "no exit code".to_owned(),
    });
    parts.push(format!("{:.1} s", record.seconds.unwrap_or_default()));
    if let (Some(added), Some(changed), Some(deleted)) = (record.added, record.changed, record.deleted) {
        let counts = [('-', deleted), ('+', added), ('~', changed)];
        let counts: Vec<_> =
            counts.iter().filter(|(_, n)| *n > 0).map(|(sign, n)| format!("{sign}{n}")).collect();
        parts.push(if counts.is_empty() { "no changes".to_owned() } else { counts.join(" ") });
    }
    let mut line = parts.join("  ");
    let in_line = record.deletions.len() <= IN_LINE;
    if in_line && !record.deletions.is_empty() {
        line = format!("{line}   deleted: {}", record.deletions.join(", "));
    }
    if let Some(commits) = record.commits.filter(|commits| *commits > 0) {
        line = format!("{line}   {}", count(commits, "commit"));
    }
    if !in_line {
        for path in &record.deletions {
            line = format!("{line}\n    deleted: {path}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::How;
    use crate::ops::changes::difference;

    fn changes(found: &[(How, &str)]) -> (u64, u64, u64, String) {
        let found: Vec<_> = found.iter().map(|(how, path)| difference(*how, path)).collect();
        let changes = Changes::of(&found);
        (changes.deleted, changes.added, changes.changed, changes.deletions.join(" "))
    }

    #[test]
    fn files_are_counted_and_whole_folders_are_named_once() {
        use How::{Added, Attributes, Content, Kind, Removed};
        assert_eq!(changes(&[]), (0, 0, 0, String::new()));
        let found =
            [(Removed, "a/"), (Removed, "a/b/"), (Removed, "a/b/c"), (Removed, "a/d"), (Removed, "ab")];
        assert_eq!(changes(&found), (3, 0, 0, "a/ ab".into()));
        let found = [(Removed, "empty/"), (Removed, "other/"), (Added, "new/"), (Added, "new/inner/")];
        assert_eq!(changes(&found), (2, 1, 0, "empty/ other/".into()));
        let found = [(Content, "x"), (Attributes, "y"), (Added, "z/"), (Added, "z/1"), (Added, "z/2")];
        assert_eq!(changes(&found), (0, 2, 2, String::new()));
        assert_eq!(changes(&[(Kind, "d/"), (Removed, "d/x"), (Removed, "e")]), (2, 0, 1, "d/ e".into()));
    }

    #[test]
    fn changes_inside_git_directories_are_left_out_and_their_deletion_is_not() {
        use How::{Added, Content, Removed};
        let found = [
            (Content, ".git/index"),
            (Added, ".git/objects/ab/"),
            (Added, "sub/.git/x"),
            (Content, "a.git/x"),
        ];
        assert_eq!(changes(&found), (0, 0, 1, String::new()));
        let found = [(Removed, ".git/"), (Removed, ".git/HEAD"), (Removed, ".git/objects/")];
        assert_eq!(changes(&found), (1, 0, 0, ".git/".into()));
    }

    #[test]
    fn commits_are_new_lines_that_tell_of_one() {
        let line = |what: &str| format!("0 1 A <a@b> 1 +0000\t{what}\n").into_bytes();
        let log = |lines: &[&str]| Commits {
            log: Some(lines.iter().flat_map(|what| line(what)).collect()),
            head: None,
        };
        let before = log(&["commit (initial): a", "checkout: moving from a to b"]);
        assert_eq!(before.since(&before), Some(0));
        let more = [
            "commit (initial): a",
            "checkout: moving from a to b",
            "commit: c",
            "reset: moving to x",
            "commit (amend): d",
            "merge x: Fast-forward",
            "rebase (pick): e",
        ];
        assert_eq!(log(&more).since(&before), Some(3));
        assert_eq!(log(&more[2..]).since(&before), Some(3));
        assert_eq!(log(&more[..1]).since(&Commits::default()), Some(1));
        assert_eq!(Commits::default().since(&before), None);
        let head = |text: &str| Commits { log: None, head: Some(text.into()) };
        assert_eq!((head("a").since(&head("a")), head("b").since(&head("a"))), (Some(0), Some(1)));
    }

    #[test]
    fn no_link_of_a_fork_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("fork/.git/logs")).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("fork/.git/logs/HEAD")).unwrap();
        std::os::unix::fs::symlink(at("secret"), at("fork/.git/HEAD")).unwrap();
        assert_eq!(Commits::read(&at("fork")), Commits::default());
        std::fs::remove_file(at("fork/.git/HEAD")).unwrap();
        std::fs::write(at("fork/.git/HEAD"), "ref: ../../secret\n").unwrap();
        assert_eq!(Commits::read(&at("fork")).head.unwrap(), b"ref: ../../secret\n");
    }

    #[test]
    fn deletions_come_first_and_all_of_them() {
        let record = Record {
            exit: Some(0),
            seconds: Some(14.04),
            added: Some(1),
            changed: Some(1),
            deleted: Some(1),
            deletions: vec!["docs/p1.md".into()],
            commits: Some(1),
            ..Record::default()
        };
        assert_eq!(line(&record), "exit 0  14.0 s  -1 +1 ~1   deleted: docs/p1.md   1 commit");
        let nothing = Record {
            deletions: Vec::new(),
            commits: Some(0),
            deleted: Some(0),
            added: Some(0),
            changed: Some(0),
            ..record.clone()
        };
        assert_eq!(line(&nothing), "exit 0  14.0 s  no changes");
        let many =
            Record { deletions: (0..50).map(|n| format!("f{n}")).collect(), deleted: Some(50), ..record };
        assert_eq!(line(&many).lines().filter(|line| line.contains("deleted: f")).count(), 50);
    }
}
