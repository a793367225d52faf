//! The two sides of a comparison: what the command line names, and the files of each.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::limits::Limits;
use crate::cli::images::short;
use crate::cli::progress::Bar;
use crate::cli::text::{plain, plain_bytes};
use crate::cli::{audit, mount, place};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, Registry, View};
use crate::mount::mountinfo::{Mounted, holding_among, mounts};
use crate::ops::import::project::{self, Project};
use crate::ops::import::{Options, folder, rules};
use crate::ops::line;
use crate::store::Store;
use crate::util::parallel::default_jobs;

/// Longer names are cut, in characters.
const WIDEST: usize = 4096;

/// What is compared.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
    Fork(String),
    Image(Digest),
    Directory(String),
    /// No files: the origin of a fork or image that was made of no image.
    Nothing,
}

/// A side with its files.
pub(super) struct Side {
    pub(super) name: Name,
    /// The name for people.
    pub(super) label: String,
    pub(super) view: View,
}

/// The meaning of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// A fork, or else an image.
    Either(String),
    /// The image, where both have the name.
    Image(String),
    /// The fork, where both do.
    Fork(String),
    /// A directory, by its path without links.
    Directory(PathBuf),
    /// The project that this directory is in.
    Here(PathBuf),
}

/// The place of the user.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// The current directory, without links.
    pub(super) cwd: Option<PathBuf>,
    /// Its path in a fork's files.
    pub(super) in_fork: Option<PathBuf>,
}

impl Standing {
    pub(super) fn here(store: &Store) -> Self {
        let Ok(cwd) = std::env::current_dir() else { return Self::default() };
        let mounts = mounts().unwrap_or_default();
        let held = holding_among(&mounts, &cwd).filter(|(mounted, _)| is_of(mounted, store));
        let in_fork = held.and_then(|(_, inside)| {
            let names: Vec<_> = inside.iter().skip(1).collect();
            let is_fork = names.len() >= 4 && names[0] == "forks" && names[2] == "world" && names[3] == "fs";
            is_fork.then(|| names[4..].iter().collect())
        });
        Self { cwd: Some(cwd), in_fork }
    }
}

fn is_of(mounted: &Mounted, store: &Store) -> bool {
    mounted.is_ours() && mounted.source == store.root()
}

