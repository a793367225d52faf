//! The commits that were made in a fork.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// Longest list of commits that is read, in bytes.
pub(in crate::cli) const MAX_LOG: u64 = 16 << 20;

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

    /// Returns the commits since `before` was read. `None` without a repository.
    pub(in crate::cli) fn since(&self, before: &Self) -> Option<Made> {
        let Some(log) = &self.log else {
            let head = self.head.as_ref()?;
            let is_other = before.head.as_ref().is_some_and(|before| before != head);
            return Some(Made { number: is_other.into(), listed: Vec::new() });
        };
        let old = before.log.as_deref().unwrap_or_default();
        let lines = |log| <[u8]>::split(log, |byte| *byte == b'\n');
        let new: Vec<&[u8]> = if let Some(new) = log.strip_prefix(old) {
            lines(new).collect()
        } else {
            // Git has removed old lines.
            let old: HashSet<_> = lines(old).collect();
            lines(log).filter(|line| !old.contains(line)).collect()
        };
        let listed = reachable(new.iter().filter_map(|line| Line::parse(line)));
        let number = if listed.is_empty() {
            // HEAD is on an older commit again, or on another branch: their number is still known.
            new.iter().filter(|line| is_commit(line)).count()
        } else {
            listed.len()
        };
        Some(Made { number: number as u64, listed })
    }
}

/// The commits that were made in a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Made {
    pub(in crate::cli) number: u64,
    /// Those that lead to HEAD, newest first; of a merge the first line. Empty if git keeps no log of HEAD.
    listed: Vec<Commit>,
}

impl Made {
    /// The id and the first line of each commit that leads to HEAD, newest first, as far as git keeps a log of HEAD.
    pub(in crate::cli) fn listed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.listed.iter().map(|commit| (commit.id.as_str(), commit.subject.as_str()))
    }
}

/// A commit, as the log of HEAD describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Commit {
    /// Its id in hex.
    id: String,
    /// The first line of its message. Bytes that are not UTF-8 are U+FFFD.
    subject: String,
}

/// A line of the log of HEAD: `OLD NEW NAME <MAIL> TIME ZONE\tWHAT`.
struct Line<'a> {
    old: &'a [u8],
    new: &'a [u8],
    what: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let tab = line.iter().position(|byte| *byte == b'\t')?;
        let mut words = line[..tab].split(|byte| *byte == b' ');
        let mut id = || words.next().filter(|id| id.iter().all(u8::is_ascii_hexdigit));
        Some(Self { old: id()?, new: id()?, what: &line[tab + 1..] })
    }

    /// Whether it replaces the commit before it.
    fn replaces(&self) -> bool {
        let verbs: [&[u8]; 4] =
            [b"commit (amend)", b"rebase (squash)", b"rebase (fixup)", b"rebase (reword)"];
        verbs.iter().any(|verb| self.what.starts_with(verb))
    }

    fn subject(&self) -> String {
        let text = String::from_utf8_lossy(self.what);
        match text.split_once(": ") {
            Some((verb, subject)) if !verb.starts_with("merge") => subject.to_owned(),
            _ => text.into_owned(),
        }
    }
}

/// Returns the commits of a log that lead to its last HEAD, newest first.
fn reachable<'a>(lines: impl Iterator<Item = Line<'a>>) -> Vec<Commit> {
    // By id: the commit before it, and the subject.
    let mut made: HashMap<&[u8], (&[u8], String)> = HashMap::new();
    let mut head: &[u8] = b"";
    for line in lines {
        if is_commit_verb(line.what) {
            let before =
                made.get(line.old).filter(|_| line.replaces()).map_or(line.old, |(before, _)| before);
            made.insert(line.new, (before, line.subject()));
        }
        head = line.new;
    }
    let mut listed = Vec::new();
    // Removed, so that a log that is a circle ends.
    while let Some((before, subject)) = made.remove(head) {
        listed.push(Commit { id: String::from_utf8_lossy(head).into_owned(), subject });
        head = before;
    }
    listed
}

/// Returns whether a line records a new commit, and not a checkout or a reset: `OLD NEW NAME <MAIL> TIME
/// ZONE\tcommit: …`.
fn is_commit(line: &[u8]) -> bool {
    line.iter().position(|byte| *byte == b'\t').is_some_and(|tab| is_commit_verb(&line[tab + 1..]))
}

fn is_commit_verb(what: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A log: `OLD NEW WHAT` in each line.
    fn log(lines: &[&str]) -> Commits {
        let line = |line: &&str| {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap();
            format!("{} {} A <a@b> 1 +0000\t{}\n", word(), word(), word()).into_bytes()
        };
        Commits { log: Some(lines.iter().flat_map(line).collect()), head: None }
    }

    fn made(after: &Commits, before: &Commits) -> (u64, String) {
        let made = after.since(before).unwrap();
        let listed = made.listed.iter().map(|commit| format!("{} {}", commit.id, commit.subject));
        (made.number, listed.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn commits_are_those_that_lead_from_the_earlier_head_to_the_present_one() {
        let first = ["0 a commit (initial): a", "a a checkout: moving from a to b"];
        let before = log(&first);
        assert_eq!(made(&before, &before), (0, String::new()));
        let with = |more: &[&str]| made(&log(&[&first[..], more].concat()), &before);
        assert_eq!(
            with(&["a b commit: one: two", "b c revert: Revert \"x\""]),
            (2, "c Revert \"x\", b one: two".into())
        );
        // Replaced, and taken back.
        assert_eq!(with(&["a b commit: b", "b c commit (amend): c"]), (1, "c c".into()));
        assert_eq!(
            with(&["a b commit: b", "b a reset: moving to HEAD~1", "a c commit: c"]),
            (1, "c c".into())
        );
        assert_eq!(with(&["a d merge x: Fast-forward"]), (0, String::new()));
        let merge = "a b merge x: Merge made by the 'ort' strategy.";
        assert_eq!(with(&[merge]), (1, "b merge x: Merge made by the 'ort' strategy.".into()));
        let rebase = [
            "a b commit: b",
            "b e rebase (start): checkout e",
            "e f rebase (pick): b",
            "f f rebase (finish): x",
        ];
        assert_eq!(with(&rebase), (1, "f b".into()));
        let aborted =
            ["a b commit: b", "b e rebase (start): checkout e", "e b rebase (abort): returning to x"];
        assert_eq!(with(&aborted), (1, "b b".into()));
        // On a branch that is not checked out.
        assert_eq!(with(&["a b commit: b", "b a checkout: moving from x to y"]), (1, String::new()));
        // Without the older lines.
        let all = ["a b commit: b", "b c commit: c"];
        assert_eq!(made(&log(&all), &log(&[first[0], all[0]])), (1, "c c".into()));
        assert_eq!(made(&log(&first), &Commits::default()), (1, "a a".into()));
        // A circle, and lines of another form.
        assert_eq!(with(&["b c commit: c", "c b commit: b", "x y commit: odd"]), (2, "b b, c c".into()));
        assert_eq!(Commits::default().since(&before), None);
        let head = |text: &str| Commits { log: None, head: Some(text.into()) };
        assert_eq!(made(&head("a"), &head("a")), (0, String::new()));
        assert_eq!(made(&head("b"), &head("a")), (1, String::new()));
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
}
