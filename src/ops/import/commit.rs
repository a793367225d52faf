//! Makes an image of a commit of a project's repository, instead of the project's present files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::importing::{Special, Standing};
use super::make::import_as;
use super::options::Options;
use super::parent::Parent;
use super::progress::Progress;
use super::project::Project;
use super::report::Report;
use super::rules::add_file;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::ignore::IGNORE_FILE;
use crate::ops::git::Git;
use crate::store::Store;

/// Settings under which git writes a plain index, and leaves submodules alone.
const SETTINGS: [&str; 4] =
    ["core.untrackedCache=false", "core.splitIndex=false", "index.sparse=false", "submodule.recurse=false"];

/// Makes an image of a commit of a project. It contains the commit's files and the project's repository, with that commit checked
/// out and clean. If `rev` is a branch, that branch is checked out. The image has no tag and no parent.
pub fn from_commit(
    store: &Store,
    project: &Project,
    rev: &str,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let git = |args: &[&str]| line(Git::new(&project.root), args);
    if rev.is_empty() || rev.starts_with('-') {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{rev:?} is not the name of a commit"))
            .with_hint("name a commit, branch or tag of the project"));
    }
    let own = PathBuf::from(std::ffi::OsString::from_vec(git(&["rev-parse", "--absolute-git-dir"])?));
    let common = git(&["rev-parse", "--git-common-dir"])?;
    if project.root.join(OsStr::from_bytes(&common)).join("reftable").exists() {
        let what = format!("{} keeps its references in a reftable", project.root.display());
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("import the directory, and check the commit out in the fork"));
    }
    let peeled = format!("{rev}^{{commit}}");
    let commit = git(&["rev-parse", "--verify", "--end-of-options", &peeled]).map_err(|error| {
        let what = format!("{} has no commit {rev:?}", project.root.display());
        Error::new(ErrorKind::NotFound, what)
            .with_source(error)
            .with_hint("name a commit, branch or tag of the project")
    })?;
    let name = git(&["rev-parse", "--verify", "--symbolic-full-name", "--end-of-options", rev]);
    let head = match name {
        Ok(name) if name.starts_with(b"refs/heads/") => [b"ref: ", &name[..], b"\n"].concat(),
        _ => [&commit[..], b"\n"].concat(),
    };
    let failed = |e| Error::io(e, format!("cannot check out a commit of {}", project.root.display()));
    let temp = tempfile::tempdir().map_err(failed)?;
    // The image gets the name of this directory.
    let work = temp.path().join(project.root.file_name().unwrap_or("project".as_ref()));
    fs::create_dir(&work).map_err(failed)?;
    let mode = fs::metadata(&project.root).map_err(failed)?.permissions();
    let index = temp.path().join("index");
    let args = [["--git-dir".as_ref(), own.as_os_str()], ["--work-tree".as_ref(), work.as_os_str()]];
    let there = Git::new(&work).options(&args.concat()).env("GIT_INDEX_FILE", &index);
    line(there, &["read-tree", "--reset", "-u", &String::from_utf8_lossy(&commit)])?;
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

/// Runs git, and returns its output without the last newline.
fn line(git: Git<'_>, args: &[&str]) -> Result<Vec<u8>> {
    let mut printed = git.settings(&SETTINGS).env("GIT_OPTIONAL_LOCKS", "0").run(args)?;
    if printed.ends_with(b"\n") {
        printed.pop();
    }
    Ok(printed)
}
