//! Makes an image of a commit of a project's repository, instead of the project's present files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::git::Standing;
use super::project::Project;
use super::rules::add_file;
use super::{Options, Parent, Progress, Report, Special, import_as};
use crate::error::{Error, ErrorKind, Result};
use crate::layers::ignore::IGNORE_FILE;
use crate::store::Store;

/// Git settings that prevent other programs than git and its filters from running, and give a plain index.
const SETTINGS: [&str; 6] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "index.sparse=false",
    "submodule.recurse=false",
];

/// Makes an image of a commit of a project. It contains the commit's files and the project's repository, with that commit checked
/// out and clean. If `rev` is a branch, that branch is checked out. The image has no tag and no parent.
pub fn from_commit(
    store: &Store,
    project: &Project,
    rev: &str,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let git = Git { root: &project.root, args: Vec::new(), index: None };
    if rev.is_empty() || rev.starts_with('-') {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{rev:?} is not the name of a commit"))
            .with_hint("name a commit, branch or tag of the project"));
    }
    let own = PathBuf::from(std::ffi::OsString::from_vec(git.run(&["rev-parse", "--absolute-git-dir"])?));
    let common = git.run(&["rev-parse", "--git-common-dir"])?;
    if project.root.join(OsStr::from_bytes(&common)).join("reftable").exists() {
        let what = format!("{} keeps its references in a reftable", project.root.display());
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("import the directory, and check the commit out in the fork"));
    }
    let peeled = format!("{rev}^{{commit}}");
    let commit = git.run(&["rev-parse", "--verify", "--end-of-options", &peeled]).map_err(|error| {
        let what = format!("{} has no commit {rev:?}", project.root.display());
        Error::new(ErrorKind::NotFound, what)
            .with_source(error)
            .with_hint("name a commit, branch or tag of the project")
    })?;
    let name = git.run(&["rev-parse", "--verify", "--symbolic-full-name", "--end-of-options", rev]);
    let head = match name {
        Ok(name) if name.starts_with(b"refs/heads/") => [b"ref: ", &name[..], b"\n"].concat(),
        _ => [&commit[..], b"\n"].concat(),
    };
    let failed = |e| Error::io(e, format!("cannot check out a commit of {}", project.root.display()));
    let temp = tempfile::tempdir().map_err(failed)?;
    // The image gets the name of this folder.
    let work = temp.path().join(project.root.file_name().unwrap_or("project".as_ref()));
    fs::create_dir(&work).map_err(failed)?;
    let mode = fs::metadata(&project.root).map_err(failed)?.permissions();
    let index = temp.path().join("index");
    let args = [["--git-dir".as_ref(), own.as_os_str()], ["--work-tree".as_ref(), work.as_os_str()]];
    let there = Git { root: &work, args: args.concat(), index: Some(&index) };
    there.run(&["read-tree", "--reset", "-u", &String::from_utf8_lossy(&commit)])?;
    // The import turns this file into a complete repository in the given state.
    fs::write(work.join(".git"), [b"gitdir: ", own.as_os_str().as_bytes(), b"\n"].concat())
        .map_err(failed)?;
    fs::set_permissions(&work, mode).map_err(failed)?;
    let mut ignore = options.ignore.clone();
    let warnings = add_file(&mut ignore, &work, &[IGNORE_FILE])?;
    let options = Options { dir: work, parent: Parent::None, ignore, ..options.clone() };
    let standing = Some(Standing { head, index });
    let special = Special { for_run: false, standing, known_as: Some(project.root.clone()) };
    let mut report = import_as(store, &options, &special, progress)?;
    report.reports.splice(..0, warnings);
    Ok(report)
}

/// Runs git in the user's own project. Git is never started in a fork's repository.
struct Git<'a> {
    root: &'a Path,
    args: Vec<&'a OsStr>,
    index: Option<&'a Path>,
}

impl Git<'_> {
    /// Runs git, and returns its output without the last newline.
    fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new("git");
        // Removes variables by which the caller's environment may name another repository.
        let foreign = std::env::vars_os().map(|(name, _)| name);
        for name in foreign.filter(|name| name.as_bytes().starts_with(b"GIT_")) {
            command.env_remove(name);
        }
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.args(&self.args).args(args).current_dir(self.root).stdin(std::process::Stdio::null());
        command.envs([("GIT_OPTIONAL_LOCKS", "0"), ("GIT_TERMINAL_PROMPT", "0"), ("LC_ALL", "C")]);
        command.envs(self.index.map(|index| ("GIT_INDEX_FILE", index)));
        let output = command.output().map_err(|e| {
            let is_missing = e.kind() == std::io::ErrorKind::NotFound;
            let error = Error::io(e, "cannot start git");
            if is_missing { error.with_hint("install git") } else { error }
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let what = format!("git {} in {}: {}", args[0], self.root.display(), said.trim());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let mut printed = output.stdout;
        if printed.ends_with(b"\n") {
            printed.pop();
        }
        Ok(printed)
    }
}
