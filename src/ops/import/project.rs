//! Finds the project of a directory, its name, and an image of its present state.
//!
//! The imports of a project form a line, whose name is a tag of its newest image. A store remembers the directory of each line. If
//! two directories have the same name, the line of the second one gets a number.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::importing::Special;
use super::index_file::last_image;
use super::make::import_as;
use super::options::Options;
use super::parent::{Parent, comes_from};
use super::progress::Progress;
use super::report::Report;
use super::rules::add_file;
use crate::audit::note;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{is_fork, refuse_new_fork_name};
use crate::layers::ignore::IGNORE_FILE;
use crate::store::Store;
use crate::store::projects::Line;
use crate::store::tags::check_new_tag;
use crate::tree::Tree;

/// The directory that marks the top of a git work tree. In worktrees and submodules it is a file.
const GIT: &str = ".git";

/// The name of a project whose directory's name cannot be a tag.
const NAMELESS: &str = "project";

/// The longest name of a project in bytes, without the dash and number that may follow.
const MAX_NAME: usize = 150;

/// A directory that agents work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its directory, as a path without links.
    pub root: PathBuf,
    /// The directory's name, adapted for tags and forks. In a store a number may follow it: [`Refreshed::name`].
    pub name: String,
}

impl Project {
    /// Finds the project that a directory is in: the git work tree around it, or the directory itself.
    ///
    /// Fails for a home directory and the root directory.
    pub fn find(cwd: &Path) -> Result<Self> {
        Self::find_below(cwd, std::env::home_dir().and_then(|home| fs::canonicalize(home).ok()).as_deref())
    }

    fn find_below(cwd: &Path, home: Option<&Path>) -> Result<Self> {
        let here = real(cwd)?;
        // A home directory under git holds settings. A directory in it does not belong to that repository.
        let within = here.ancestors().take_while(|path| home != Some(path));
        let root = within.into_iter().find(|path| is_work_tree(path)).unwrap_or(&here);
        if home == Some(root) {
            return Err(no_project(root, "the home directory"));
        }
        Self::at(root)
    }

    /// Returns the project whose top is exactly this directory.
    pub fn at(dir: &Path) -> Result<Self> {
        let root = real(dir)?;
        if !fs::metadata(&root).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{} is not a directory", root.display()),
            ));
        }
        if root.parent().is_none() {
            return Err(no_project(&root, "the root directory"));
        }
        let name = name_of(&root);
        Ok(Self { root, name })
    }
}

fn no_project(root: &Path, is: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{} is {is}, not a project", root.display()))
        .with_hint("go to the directory of a project, or name one with --from DIR")
}

fn real(dir: &Path) -> Result<PathBuf> {
    fs::canonicalize(dir).map_err(|e| Error::io(e, format!("cannot find {}", dir.display())))
}

/// Whether a directory is the top of a git work tree. An empty `.git` directory does not count, as in git.
fn is_work_tree(folder: &Path) -> bool {
    let git = folder.join(GIT);
    fs::metadata(&git).is_ok_and(|meta| !meta.is_dir() || fs::symlink_metadata(git.join("HEAD")).is_ok())
}

/// Returns the directory's name, adapted for tags and forks.
fn name_of(root: &Path) -> String {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    let mut name: String = name.chars().map(plain).collect();
    name.truncate(name.floor_char_boundary(MAX_NAME));
    let name = name.trim_start_matches(['.', '-']);
    let is_number = name.chars().all(|c| c.is_ascii_digit());
    let is_name = !is_number && check_new_tag(name).is_ok() && refuse_new_fork_name(name).is_none();
    if is_name { name.to_owned() } else { NAMELESS.to_owned() }
}

/// The result of updating a project's image.
#[derive(Clone, Debug, PartialEq)]
pub struct Refreshed {
    /// The image with the project's present state.
    pub image: Digest,
    /// The line's name in this store, which is also the tag of the image.
    pub name: String,
    /// Whether the image is new. If not, an earlier one has the same content.
    pub imported: bool,
    /// Number of files in it.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Files and directories at the top of the first image of a line that other tools leave out of a copy, but not this one.
    pub included: Vec<&'static str>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Names at the top of a project that tools which copy it often leave out.
const OFTEN_LEFT_OUT: [&str; 6] = [".venv", "venv", "node_modules", "target", ".env", ".git"];

/// Those of them that an image holds.
fn included(store: &Store, image: &Digest) -> Result<Vec<&'static str>> {
    let text = store.blobs().read_metadata(&store.image(image)?.manifest.world.fs)?;
    let tree = Tree::parse(&text).map_err(|e| {
        Error::new(ErrorKind::Damaged, format!("image {image} has a damaged tree")).with_source(e)
    })?;
    Ok(OFTEN_LEFT_OUT.into_iter().filter(|name| tree.resolve(name.as_bytes()).is_some()).collect())
}

