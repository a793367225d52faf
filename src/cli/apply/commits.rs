//! Copies a fork's commits into the repository of a directory.
//!
//! A fork's repository can name any program for git to run: in hooks, settings and attributes. So git never
//! opens that repository outside of the sandbox. In the sandbox git writes a bundle. Outside, git reads the
//! bundle, checks every object, and only adds objects.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::cli::run::inside;
use crate::cli::text::plain;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::git::{self, Git};
use crate::store::Store;
use crate::store::applies::Branch;

/// The namespace of forks' branches in a repository.
const BRANCHES: &str = "refs/heads/pfimg/";

/// The most branches of the directory's repository that are passed to git in the fork. Git leaves out the
/// commits that they hold.
const MOST_TIPS: usize = 2000;

/// Longest answer of git that is read, in bytes.
const MAX_ANSWER: u64 = 4096;

/// Settings under which git checks what it reads, and does nothing but what it is asked for.
const SETTINGS: [&str; 7] = [
    "fetch.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.file.allow=always",
    "submodule.recurse=false",
];

/// Runs in the fork. Its arguments are the directory for the answer and the known commits. It writes the number
/// of new commits, and a bundle of them.
const SCRIPT: &str = r#"
out=$1; shift
exec >/dev/null 2>"$out/said"
git() { command git -c core.hooksPath=/dev/null -c core.fsmonitor=false "$@"; }
head=$(git rev-parse --verify 'HEAD^{commit}') || exit 3
count=$(git rev-list --count --ignore-missing "$head" "$@") || exit 4
echo "$count" >"$out/count"
[ "$count" = 0 ] || git bundle create "$out/bundle" --ignore-missing HEAD "$@" || exit 5
"#;

/// New commits of a fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commits {
    /// The number of new commits.
    pub(super) number: u64,
    /// The branch for them. `None` if they were only counted.
    pub(super) branch: Option<Branch>,
    /// Whether the branch exists and has commits that the fork does not have.
    pub(super) diverged: bool,
}

/// The short name of a fork's branch.
pub(super) fn branch_of(fork: &str) -> String {
    format!("pfimg/{fork}")
}

/// Returns whether a directory is the top of a repository's work tree.
pub(super) fn has_repository(dir: &Path) -> bool {
    git(dir, &["rev-parse", "--git-dir"]).is_ok()
}