impl Operand {
    /// Finds the meaning of a word: a DIR has a slash or is `.`, a name never has.
    pub(super) fn parse(store: &Store, word: &str) -> Result<Self> {
        if !word.contains('/') && word != "." && word != ".." {
            return Ok(Self::Either(word.to_owned()));
        }
        let failed = |e| Error::io(e, format!("cannot find {word}"));
        let absolute = std::path::absolute(word).map_err(failed)?;
        let mounts = mounts()?;
        // Checks the path as written first: the mountpoint of a daemon that has ended or stopped does not
        // answer.
        let is_plain = !absolute.components().any(|component| component == Component::ParentDir);
        if is_plain && let Some(found) = in_mount(&mounts, &absolute, store, word)? {
            return Ok(found);
        }
        let real = match std::fs::canonicalize(&absolute) {
            Ok(real) => real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return by_folder(word).ok_or_else(|| failed(error).with_path(word));
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(found) = in_mount(&mounts, &real, store, word)? {
            return Ok(found);
        }
        if !real.is_dir() {
            let what = format!("{word} is not a directory");
            return by_folder(word).ok_or_else(|| Error::new(ErrorKind::InvalidInput, what).with_path(word));
        }
        Ok(if word == "." { Self::Here(real) } else { Self::Directory(real) })
    }

    /// Returns the directory that a fork or image is a copy of, if that is recorded.
    fn project(&self, store: &Store) -> Option<PathBuf> {
        let of_fork = |name: &str| {
            let name = name.split_once('@').map_or(name, |(fork, _)| fork);
            fork::beside::project(store.root(), name).ok().flatten()
        };
        let of_tag = |name: &str| Some(store.projects().get(name).ok()??.dir);
        match self {
            Self::Fork(name) => of_fork(name),
            Self::Image(name) => of_tag(name),
            Self::Either(name) => of_fork(name).or_else(|| of_tag(name)),
            Self::Directory(dir) => Some(dir.clone()),
            Self::Here(_) => None,
        }
    }

    /// Replaces `.` by a project: that of the other side if the user is inside it, else the one around the
    /// directory.
    fn settled(self, other: Option<&Self>, store: &Store) -> Result<Self> {
        let Self::Here(cwd) = self else { return Ok(self) };
        let known = other.and_then(|other| other.project(store)).filter(|root| cwd.starts_with(root));
        if let Some(root) = known {
            return Ok(Self::Directory(root));
        }
        let found = Project::find(&cwd).map_err(|error| error.with_hint("name the directory by a path: ./"));
        Ok(Self::Directory(found?.root))
    }
}

/// Returns the meaning of a path in one of the mounts; `None` for a path elsewhere.
fn in_mount(mounts: &[Mounted], path: &Path, store: &Store, word: &str) -> Result<Option<Operand>> {
    let Some((mounted, inside)) = holding_among(mounts, path).filter(|(mounted, _)| mounted.is_ours()) else {
        return Ok(None);
    };
    let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what).with_path(word);
    if !is_of(mounted, store) {
        let (source, store) = (mounted.source.display(), store.root().display());
        let what = format!("{word} lies in the mount of the store {source}, not of {store}");
        return Err(invalid(what).with_hint(format!("name the store: --store {source}")));
    }
    let names: Vec<_> = inside.iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect();
    Ok(Some(match &names[..] {
        [folder, name, ..] if folder == "forks" || folder == "work" => Operand::Fork(name.clone()),
        [folder, name, ..] if folder == "tags" || folder == "images" => Operand::Image(name.clone()),
        [latest] if latest == "latest" => Operand::Image(latest.clone()),
        _ => {
            let what = format!("{word} is neither a fork nor an image of the mount");
            return Err(invalid(what).with_hint("name a fork or an image"));
        }
    }))
}

/// Returns the meaning of the last two components of a missing path, as in `tags/green`.
fn by_folder(word: &str) -> Option<Operand> {
    let (above, name) = word.trim_end_matches('/').rsplit_once('/')?;
    let name = name.to_owned();
    match above.rsplit('/').next()? {
        "forks" | "work" => Some(Operand::Fork(name)),
        "tags" | "images" => Some(Operand::Image(name)),
        _ => None,
    }
}

/// The names on the command line, and the access to their files.
pub(super) struct Sides<'a> {
    store: &'a Arc<Store>,
    forks: Option<Registry>,
    pub(super) from: Operand,
    pub(super) to: Option<Operand>,
}

impl<'a> Sides<'a> {
    pub(super) fn new(store: &'a Arc<Store>, from: &str, to: Option<&str>) -> Result<Self> {
        let from = Operand::parse(store, from)?;
        let to = to.map(|to| Operand::parse(store, to)).transpose()?;
        let from_settled = from.clone().settled(to.as_ref(), store)?;
        let to = to.map(|to| to.settled(Some(&from), store)).transpose()?;
        // A user who may read the images may lack the permission to read the forks.
        let forks = match forks::registry(store, true) {
            Ok(registry) => Some(registry),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
            Err(error) => return Err(error),
        };
        Ok(Self { store, forks, from: from_settled, to })
    }

    fn operands(&self) -> impl Iterator<Item = &Operand> {
        std::iter::once(&self.from).chain(&self.to)
    }