impl Refreshed {
    fn of(report: Report, name: String, started: Instant, warnings: Vec<String>) -> Self {
        Self {
            image: report.image,
            name,
            imported: report.new,
            files: report.files,
            bytes: report.bytes,
            seconds: started.elapsed().as_secs_f64(),
            included: Vec::new(),
            warnings: [warnings, report.reports].concat(),
        }
    }
}

/// Imports a project if it has changed since its last import, and tags the image with the line's name.
///
/// The image of the last import becomes the new image's first parent. `options` set everything except the directory and the parent.
/// The import follows the project's `.pfignore`.
pub fn refresh(
    store: &Store,
    project: &Project,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Refreshed> {
    let started = Instant::now();
    let name = claim(store, project, options)?;
    // If several programs begin at once, the first imports, and the others find that nothing changed.
    let _lock = store.lock_project(&name)?;
    let line = store.projects().get(&name)?.filter(|line| line.dir == project.root);
    let before = line.and_then(|line| line.image);
    let mut ignore = options.ignore.clone();
    let mut warnings = add_file(&mut ignore, &project.root, &[IGNORE_FILE])?;
    let options = Options {
        dir: project.root.clone(),
        parent: before.map_or(Parent::Last, Parent::Line),
        ignore,
        ..options.clone()
    };
    let special = Special { for_run: true, ..Special::default() };
    let mut report = import_as(store, &options, &special, progress)?;
    for large in &report.large {
        // The text comes from `words`.
        report.reports.push(large.words());
    }
    if before != Some(report.image) {
        let line = Line { dir: project.root.clone(), image: Some(report.image) };
        store.projects().set(&name, &line)?;
    }
    warnings.extend(move_tag(store, &name, &report.image, before, &options)?);
    let included = if before.is_none() { included(store, &report.image)? } else { Vec::new() };
    Ok(Refreshed { included, ..Refreshed::of(report, name, started, warnings) })
}

/// Returns the name of a project's line in a store: the project's name, with a number if it is taken.
fn claim(store: &Store, project: &Project, options: &Options) -> Result<String> {
    let _lock = store.lock_projects()?;
    let projects = store.projects();
    for name in projects.names()?.into_iter().filter(|name| is_numbered(name, &project.name)) {
        // A line that cannot be read counts as another directory's.
        if projects.get(&name).ok().flatten().is_some_and(|line| line.dir == project.root) {
            return Ok(name);
        }
    }
    let last = options.index_dir.as_ref().and_then(|at| last_image(store, &project.root, at));
    let is_free = |name: &String| {
        if !matches!(projects.get(name), Ok(None)) || is_fork(&store.root().join("forks"), name) {
            return false;
        }
        match store.tags().get(name) {
            // An import of the directory got this tag before it was a line.
            Ok(image) => Some(image) == last,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    };
    let numbered = (2..).map(|number: u64| format!("{}-{number}", project.name));
    let name = std::iter::once(project.name.clone()).chain(numbered).find(is_free).unwrap_or_default();
    projects.set(&name, &Line { dir: project.root.clone(), image: None })?;
    Ok(name)
}

/// The newest image of a directory's line in a store; without a line, that of the directory's last import, as its index in
/// `index_dir` says.
pub fn newest(store: &Store, dir: &Path, index_dir: &Path) -> Result<Option<Digest>> {
    let projects = store.projects();
    for name in projects.names()? {
        // A file that cannot be read names no image.
        let line = projects.get(&name).ok().flatten();
        if let Some(image) = line.filter(|line| line.dir == dir).and_then(|line| line.image) {
            return Ok(Some(image));
        }
    }
    Ok(last_image(store, dir, index_dir))
}

/// Whether a name is `base`, or `base` with a number.
fn is_numbered(name: &str, base: &str) -> bool {
    let Some(rest) = name.strip_prefix(base) else { return false };
    rest.is_empty()
        || rest.strip_prefix('-').is_some_and(|number| number.parse::<u64>().is_ok_and(|number| number > 1))
}

/// Moves the line's tag to its newest image. Returns a warning if the tag is on an image that is not in the line.
fn move_tag(
    store: &Store,
    name: &str,
    image: &Digest,
    before: Option<Digest>,
    options: &Options,
) -> Result<Option<String>> {
    let tags = store.tags();
    match tags.get(name) {
        Ok(tagged) if tagged == *image => return Ok(None),
        Ok(tagged) if Some(tagged) != before && !comes_from(store, *image, tagged) => {
            return Ok(Some(format!(
                "tag {name} is on image {tagged}, which is not an import of {}; the tag stays there",
                options.dir.display()
            )));
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => tags.set(name, image, true)?,
    }
    options.log.note(note::tags_changed(&[name], &[], Some(image)));
    Ok(None)
}

/// Returns the parent of the next import of a directory with a tag: the newest image of the tag's line, if that is a line of the
/// directory.
pub fn parent(store: &Store, dir: &Path, tag: &str) -> Parent {
    let line = store.projects().get(tag).ok().flatten();
    let line = line.filter(|line| real(dir).is_ok_and(|dir| dir == line.dir));
    line.and_then(|line| line.image).map_or(Parent::Last, Parent::Line)
}

/// Whether an image is an import of the project in a directory, as far as the store remembers.
pub fn is_import_of(store: &Store, root: &Path, image: &Digest) -> bool {
    let projects = store.projects();
    let of_root = |name: String| projects.get(&name).ok().flatten().filter(|line| line.dir == root);
    let mut lines = projects.names().unwrap_or_default().into_iter().filter_map(of_root);
    lines.any(|line| line.image.is_some_and(|newest| comes_from(store, newest, *image)))
}

/// Records that a directory's import has a tag, so that the next imports join the same line. The line of another directory stays,
/// unless the tag `moved` to this import.
pub fn remember(store: &Store, dir: &Path, tag: &str, image: &Digest, moved: bool) -> Result<()> {
    let line = Line { dir: real(dir)?, image: Some(*image) };
    let _lock = store.lock_projects()?;
    // A line that cannot be read counts as none.
    let old = store.projects().get(tag).ok().flatten();
    if old.is_some_and(|old| old == line || old.dir != line.dir && !moved) {
        return Ok(());
    }
    store.projects().set(tag, &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_the_work_tree_around_a_folder_or_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        let (top, deep) = (home.join("shop"), home.join("shop/src/deep"));
        fs::create_dir_all(&deep).unwrap();
        let find = |cwd: &Path| Project::find_below(cwd, Some(&home));
        let at = |root: &Path, name: &str| Project { root: root.to_owned(), name: name.into() };
        assert_eq!(find(&deep).unwrap(), at(&deep, "deep"));
        fs::create_dir(top.join(GIT)).unwrap();
        assert_eq!(find(&deep).unwrap(), at(&deep, "deep"), "an empty directory is not a repository");
        fs::write(top.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(find(&deep).unwrap(), at(&top, "shop"));
        // A worktree or submodule in the work tree.
        fs::write(top.join("src/.git"), "gitdir: elsewhere\n").unwrap();
        assert_eq!(find(&deep).unwrap(), at(&top.join("src"), "src"));
        // The home directory itself is under git, for its settings.
        fs::create_dir_all(home.join(GIT)).unwrap();
        fs::write(home.join(".git/HEAD"), "").unwrap();
        fs::create_dir(home.join("notes")).unwrap();
        assert_eq!(find(&home.join("notes")).unwrap(), at(&home.join("notes"), "notes"));
        for refused in [&home, Path::new("/")] {
            let error = find(refused).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        assert!(find(&home.join("none")).is_err() && Project::at(&top.join("src/.git")).is_err());
    }

    #[test]
    fn a_name_is_a_tag_and_a_fork_whatever_the_folder_is_called() {
        let long = format!("/a/{}", "\u{e9}".repeat(100));
        for (folder, name) in [
            ("/a/my shop", "my-shop"),
            ("/a/.dot", "dot"),
            ("/a/-x@y", "x-y"),
            ("/a/42", "project"),
            ("/a/latest", "project"),
            ("/a/...", "project"),
            (&long, &"\u{e9}".repeat(75)),
        ] {
            assert_eq!(name_of(Path::new(folder)), name);
        }
        assert!(is_numbered("a", "a") && is_numbered("a-2", "a") && is_numbered("a-2-3", "a-2"));
        assert!(!is_numbered("a-1", "a") && !is_numbered("a-b", "a") && !is_numbered("b", "a"));
    }
}
