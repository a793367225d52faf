//! Finds the forks of a run, and makes missing ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::RunArgs;
use super::conf::Conf;
use super::sandboxed::Given;
use super::words;
use crate::cli::place;
use crate::cli::progress::Bar;
use crate::cli::sharing::SharingArg;
use crate::cli::store_arg::StoreArg;
use crate::cli::text::{count, plain};
use crate::cli::{audit, mount};
use crate::control::Client;
use crate::daemon::calls;
use crate::daemon::forks::check_fork_name;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::beside::{self, OnDisk};
use crate::layers::ignore::Ignore;
use crate::mount::mountinfo::holding;
use crate::ops::import::project::{Project, refresh};
use crate::ops::import::{Options, Parent};
use crate::store::Store;
use crate::store::tags::check_new_tag;
use crate::util::parallel::default_jobs;
use crate::util::units::format_bytes;

/// The digits of an image's id in a fork's name: the name must fit into a file name.
const ID: usize = 54;

/// The most numbers that are tried for the name of a fork.
const MAX_NUMBER: u32 = 100_000;

/// A fork to run in.
#[derive(Clone, Debug)]
pub(super) struct Fork {
    pub(super) name: String,
    /// Whether this run made it.
    pub(super) is_made: bool,
    /// The directory of its project, and the path where it is shown, unless that is its place in the mount.
    pub(super) project: Option<PathBuf>,
    pub(super) at: Option<PathBuf>,
    /// Where the command starts, below the fork's files.
    pub(super) start: PathBuf,
}

/// Everything that runs need.
pub(super) struct Runs {
    pub(super) store: Arc<Store>,
    pub(super) mountpoint: PathBuf,
    /// Asks the daemon of the mount.
    pub(super) client: Client,
    /// The cache of the mount.
    pub(super) cache_dir: PathBuf,
    pub(super) conf: Conf,
    /// The words that name the store in a printed command.
    pub(super) store_words: String,
    pub(super) forks: Vec<Fork>,
}

/// A fork's name, and its source.
struct Wanted {
    name: String,
    source: Option<String>,
}

impl Wanted {
    fn parse(word: &str) -> Self {
        match word.split_once('@') {
            Some((name, source)) => Self { name: name.to_owned(), source: Some(source.to_owned()) },
            None => Self { name: word.to_owned(), source: None },
        }
    }
}

/// The source of forks that name no source.
enum From {
    /// A directory.
    Project(Project),
    /// An image or fork.
    Named(String),
}

impl Runs {
    /// Finds or makes everything that must exist before a command runs.
    pub(super) fn prepare(arg: &StoreArg, args: &RunArgs) -> Result<Self> {
        if let Some(tag) = &args.tag {
            check_new_tag(tag)?;
        }
        let conf = Conf::load()?;
        let path = arg.path()?;
        let is_inside = std::env::var_os("PFIMG_SNAP").is_some_and(|snap| Path::new(&snap).is_dir());
        // Inside a run the store is hidden, and cannot be made.
        let store = if args.older_form || args.member || is_inside {
            arg.open()?
        } else {
            SharingArg::default().open_or_create(&path)?
        };
        let store = Arc::new(store);
        if args.older_form {
            // A missing fork is refused before anything is mounted.
            for name in args.names.iter().filter(|name| !name.contains('@')) {
                OnDisk::read(store.root(), name)?;
            }
        }
        let place::Served { mountpoint, cache_dir, client } = place::mounted(&store)?;
        let mut runs = Self {
            store,
            mountpoint,
            client,
            cache_dir,
            conf,
            store_words: store_words(&path),
            forks: Vec::new(),
        };
        if let Err(error) = runs.find_or_make(args) {
            runs.discard_made(true);
            return Err(error);
        }
        if !args.member && !args.quiet && !runs.conf.quiet {
            runs.given(args).tell();
        }
        Ok(runs)
    }

    /// The variables that the commands get.
    pub(super) fn given(&self, args: &RunArgs) -> Given {
        Given::of(args.env.iter().chain(&self.conf.env))
    }