    /// Returns the compared directory, if there is one.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.operands().find_map(|operand| match operand {
            Operand::Directory(dir) => Some(dir.as_path()),
            _ => None,
        })
    }

    /// Returns where the user's PATHs start: a directory of the tree, and the directory that the tree is a copy
    /// of.
    pub(super) fn start(&self, standing: &Standing) -> (PathBuf, Option<PathBuf>) {
        let cwd = standing.cwd.as_deref();
        let roots: Vec<PathBuf> = self.operands().filter_map(|operand| operand.project(self.store)).collect();
        if let Some(inside) = &standing.in_fork {
            // The path of the fork's own directory, for absolute paths.
            let above = cwd.and_then(|cwd| cwd.ancestors().nth(inside.iter().count()));
            return (inside.clone(), above.map(Path::to_owned));
        }
        let within = roots.iter().find_map(|root| Some((cwd?.strip_prefix(root).ok()?, root)));
        match within {
            Some((inside, root)) => (inside.to_owned(), Some(root.clone())),
            None => (PathBuf::new(), roots.into_iter().next()),
        }
    }

    /// Reads both sides.
    pub(super) fn read(&self, limits: &Limits) -> Result<(Side, Side)> {
        let Some(to) = &self.to else {
            let to = self.find(&self.from, limits)?;
            return Ok((self.origin(&to)?, to));
        };
        // Most of the work is reading and parsing two trees.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.find(to, limits));
            let from = self.find(&self.from, limits)?;
            let to = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((from, to))
        })
    }

    fn find(&self, operand: &Operand, limits: &Limits) -> Result<Side> {
        let is_fork = |name: &str| self.forks.as_ref().is_some_and(|forks| forks.contains(name));
        match operand {
            Operand::Here(dir) | Operand::Directory(dir) => self.directory_side(dir, limits),
            Operand::Fork(name) if is_fork(name) => self.fork(name),
            Operand::Either(name) if is_fork(name) => {
                if self.store.resolve(name).is_ok() {
                    eprintln!(
                        "pfimg: {name:?} is a fork and an image; using the fork. Name the image as tags/{name}"
                    );
                }
                self.fork(name)
            }
            Operand::Image(name) | Operand::Fork(name) | Operand::Either(name) => {
                let image = line::image(self.store, name).map_err(|e| match e.kind() {
                    ErrorKind::NotFound => e.context("no fork has that name (`pfimg forks` lists them)"),
                    _ => e,
                })?;
                let is_id = image.hex().starts_with(name.trim_start_matches("sha256:")) || name == "latest";
                let named = if is_id { self.tag_of(&image) } else { Some(name.clone()) };
                Ok(Side {
                    name: Name::Image(image),
                    label: label(named.as_deref(), &image),
                    view: self.image(Some(image))?,
                })
            }
        }
    }

    fn fork(&self, name: &str) -> Result<Side> {
        place::take_in(self.store, name)?;
        let forks = self.forks.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::PermissionDenied, "the forks of this store cannot be read")
        })?;
        let view = forks.get(name)?.view();
        Ok(Side { name: Name::Fork(name.to_owned()), label: plain(name, WIDEST), view })
    }

    /// Returns the origin of a side: of a fork the image that it was made of, of an image its first parent, of
    /// a directory the image of its last import.
    fn origin(&self, side: &Side) -> Result<Side> {
        let mut named = None;
        let image = match &side.name {
            Name::Fork(name) => {
                named = self.line_of(name);
                match &self.forks {
                    Some(forks) => place::origin(self.store, &*forks.get(name)?)?,
                    None => None,
                }
            }
            Name::Image(image) => self.store.image(image)?.manifest.parents.first().copied(),
            Name::Directory(_) => {
                let dir = self.directory().unwrap_or(Path::new("."));
                let index_dir = mount::default_cache_dir().join("imports");
                let image = project::newest(self.store, dir, &index_dir)?;
                let none = || {
                    let what = format!("{} was never imported into this store", dir.display());
                    Error::new(ErrorKind::NotFound, what).with_hint("name the other side")
                };
                Some(image.ok_or_else(none)?)
            }
            Name::Nothing => None,
        };
        let view = self
            .image(image)
            .map_err(|e| e.context("cannot read its origin").with_hint("name the other side"))?;
        let Some(image) = image else {
            return Ok(Side { name: Name::Nothing, label: "nothing".into(), view });
        };
        let named = named.or_else(|| self.tag_of(&image));
        Ok(Side { name: Name::Image(image), label: label(named.as_deref(), &image), view })
    }

    fn image(&self, image: Option<Digest>) -> Result<View> {
        match &self.forks {
            Some(forks) => forks.view(image),
            None => View::of_image(forks::reader(self.store), image),
        }
    }

    fn directory_side(&self, dir: &Path, limits: &Limits) -> Result<Side> {
        let caches = [mount::default_cache_dir(), mount::default_state_dir()];
        let options = Options {
            ignore: limits.directory.clone().unwrap_or_default(),
            own: caches.to_vec(),
            index_dir: Some(caches[0].join("imports")),
            jobs: default_jobs(),
            ..Options::new(dir, audit::told(self.store, "diff"))
        };
        let bar = Bar::new();
        bar.style("{spinner} {pos} files and directories found");
        let wanted = |inside: &[u8]| limits.is_entered(&[super::limits::FILES, b"/", inside].concat());
        let view = folder::view(self.store, &options, &wanted, &bar);
        bar.finish();
        let home = std::env::home_dir();
        let below = home.as_deref().and_then(|home| dir.strip_prefix(home).ok());
        let shown = below.map_or_else(|| dir.to_owned(), |below| Path::new("~").join(below));
        Ok(Side {
            name: Name::Directory(dir.to_string_lossy().into_owned()),
            label: plain_bytes(shown.as_os_str().as_encoded_bytes(), WIDEST),
            view: view?,
        })
    }

    /// Returns the line of imports of the project that a fork belongs to.
    fn line_of(&self, fork: &str) -> Option<String> {
        let root = fork::beside::project(self.store.root(), fork).ok()??;
        let projects = self.store.projects();
        let is_of = |name: &String| projects.get(name).ok().flatten().is_some_and(|line| line.dir == root);
        projects.names().ok()?.into_iter().find(is_of)
    }

    /// Returns a tag of an image.
    fn tag_of(&self, image: &Digest) -> Option<String> {
        let tags = self.store.tags();
        tags.names().ok()?.into_iter().find(|name| tags.get(name).is_ok_and(|tagged| tagged == *image))
    }
}

