//! `pfimg import`: makes an image of a directory.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::audit;
use super::envelope::print_json;
use super::progress::Bar;
use super::sharing::{SharingArg, tell_if_open};
use super::store_arg::StoreArg;
use super::text::{count, plain, print};
use crate::audit::note;
use crate::daemon::forks;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::import::project::{self, Project};
use crate::ops::import::{Large, Options, Parent, Progress, Report, from_commit, import, rules};
use crate::store::tags::check_new_tag;
use crate::util::parallel::default_jobs;
use crate::util::units::format_bytes;

/// Up to LISTED paths that were left out are all listed; of more, the first SAMPLE.
const LISTED: usize = 8;
const SAMPLE: usize = 3;

/// Make an image of a directory. Makes the store if there is none. Prints the id of the image.
#[derive(Debug, Args)]
#[command(after_help = "\
The image contains everything in the directory, including .git, .env, node_modules and .venv. Only .pfignore at the top of \
the directory and --ignore leave paths out; .gitignore does not. A git worktree, or a submodule imported alone, becomes a \
whole repository in the image, so commits in a fork stay in the fork. For an unchanged directory, pfimg makes no new \
image and prints the id of the last one. `pfimg run` imports the project by itself.")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct ImportArgs {
    /// The directory
    dir: PathBuf,
    /// Give the image a name
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Move the name if another image has it
    #[arg(long, alias = "force-tag", requires = "tag")]
    force: bool,
    /// Parent of the image; all parts except the files come from it [default: the last import of this
    /// directory into --tag, or into the store]
    #[arg(long, value_name = "IMAGE")]
    parent: Option<String>,
    /// Make an image without a parent
    #[arg(long, conflicts_with = "parent")]
    no_parent: bool,
    /// Import the files of this commit instead of those in the directory. The image also contains the
    /// repository, with a clean checkout
    #[arg(long, value_name = "REV", conflicts_with_all = ["parent", "no_parent", "pf_ignores"])]
    from_commit: Option<String>,
    /// Leave out matching paths: a name, names joined by slashes, or a pattern with * ? [ ]
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Leave out the same paths as `pf`: .git/objects, build directories, caches, and, without a .pfignore,
    /// the paths that .gitignore names
    #[arg(long)]
    pf_ignores: bool,
    /// The default; for older scripts
    #[arg(long, hide = true)]
    no_default_ignores: bool,
    /// Stay on this filesystem: import mountpoints as empty directories
    #[arg(long)]
    one_file_system: bool,
    /// Read every file, even if it seems unchanged since the last import
    #[arg(long)]
    reread: bool,
    /// Cache directory, which remembers earlier imports [default: as for `pfimg mount`]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    #[command(flatten)]
    sharing: SharingArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    tag: Option<&'a str>,
}

