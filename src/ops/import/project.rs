//! A folder that agents work on: where it begins, what it is called, and the image that holds it as it is now.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Options, Progress, import};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::store::tags::check_new_tag;

/// What marks the top of a git work tree: a folder, or a file in linked ones.
const GIT: &str = ".git";

/// What a project is called whose folder's name can be no tag.
const NAMELESS: &str = "project";

/// A folder that agents work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its folder, by its path without links.
    pub root: PathBuf,
    /// What its images and forks are called.
    pub name: String,
}

impl Project {
    /// The project that a folder is in: the git work tree around it, or else the folder itself.
    pub fn find(cwd: &Path) -> Result<Self> {
        let here = real(cwd)?;
        let home = std::env::home_dir().and_then(|home| fs::canonicalize(home).ok());
        let is_home = |path: &Path| home.as_deref().is_some_and(|home| home == path);
        // A home folder under git holds settings, and is no project of what lies in it.
        let within = here.ancestors().take_while(|path| !is_home(path));
        let root = within.into_iter().find(|path| fs::symlink_metadata(path.join(GIT)).is_ok());
        let project = Self::at(root.unwrap_or(&here))?;
        if is_home(&project.root) {
            let what = format!("{} is the home folder, and no project", project.root.display());
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .with_hint("go to the folder of a project, or name one with --from DIR"));
        }
        Ok(project)
    }

    /// The project of exactly this folder.
    pub fn at(dir: &Path) -> Result<Self> {
        let root = real(dir)?;
        if !fs::metadata(&root).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{} is not a folder", root.display())));
        }
        if root.parent().is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, "the root folder is no project")
                .with_hint("go to the folder of a project, or name one with --from DIR"));
        }
        let name = name_of(&root);
        Ok(Self { root, name })
    }
}

fn real(dir: &Path) -> Result<PathBuf> {
    fs::canonicalize(dir).map_err(|e| Error::io(e, format!("cannot find {}", dir.display())))
}

/// The folder's name as that of a tag and of forks.
fn name_of(root: &Path) -> String {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect::<String>().trim_start_matches(['.', '-']).to_owned();
    let is_number = name.chars().all(|c| c.is_ascii_digit());
    // Behind it come a dash and a number.
    if name.len() > 150 || is_number || check_new_tag(&name).is_err() { NAMELESS.to_owned() } else { name }
}

/// What came of bringing a project's image up to date.
#[derive(Clone, Debug, PartialEq)]
pub struct Refreshed {
    /// The image that holds the project as it is.
    pub image: Digest,
    /// What the project is called in this store.
    pub name: String,
    /// Whether it was made just now; else an earlier one holds the same.
    pub imported: bool,
    /// Files, and the bytes in them.
    pub files: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What somebody should know of, in words.
    pub warnings: Vec<String>,
}

/// Imports a project if it changed since it was imported last. `options` say how, but for the folder.
pub fn refresh(
    store: &Store,
    project: &Project,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Refreshed> {
    let started = Instant::now();
    let options = Options { dir: project.root.clone(), ..options.clone() };
    let report = import(store, &options, progress)?;
    let mut warnings = report.reports;
    let tags = store.tags();
    // The name is the project's as long as it names one of its images.
    let is_own = |image: &Digest| {
        let parents = store.image(&report.image).map(|image| image.manifest.parents).unwrap_or_default();
        *image == report.image || parents.contains(image)
    };
    match tags.get(&project.name) {
        Ok(image) if image == report.image => {}
        Ok(image) if !is_own(&image) => {
            warnings.push(format!("the tag {:?} names another image, and stays there", project.name));
        }
        _ => tags.set(&project.name, &report.image, true)?,
    }
    Ok(Refreshed {
        image: report.image,
        name: project.name.clone(),
        imported: report.new,
        files: report.files,
        bytes: report.bytes,
        seconds: started.elapsed().as_secs_f64(),
        warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_the_work_tree_around_a_folder_or_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap().join("shop");
        fs::create_dir_all(top.join("src/deep")).unwrap();
        let deep = top.join("src/deep");
        assert_eq!(Project::find(&deep).unwrap(), Project { root: deep.clone(), name: "deep".into() });
        fs::write(top.join(".git"), "gitdir: elsewhere\n").unwrap();
        assert_eq!(Project::find(&deep).unwrap(), Project { root: top, name: "shop".into() });
        assert!(Project::find(Path::new("/")).is_err());
    }

    #[test]
    fn a_name_is_a_tag_whatever_the_folder_is_called() {
        for (folder, name) in [
            ("/a/my shop", "my-shop"),
            ("/a/.dot", "dot"),
            ("/a/-x@y", "x-y"),
            ("/a/42", "project"),
            ("/a/latest", "project"),
        ] {
            assert_eq!(name_of(Path::new(folder)), name);
        }
    }
}