/// Returns the rules by which an import leaves paths of a directory out. Prints a warning for each rule that it
/// cannot apply.
pub(super) fn rules_of(dir: &Path) -> Result<crate::layers::ignore::Ignore> {
    let (ignore, refused) = rules(dir, false, &[])?;
    for line in refused {
        eprintln!("pfimg: {}", plain(&line, usize::MAX));
    }
    Ok(ignore)
}

fn label(name: Option<&str>, image: &Digest) -> String {
    match name {
        Some(name) => format!("{} ({})", plain(name, WIDEST), short(image)),
        None => short(image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_without_a_slash_is_a_name_and_one_with_a_slash_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path().join("store")).unwrap();
        let at = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(at.join("work/shop")).unwrap();
        std::fs::write(at.join("file"), "").unwrap();
        let parse = |word: &str| Operand::parse(&store, word);
        let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
        assert_eq!(parse("try-2").unwrap(), Operand::Either("try-2".into()));
        assert_eq!(parse("try@2").unwrap(), Operand::Either("try@2".into()));
        // An existing directory counts as a directory, whatever its name.
        assert_eq!(parse(&path("work/shop")).unwrap(), Operand::Directory(at.join("work/shop")));
        assert_eq!(parse(&path("work/../work/shop/")).unwrap(), Operand::Directory(at.join("work/shop")));
        assert_eq!(parse("tags/green").unwrap(), Operand::Image("green".into()));
        assert_eq!(parse(&path("work/none/")).unwrap(), Operand::Fork("none".into()));
        assert!(matches!(parse("."), Ok(Operand::Here(_))));
        assert_eq!(parse(&path("file")).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(parse(&path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