    fn find_or_make(&mut self, args: &RunArgs) -> Result<()> {
        let mut names = Vec::new();
        for word in &args.names {
            names.extend(words::expand(word)?);
        }
        let mut wanted: Vec<Wanted> = names.iter().map(|name| Wanted::parse(name)).collect();
        if let (Some(number), [one]) = (args.number, &wanted[..]) {
            let numbered = |n| Wanted { name: format!("{}-{n}", one.name), source: one.source.clone() };
            wanted = (1..=number.get()).map(numbered).collect();
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = wanted.iter().find(|wanted| !seen.insert(wanted.name.clone())) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("fork {:?} is named twice", twice.name)));
        }
        // Found once, and only if it is needed.
        let mut maker = Maker { from: None, image: None };
        if wanted.is_empty() {
            for _ in 0..args.number.map_or(1, std::num::NonZeroUsize::get) {
                self.make_numbered(&mut maker, args)?;
            }
            return Ok(());
        }
        for wanted in wanted {
            let is_there = match OnDisk::read(self.store.root(), &wanted.name) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if is_there && wanted.source.is_none() {
                let fork = self.place(wanted.name, false, args)?;
                self.forks.push(fork);
                continue;
            }
            match wanted.source {
                Some(source) => self.make(&wanted.name, &source, None, args)?,
                // This error tells how to list forks.
                None if args.older_form || args.member => {
                    calls::fork_folder(&self.mountpoint, &wanted.name)?;
                }
                None => {
                    check_fork_name(&wanted.name)?;
                    self.make_of(&mut maker, &wanted.name, args)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a fork with the first number that is free.
    fn make_numbered(&mut self, maker: &mut Maker, args: &RunArgs) -> Result<()> {
        let base = match maker.from(args)? {
            From::Project(project) => project.name.clone(),
            From::Named(source) => source.trim_start_matches("sha256:").chars().take(100).collect(),
        };
        let heads = self.store.root().join("forks/heads");
        for number in 1..=MAX_NUMBER {
            let name = format!("{base}-{number}");
            check_fork_name(&name)?;
            if heads.join(format!("{name}.json")).exists() {
                continue;
            }
            match self.make_of(maker, &name, args) {
                // Another run has just taken the name.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
        Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("all names {base}-1 to {base}-{MAX_NUMBER} are taken"),
        ))
    }

    fn make_of(&mut self, maker: &mut Maker, name: &str, args: &RunArgs) -> Result<()> {
        let (source, root) = match maker.from(args)? {
            From::Named(source) => (source.clone(), None),
            From::Project(project) => {
                let project = project.clone();
                let image = match maker.image {
                    Some(image) => image,
                    None => *maker.image.insert(self.import(&project, args)?),
                };
                (image.hex()[..ID].to_owned(), Some(project.root))
            }
        };
        self.make(name, &source, root.as_deref(), args)
    }

    /// Makes one fork, and records its project.
    fn make(&mut self, name: &str, source: &str, root: Option<&Path>, args: &RunArgs) -> Result<()> {
        check_fork_name(name)?;
        calls::fork(&self.client, source, name)?;
        let made =
            Fork { name: name.to_owned(), is_made: true, project: None, at: None, start: PathBuf::new() };
        self.forks.push(made);
        let inherited = || beside::project(self.store.root(), source).ok().flatten();
        let of_caller = || if args.older_form { None } else { self.callers_project() };
        let root = root.map(Path::to_owned).or_else(inherited).or_else(of_caller);
        if let Some(root) = &root {
            beside::set_project(self.store.root(), name, root)?;
        }
        let fork = self.place(name.to_owned(), true, args)?;
        if let Some(last) = self.forks.last_mut() {
            *last = fork;
        }
        Ok(())
    }

    /// Returns where a fork is shown, and where in it the command starts.
    fn place(&self, name: String, is_made: bool, args: &RunArgs) -> Result<Fork> {
        let cwd = std::env::current_dir().ok();
        let files = calls::files_of(&self.mountpoint, &name);
        let in_mount = cwd.as_deref().and_then(|cwd| cwd.strip_prefix(&files).ok()).map(Path::to_owned);
        let recorded = beside::project(self.store.root(), &name)?;
        let in_project = |root: &Path| cwd.as_deref()?.strip_prefix(root).ok().map(Path::to_owned);
        let project = match recorded {
            // The default, unless the caller is inside the project.
            Some(root) if args.older_form && in_project(&root).is_none() => None,
            Some(root) => Some(root),
            None if args.older_form || in_mount.is_some() => None,
            None => self.callers_project(),
        };
        let start = project.as_deref().and_then(in_project).or(in_mount).unwrap_or_default();
        let at = args.at.clone().map(std::path::absolute).transpose().map_err(|e| Error::io(e, "--at"))?;
        let at = at.or_else(|| project.clone());
        if let (Some(root), None) = (&project, &args.at)
            && !root.is_dir()
        {
            let what = format!("{} does not exist; fork {name:?} is a copy of it", root.display());
            return Err(Error::new(ErrorKind::NotFound, what)
                .with_hint("name another directory to show the fork at: --at PATH"));
        }
        Ok(Fork { name, is_made, project, at, start })
    }

    /// Returns the project around the caller, for a fork without a recorded one. `None` for a directory over
    /// which no fork can be shown.
    fn callers_project(&self) -> Option<PathBuf> {
        let root = here().ok()?.root;
        let home = std::env::home_dir();
        let needed = NEEDED.iter().map(Path::new).chain([self.mountpoint.as_path(), self.store.root()]);
        let is_above = needed.chain(home.as_deref()).any(|needed| needed.starts_with(&root));
        (!is_above).then_some(root)
    }

    /// Updates the project's image.
    fn import(&self, project: &Project, args: &RunArgs) -> Result<Digest> {
        let caches = [mount::default_cache_dir(), mount::default_state_dir()];
        let options = Options {
            dir: project.root.clone(),
            parent: Parent::Last,
            ignore: Ignore::default(),
            one_file_system: false,
            own: caches.to_vec(),
            index_dir: Some(caches[0].join("imports")),
            reread: false,
            jobs: default_jobs(),
            log: audit::told(&self.store, "run"),
        };
        let is_quiet = args.quiet || self.conf.quiet;
        let bar = if is_quiet { Bar::hidden() } else { Bar::new() };
        bar.style("{spinner} {pos} files and directories found");
        let refreshed = refresh(&self.store, project, &options, &bar);
        bar.finish();
        let refreshed = refreshed?;
        if refreshed.imported && !is_quiet {
            let home = std::env::home_dir();
            let below = home.as_deref().and_then(|home| project.root.strip_prefix(home).ok());
            let root = below.map_or_else(|| project.root.clone(), |below| Path::new("~").join(below));
            let root = root.to_string_lossy();
            let included = match &refreshed.included[..] {
                [] => String::new(),
                names => format!(" ({} included)", names.join(", ")),
            };
            eprintln!(
                "pfimg: imported {}: {}, {}, {:.1} s{included}",
                plain(&root, usize::MAX),
                count(refreshed.files, "file"),
                format_bytes(refreshed.bytes),
                refreshed.seconds
            );
            for warning in &refreshed.warnings {
                eprintln!("pfimg: {}", plain(warning, usize::MAX));
            }
        }
        Ok(refreshed.image)
    }

    /// Discards the forks that this run made; with `untouched_only`, only unchanged ones.
    pub(super) fn discard_made(&self, untouched_only: bool) {
        for fork in self.forks.iter().filter(|fork| fork.is_made) {
            let Ok(now) = OnDisk::read(self.store.root(), &fork.name) else { continue };
            if untouched_only && !now.is_untouched {
                continue;
            }
            if let Err(error) = calls::discard(&self.client, &fork.name, true) {
                eprintln!("pfimg: {error}");
            }
        }
    }
}

/// The sources of new forks.
struct Maker {
    from: Option<From>,
    /// The project's image, once it is updated.
    image: Option<Digest>,
}

impl Maker {
    fn from(&mut self, args: &RunArgs) -> Result<&From> {
        if self.from.is_none() {
            let from = match args.from.as_deref() {
                None => From::Project(here()?),
                Some(from) if from.contains('/') || from == "." || from == ".." => {
                    From::Project(Project::at(Path::new(from))?)
                }
                Some(from) => From::Named(from.to_owned()),
            };
            self.from = Some(from);
        }
        self.from.as_ref().ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no project"))
    }
}

fn current_dir() -> Result<PathBuf> {
    std::env::current_dir().map_err(|e| Error::io(e, "cannot find the current directory"))
}

/// Finds the project around the caller.
fn here() -> Result<Project> {
    let cwd = current_dir()?;
    if let Some((mounted, _)) = holding(&cwd)?.filter(|(mounted, _)| mounted.is_ours()) {
        let what = format!("{} lies in the mount of {}", cwd.display(), mounted.source.display());
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .with_hint("name what to make the fork of: --from FORK, or --from IMAGE"));
    }
    Project::find(&cwd)
}

/// Directories that every command gets new, which no fork can cover.
const NEEDED: [&str; 4] = ["/tmp", "/var/tmp", "/dev", "/run"];

/// Returns the words that name the store in a printed command, if the user had to give them.
fn store_words(path: &Path) -> String {
    let given = std::env::var_os("PF_STORE").filter(|store| !store.is_empty()).map(PathBuf::from);
    let usual = given.or_else(|| Some(std::env::home_dir()?.join(".processfork")));
    if usual.as_deref() == Some(path) { String::new() } else { format!(" --store {}", path.display()) }
}
