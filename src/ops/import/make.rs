//! Imports a directory, step by step.

use std::collections::HashSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::importing::{Importing, Special};
use super::index::{InOrder, Index, Record};
use super::index_file::{index_name, keep_index};
use super::large::{self, LARGE};
use super::manifest::{manifest, same};
use super::options::Options;
use super::progress::Progress;
use super::report::{Report, totals};
use super::source::Source;
use super::tree::{Body, text};
use super::walk::{self, Found, Limits, Meta};
use super::witness::judge;
use super::{contents, git, limits, look, recheck, settle, ties};
use crate::audit::note;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::reach::Top;
use crate::store::Store;
use crate::sync::Mutex;

/// Imports a directory; see the module.
pub fn import(store: &Store, options: &Options, progress: &dyn Progress) -> Result<Report> {
    import_as(store, options, &Special::default(), progress)
}

/// Imports a directory with the settings of a project or a commit.
pub(super) fn import_as(
    store: &Store,
    options: &Options,
    special: &Special,
    progress: &dyn Progress,
) -> Result<Report> {
    let started_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let failed = |e| Error::io(e, format!("cannot import {}", options.dir.display()));
    let dir = fs::canonicalize(&options.dir).map_err(failed)?;
    if !fs::metadata(&dir).map_err(failed)?.is_dir() {
        let message = format!("{} is not a directory", dir.display());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    limits::refuse_mount(&dir)?;
    let top = Top::open(&dir).map_err(failed)?;
    let root = top.stat(b"").map_err(failed)?;
    if fs::canonicalize(store.root()).is_ok_and(|store| dir.starts_with(store)) {
        let message = format!("{} is in the store into which it would be imported", dir.display());
        return Err(
            Error::new(ErrorKind::InvalidInput, message).with_hint("name a directory outside of the store")
        );
    }
    let known_as = special.known_as.as_deref().unwrap_or(&dir);
    let index_path = options.index_dir.as_ref().map(|at| at.join(index_name(store, known_as)));
    let index_bytes = index_path.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let mut index = InOrder::parse(&index_bytes).unwrap_or_default();
    if options.reread {
        index.records.clear();
    }
    let parent = options.parent.image(store, index.image)?;
    let own = [options.own.as_slice(), &[store.root().to_owned()]].concat();
    let limits = recheck::limits(&dir, &options.ignore, options.one_file_system, &own);
    let root = Meta::of(&root);
    if special.for_run
        && let Some(image) = parent.as_ref().map(|parent| parent.id).filter(|id| index.image == Some(*id))
        && index.limits == Some(limits)
        && let Some(totals) = recheck::unchanged(&index, &top, &root, options.jobs, progress)
    {
        return Ok(Report::unchanged(image, totals));
    }
    let importing = Importing {
        store,
        dir: &dir,
        top: &top,
        options,
        special,
        progress,
        index: index.by_path(),
        parent,
        reports: Mutex::default(),
    };
    let (report, records) =
        run(&importing, &root, limits).inspect_err(|e| options.log.note_failed("import", e))?;
    if report.new {
        options.log.note(note::checkpoint_taken(&known_as.display().to_string(), &report.image));
    }
    if let (Some(path), Some(records), None) = (index_path, records, &special.known_as) {
        let Records { limits, all } = records;
        let all: Vec<_> = all.iter().map(|(path, record)| (path.as_slice(), *record)).collect();
        // Without an index the next import only takes longer.
        if let Err(e) = keep_index(&path, &Index::write(started_ns, &report.image, limits, &all)) {
            tracing::warn!("cannot write {}: {e}; the next import reads all files again", path.display());
        }
    }
    Ok(report)
}

/// The records of all paths of an image, for the next import.
struct Records {
    /// As in [`Index`].
    limits: Option<Digest>,
    all: Vec<(Vec<u8>, Record)>,
}

/// Imports the directory. `identity` identifies the limits. Returns no records if the index is still up to date.
fn run(importing: &Importing<'_>, root: &Meta, identity: Digest) -> Result<(Report, Option<Records>)> {
    let own = limits::own_folders(importing);
    let limits = Limits {
        ignore: &importing.options.ignore,
        prefix: b"",
        wanted: &|_| true,
        own: &own,
        mounts: walk::mounts_below(importing.dir),
        one_file_system: importing.options.one_file_system,
    };
    let mut listing = walk::walk(importing.top, root, &limits, importing.options.jobs, importing.progress)?;
    let whole = git::mend(importing, &mut listing, &limits, importing.progress)?;
    limits::report_closed(importing, &listing.closed);
    let found = std::mem::take(&mut listing.found);
    let mut report = Report::of(&listing, &found);
    // Other files can change the image of a repository that depends on them.
    let depends_on_records_alone = importing.special.standing.is_none()
        && limits.mounts.is_empty()
        && (listing.closed.is_empty() && whole.mended.is_empty() && whole.ties.is_empty())
        && found.iter().all(|found| found.source.is_none());
    let identity = depends_on_records_alone.then_some(identity);
    report.mended = whole.mended;
    if importing.special.for_run
        && importing.index.limits == identity
        && let Some(image) = same_as_last(importing, root, &found)
    {
        report.image = image;
        return Ok((report, None));
    }
    report.large = large::find(&found, LARGE);
    let root_xattrs = look::read_xattrs(importing.top, b"")?;
    let (mut items, pending) = look::look(importing, &found)?;
    drop(found);
    let ties = ties::find(importing.top, &importing.options.dir, &items, whole.ties);
    // A run shows its fork at the project's own path. The text comes from `words`.
    ties.words(importing.special.for_run).into_iter().for_each(|line| importing.report(line));
    (report.ties_total, report.ties) = (ties.total(), ties.first);
    let left = importing.store.blobs().files_left();
    let batch = importing.store.begin();
    // If an existing image has this content, its blobs need not be checked one by one.
    let mut image = None;
    if pending.iter().all(|pending| pending.known.is_some()) {
        let tree = text(root, &root_xattrs, &items)?;
        image = same(importing, Digest::of(&tree))?;
    }
    if image.is_none() {
        contents::store(importing, &batch, &mut items, &pending, &mut report)?;
        settle::settle(importing, &batch, (&limits, root), &whole.repositories, &mut items, &mut report)?;
        let tree = text(root, &root_xattrs, &items)?;
        image = same(importing, Digest::of(&tree))?;
        if image.is_none() {
            let stored = batch.put(&tree)?;
            importing.store.blobs().check_metadata(&stored, tree.len())?;
            let manifest = manifest(importing, &batch, stored)?;
            image = Some(batch.commit(&manifest)?);
            report.new = true;
        }
    }
    report.image = image.unwrap_or(report.image);
    judge(importing, &report, left, &items)?;
    (report.files, report.bytes) = totals(items.iter().map(|item| &item.meta));
    let of_root = Record { stamp: root.stamp, content: None, xattrs: !root_xattrs.is_empty() };
    let mut records = vec![(Vec::new(), of_root)];
    records.extend(items.into_iter().map(|item| {
        let content = if let Body::Content(digest) = item.body { Some(digest) } else { None };
        (item.path, Record { stamp: item.meta.stamp, content, xattrs: !item.xattrs.is_empty() })
    }));
    git::report_mended(importing, &report);
    report.reports = std::mem::take(&mut *importing.reports.lock());
    let mut told = HashSet::new();
    report.reports.retain(|line| told.insert(line.clone()));
    let is_known = |(path, record): &(Vec<u8>, Record)| {
        importing.index.unchanged(path, &record.stamp).is_some_and(|known| known == *record)
    };
    let same = (importing.index.image, importing.index.limits) == (Some(report.image), identity)
        && importing.index.records.len() == records.len()
        && records.iter().all(is_known);
    Ok((report, (!same).then_some(Records { limits: identity, all: records })))
}

/// Returns the image of the last import, if all paths match the index, and a new image would be the same.
fn same_as_last(importing: &Importing<'_>, root: &Meta, found: &[Found]) -> Option<Digest> {
    let image =
        importing.parent.as_ref().map(|parent| parent.id).filter(|id| importing.index.image == Some(*id))?;
    let is_same = |found: &Found| {
        let record = importing.index.unchanged(&found.path, &found.meta.stamp);
        record.is_some_and(|record| match found.source.as_deref() {
            Some(Source::Made(bytes)) => record.content == Some(Digest::of(bytes)),
            _ => true,
        })
    };
    let same = found.len() + 1 == importing.index.records.len()
        && importing.index.unchanged(b"", &root.stamp).is_some()
        && found.iter().all(is_same);
    same.then_some(image)
}