/// Copies the objects of a fork's commits into the directory's repository, and returns the new value of its
/// branch. Changes no branch. With `count`, only counts the commits.
pub(super) fn fetch(store: &Arc<Store>, fork: &str, dir: &Path, count: bool) -> Result<Option<Commits>> {
    let name = format!("{BRANCHES}{fork}");
    git(dir, &["check-ref-format", &name])
        .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("git refuses the branch name {name:?}")))?;
    let out = tempfile::Builder::new().prefix("pfimg-bundle-").tempdir();
    let out = out.map_err(|e| Error::io(e, "cannot make a directory for a bundle"))?;
    let at = fs::canonicalize(out.path()).map_err(|e| Error::io(e, "cannot find the bundle's directory"))?;
    let mut command: Vec<OsString> = ["sh", "-c", SCRIPT, "sh"].map(OsString::from).to_vec();
    command.push(at.clone().into_os_string());
    command.extend(tips(dir)?.into_iter().map(|tip| format!("^{tip}").into()));
    let code = inside::run(store, fork, &command, &at)?;
    let refused = |what: &str| {
        let said = answer(&at, "said").unwrap_or_default();
        let said = plain(said.lines().last().unwrap_or_default(), 200);
        Error::new(ErrorKind::InvalidInput, format!("git {what} in fork {fork:?}: {said}"))
    };
    match code {
        0 => {}
        // A repository without a commit.
        3 => return Ok(None),
        _ => return Err(refused("writes no bundle")),
    }
    let number = answer(&at, "count").and_then(|count| count.trim().parse::<u64>().ok());
    let number = number.ok_or_else(|| refused("counts no commits"))?;
    if number == 0 {
        return Ok(None);
    }
    if count {
        return Ok(Some(Commits { number, branch: None, diverged: false }));
    }
    let bundle = at.join("bundle");
    if !fs::symlink_metadata(&bundle).is_ok_and(|metadata| metadata.is_file()) {
        return Err(refused("writes no bundle"));
    }
    let bundle = bundle.to_str().ok_or_else(|| refused("writes no bundle"))?;
    let heads = git(dir, &["bundle", "list-heads", bundle, "HEAD"])?;
    let new = heads.split_whitespace().next().filter(|id| is_id(id));
    let new = new.ok_or_else(|| refused("names no commit"))?.to_owned();
    let flags = ["--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"];
    git(dir, &[&["fetch"], &flags[..], &["--", bundle, "HEAD"]].concat())?;
    let old = git(dir, &["for-each-ref", "--format=%(objectname)", &name])?;
    let old = old.lines().next().filter(|id| is_id(id)).map(str::to_owned);
    let is_ancestor = |old: &str, new: &str| git(dir, &["merge-base", "--is-ancestor", old, new]).is_ok();
    if old.as_deref().is_some_and(|old| is_ancestor(&new, old)) {
        return Ok(None);
    }
    let diverged = old.as_deref().is_some_and(|old| !is_ancestor(old, &new));
    let mut range = vec!["rev-list", "--count", &new, "--not", "--branches", "--tags", "--remotes", "HEAD"];
    let number = git(dir, &range).or_else(|_| {
        // A repository without a commit has no HEAD.
        range.pop();
        git(dir, &range)
    })?;
    let number = number.trim().parse().unwrap_or(number.len() as u64);
    Ok(Some(Commits { number, branch: Some(Branch { name, old, new }), diverged }))
}

/// Returns the commits named by branches and tags of a directory's repository.
fn tips(dir: &Path) -> Result<Vec<String>> {
    let mut tips: Vec<String> = Vec::new();
    let head = git(dir, &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).unwrap_or_default();
    let refs = git(dir, &["for-each-ref", "--sort=-creatordate", "--format=%(objectname)"])?;
    for line in head.lines().chain(refs.lines()).filter(|line| is_id(line)) {
        if !tips.iter().any(|tip| tip == line) && tips.len() < MOST_TIPS {
            tips.push(line.to_owned());
        }
    }
    Ok(tips)
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reads a small file that the sandbox wrote.
fn answer(out: &Path, name: &str) -> Option<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(out.join(name)).ok()?;
    let mut bytes = Vec::new();
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    file.take(MAX_ANSWER).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The answer of git in a directory's own repository.
pub(super) struct Answer {
    /// Its exit code. `None` if a signal ended it.
    pub(super) code: Option<i32>,
    printed: Vec<u8>,
    failed: Error,
}

impl Answer {
    /// Returns git's output. Fails if git failed.
    pub(super) fn success(self) -> Result<Vec<u8>> {
        if self.code == Some(0) { Ok(self.printed) } else { Err(self.failed) }
    }
}

/// Runs git in a directory's own repository.
pub(super) fn git(dir: &Path, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&ask(dir, args, b"")?.success()?).into_owned())
}

/// Runs git in a directory's own repository, with an input.
pub(super) fn ask(dir: &Path, args: &[&str], input: &[u8]) -> Result<Answer> {
    let git = Git::new(dir).settings(&SETTINGS).only_here().env("GIT_NO_LAZY_FETCH", "1");
    let git::Answer { code, printed, said } = git.ask(args, input)?;
    let said = plain(said.trim().lines().last().unwrap_or_default(), 300);
    let verb = args.iter().find(|arg| !arg.starts_with('-')).unwrap_or(&"");
    let failed = Error::new(ErrorKind::InvalidInput, format!("git {verb} in {}: {said}", dir.display()));
    Ok(Answer { code, printed, failed })
}
