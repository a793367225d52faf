//! The changes of a run in its fork.

use std::sync::Arc;

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
    if record.interrupted {
        parts.push("interrupted: the daemon of the store ended".to_owned());
    }
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
        let lost = Record { exit: Some(1), seconds: Some(1.0), interrupted: true, ..Record::default() };
        assert_eq!(line(&lost), "exit 1  1.0 s  interrupted: the daemon of the store ended");
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