pub(crate) fn run(store: &StoreArg, args: &ImportArgs) -> Result<ExitCode> {
    // All arguments are checked before anything is written.
    if fs::metadata(&args.dir).is_ok_and(|dir| !dir.is_dir()) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is not a directory", args.dir.display()),
        )
        .with_path(&args.dir));
    }
    if let Some(tag) = &args.tag {
        // Whether the name is taken is known only at the end: the new image may be the one that has it.
        check_new_tag(tag)?;
    }
    let (ignore, refused) = rules(&args.dir, args.pf_ignores, &args.ignore)?;
    fs::read_dir(&args.dir)
        .map_err(|e| Error::io(e, format!("cannot import {}", args.dir.display())).with_path(&args.dir))?;
    let store = args.sharing.open_or_create(&store.path()?)?;
    tell_if_open(&store);
    if let Some(tag) = &args.tag {
        // Whether an image has the name is known only at the end; whether a fork has it, now.
        store.tags().check_free(tag, true)?;
    }
    let parent = match &args.parent {
        Some(parent) => Parent::Image(forks::image(&store, parent)?),
        None if args.no_parent || args.from_commit.is_some() => Parent::None,
        None => args.tag.as_ref().map_or(Parent::Last, |tag| project::parent(&store, &args.dir, tag)),
    };
    let cache_dir = args.cache_dir.clone().unwrap_or_else(super::mount::default_cache_dir);
    let options = Options {
        dir: args.dir.clone(),
        parent,
        ignore,
        one_file_system: args.one_file_system,
        own: [cache_dir.clone(), super::mount::default_cache_dir(), super::mount::default_state_dir()].into(),
        index_dir: Some(cache_dir.join("imports")),
        reread: args.reread,
        jobs: args.jobs.unwrap_or_else(default_jobs),
        log: audit::told(&store, "import"),
    };
    let bar = Bar::new();
    bar.style("{spinner} {pos} files and directories found");
    let report = match &args.from_commit {
        Some(commit) => {
            Project::at(&args.dir).and_then(|project| from_commit(&store, &project, commit, &options, &bar))
        }
        None => import(&store, &options, &bar),
    };
    bar.finish();
    let mut report = report?;
    report.reports.splice(..0, refused);
    let moved = args.tag.as_ref().is_some_and(|tag| store.tags().get(tag).ok() != Some(report.image));
    if let Some(tag) = &args.tag
        && moved
    {
        store.tags().set(tag, &report.image, args.force).map_err(|e| {
            let what = format_args!("{} is imported as {}, but not tagged", args.dir.display(), report.image);
            e.context(what)
        })?;
        options.log.note(note::tags_changed(&[tag], &[], Some(&report.image)));
    }
    // The directory may hold other files than the commit, so the next import of the directory does not continue this image.
    if let Some(tag) = args.tag.as_ref().filter(|_| args.from_commit.is_none()) {
        project::remember(&store, &args.dir, tag, &report.image, moved)?;
    }
    if args.json {
        print_json(&Shown { report: &report, tag: args.tag.as_deref() })?;
    } else {
        print(&format!("{}\n", report.image))?;
        eprintln!("pfimg: {}", summary(&report));
        let file = if args.pf_ignores { ".pfignore or .gitignore" } else { ".pfignore" };
        if let Some(line) = left_out(&report, file) {
            eprintln!("pfimg: {}", plain(&line, usize::MAX));
        }
        for line in report.large.iter().map(Large::words).chain(report.reports.iter().cloned()) {
            eprintln!("pfimg: {}", plain(&line, usize::MAX));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists the first paths that rules left out, and their number for each source of rules; `file` is the source
/// in the directory.
fn left_out(report: &Report, file: &str) -> Option<String> {
    let most = if report.left_out > LISTED as u64 { SAMPLE } else { LISTED };
    let named: Vec<&str> = report.left_out_paths.iter().take(most).map(String::as_str).collect();
    let more = match report.left_out - named.len() as u64 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let by = report.left_out_by;
    let by = [(by.ignore_file, file), (by.ignore, "--ignore"), (by.pf_ignores, "--pf-ignores")];
    let by: Vec<_> = by.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} by {what}")).collect();
    (!named.is_empty()).then(|| format!("left out: {}{more} ({})", named.join(", "), by.join(", ")))
}

fn summary(report: &Report) -> String {
    let left_out = match report.left_out {
        0 => String::new(),
        paths => format!("; {} left out", count(paths, "path")),
    };
    let new = if report.new { "imported" } else { "unchanged:" };
    format!(
        "{new} {}, {} ({} read){left_out}",
        count(report.files, "file"),
        format_bytes(report.bytes),
        format_bytes(report.bytes_read),
    )
}

impl Progress for Bar {
    fn found(&self, more: u64) {
        self.inc(more);
    }

    fn to_read(&self, bytes: u64) {
        self.start(bytes, "{bar:30} {bytes}/{total_bytes} read{speed}{left}");
    }

    fn read(&self, bytes: u64) {
        self.inc(bytes);
    }
}
