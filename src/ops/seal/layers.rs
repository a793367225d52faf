//! The layers of a new image, except its tree.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::content;
use super::ledger;
use super::sealing::{Sealing, Stored};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{Changes, Frozen};
use crate::layers::cache::{LAYOUT, Page, PageManifest};
use crate::layers::continuing::{continued_ledger, continued_trace};
use crate::layers::env::{Env, EnvV1};
use crate::layers::model::{Base, ModelDiff};
use crate::layers::procs::Procs;
use crate::layers::trace::Trace;
use crate::store::manifest::{CacheRefs, EffectsRefs, ModelRefs, TraceRefs, WorldRefs};
use crate::store::{LayerFile, Manifest};

/// The note in an empty layer. Images have it, so it must not change.
const NOTE: &str = "nobody filled this layer";

/// The report for a record that was copied in part.
const LACKS: &str = "it lacked lines of the image before it; the seal includes them";

const PAGES: &[u8] = b"cache/pages/";
const PAGE_MANIFEST: &[u8] = b"cache/manifest.json";

/// Fills in everything of the manifest except the tree.
pub(super) fn layers(
    sealing: &mut Sealing<'_>,
    stored: &Stored,
    tree: Digest,
    manifest: &mut Manifest,
) -> Result<()> {
    let kind = manifest.agent.kind.clone();
    let model_base = plain(sealing, LayerFile::ModelBase, stored, || Base::Agent(kind).to_bytes())?;
    let diff = plain(sealing, LayerFile::ModelDiff, stored, || ModelDiff::empty(NOTE).to_bytes())?;
    let env = plain(sealing, LayerFile::WorldEnv, stored, || Env::V1(EnvV1::default()).to_bytes())?;
    let procs = plain(sealing, LayerFile::WorldProcs, stored, || {
        Procs::empty(std::env::consts::OS, NOTE).to_bytes()
    })?;
    manifest.model = ModelRefs { base: model_base, diff };
    manifest.world = WorldRefs { fs: tree, env, procs };
    manifest.cache = CacheRefs { layout: LAYOUT.into(), manifest: pages(sealing, stored)? };
    manifest.effects = EffectsRefs { ledger: ledger(sealing)? };
    manifest.trace = TraceRefs { messages: trace(sealing, stored)? };
    Ok(())
}

/// The blob of a layer's file in the parent.
fn inherited(sealing: &Sealing<'_>, file: LayerFile) -> Option<Digest> {
    let parent = sealing.parent.as_ref().filter(|_| sealing.frozen.image().is_some())?;
    parent.manifest.blobs().into_iter().find(|(named, _)| *named == file).map(|(_, digest)| digest)
}

/// A layer that is one file of any bytes: the written one, the parent's, or the empty form.
fn plain(
    sealing: &Sealing<'_>,
    file: LayerFile,
    stored: &Stored,
    empty: impl FnOnce() -> Vec<u8>,
) -> Result<Digest> {
    let path = file.path().as_bytes();
    if let Some(blob) = stored.get(path) {
        return Ok(blob.digest);
    }
    match inherited(sealing, file) {
        Some(digest) if sealing.frozen.contains(path) => Ok(digest),
        _ => sealing.batch.put(&empty()),
    }
}

fn trace(sealing: &mut Sealing<'_>, stored: &Stored) -> Result<Digest> {
    let path = LayerFile::TraceMessages.path();
    // A fork that is a copy continues the trace of the image whose manifest it has.
    let before = sealing.parent.as_ref().map(|parent| parent.manifest.trace.messages);
    let Some(digest) = stored.get(path.as_bytes()).map(|blob| blob.digest) else {
        // Even if its name was removed: a file without writes is unchanged.
        return before.map_or_else(|| sealing.batch.put(b""), Ok);
    };
    let bytes = match read_path(sealing.frozen, path.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            sealing.reports.push(format!("{path}: {error}; it is sealed unchanged"));
            return Ok(digest);
        }
        read => read?,
    };
    let before = before.map_or(Ok(Vec::new()), |before| sealing.store.blobs().read_metadata(&before))?;
    let bytes = continued_trace(&before, &bytes);
    // Lines that were sealed before were reported then.
    let old = before.split(|b| *b == b'\n').count().saturating_sub(1);
    if let Ok(trace) = Trace::parse(&bytes) {
        for line in trace.lines().iter().filter(|line| line.number > old) {
            use crate::layers::trace::Record;
            match &line.record {
                Err(wrong) => sealing.reports.push(format!("{path}: {wrong}; the line is kept")),
                Ok(Record::Other(_)) => sealing.reports.push(format!(
                    "{path}: line {}: neither a message nor an event; the line is kept",
                    line.number
                )),
                Ok(_) => {}
            }
        }
    }
    match bytes {
        Cow::Borrowed(_) => Ok(digest),
        Cow::Owned(bytes) => {
            sealing.reports.push(format!("{path}: {LACKS}"));
            sealing.batch.put(&bytes)
        }
    }
}

fn ledger(sealing: &mut Sealing<'_>) -> Result<Digest> {
    let path = LayerFile::EffectsLedger.path().as_bytes();
    // A fork that is a copy continues the ledger of the image whose manifest it has.
    let before = sealing.parent.as_ref().map(|parent| parent.manifest.effects.ledger);
    if !sealing.changes.put.contains_key(path) {
        // Even if its name was removed: a file without writes is unchanged.
        return before.map_or_else(|| sealing.batch.put(&ledger::empty()), Ok);
    }
    let shown = read_path(sealing.frozen, path).map_err(|e| e.context(LayerFile::EffectsLedger))?;
    // It shows its source's ledger without the secret.
    let base = match before {
        Some(digest) => Some((digest, sealing.store.blobs().read_metadata(&digest)?)),
        None => None,
    };
    let base = base.as_ref().map(|(digest, bytes)| (digest, bytes.as_slice()));
    let text = ledger::reveal(base.map(|(_, bytes)| bytes), &shown);
    let text = continued_ledger(base.map_or(&[][..], |(_, bytes)| bytes), &text);
    if matches!(&text, Cow::Owned(whole) if !whole.ends_with(&shown)) {
        sealing.reports.push(format!("{}: {LACKS}", LayerFile::EffectsLedger.path()));
    }
    if let Some((digest, bytes)) = base
        && *bytes == *text
    {
        return Ok(*digest);
    }
    let sealed = ledger::seal(base, &text, sealing.secret, &mut ledger::fresh_secret)?;
    sealing.reports.extend(sealed.reports);
    sealing.batch.put(&sealed.bytes)
}

/// The page manifest: the recorded one, with the pages that exist.
fn pages(sealing: &mut Sealing<'_>, stored: &Stored) -> Result<Digest> {
    let changes = sealing.changes;
    let is_ours = |path: &[u8]| path.starts_with(PAGES) || path == PAGE_MANIFEST;
    let covers = |path: &[u8]| is_ours(path) || matches!(path, b"cache" | b"cache/pages");
    let touched = changes.put.iter().any(|(path, put)| is_ours(path) && put.inode.content().is_some())
        || changes.removed.iter().any(|path| covers(path));
    let inherited = inherited(sealing, LayerFile::CacheManifest);
    if let (Some(digest), false) = (inherited, touched) {
        return Ok(digest);
    }
    let mut manifest = match inherited {
        Some(digest) => PageManifest::parse(&sealing.store.blobs().read_metadata(&digest)?)
            .map_err(|e| Error::new(ErrorKind::Damaged, format!("the base's page manifest {digest}: {e}")))?,
        None => PageManifest::empty(NOTE),
    };
    let mut pages = page_table(sealing, &manifest, stored);
    if stored.contains_key(PAGE_MANIFEST) {
        match PageManifest::parse(
            &read_path(sealing.frozen, PAGE_MANIFEST).map_err(|e| e.context(LayerFile::CacheManifest))?,
        ) {
            Ok(written) => manifest = written,
            Err(wrong) => {
                sealing.reports.push(format!("cache/manifest.json: {wrong}; its previous content counts"));
            }
        }
    }
    let known: HashMap<u32, Page> = manifest.pages.drain(..).map(|page| (page.ix, page)).collect();
    for (ix, halves) in std::mem::take(&mut pages) {
        let (Some(k), Some(v)) = halves else {
            let (there, missing) = if halves.0.is_some() { ("k", "v") } else { ("v", "k") };
            let message = format!(
                "cache/pages/{ix:08}.{there} has no {ix:08}.{missing} with it: an image needs both halves of a page"
            );
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_hint("write the other half, or remove this one"));
        };
        let extra = known.get(&ix).map(|page| page.extra.clone()).unwrap_or_default();
        manifest.pages.push(Page { ix, k, v, extra });
    }
    if !manifest.pages.is_empty() {
        // The note of an empty layer is no longer true.
        manifest.extra.retain(|key, value| !(key == "note" && value == NOTE));
    }
    let indices: std::collections::HashSet<u32> = manifest.pages.iter().map(|page| page.ix).collect();
    if let Some(seqs) = &mut manifest.logical_seqs {
        seqs.retain(|seq| {
            let whole = seq.page_ixs.iter().all(|ix| indices.contains(ix));
            if !whole {
                sealing.reports.push(format!(
                    "cache/manifest.json: sequence {:?} uses pages that are gone; it is left out",
                    seq.id
                ));
            }
            whole
        });
    }
    manifest.canonicalize();
    if let Some(size) = manifest.page_bytes() {
        for (path, blob) in stored.iter().filter(|(path, _)| path.starts_with(PAGES)) {
            if blob.size != size {
                let path = String::from_utf8_lossy(path);
                sealing.reports.push(format!("{path}: {} bytes, but a page has {size}", blob.size));
            }
        }
    }
    sealing.batch.put(&manifest.to_bytes())
}

/// Keys and values by index: those of the parent, with their changes.
fn page_table(sealing: &Sealing<'_>, manifest: &PageManifest, stored: &Stored) -> Halves {
    let mut pages: Halves =
        manifest.pages.iter().map(|page| (page.ix, (Some(page.k), Some(page.v)))).collect();
    if !sealing.frozen.contains(b"cache/pages") {
        return Halves::new();
    }
    for path in &sealing.changes.removed {
        if matches!(path.as_slice(), b"cache" | b"cache/pages") {
            pages.clear();
        }
        if let Some((ix, key)) = page_of(path) {
            let halves = pages.entry(ix).or_default();
            *(if key { &mut halves.0 } else { &mut halves.1 }) = None;
        }
    }
    for path in sealing.changes.put.keys() {
        let Some((ix, key)) = page_of(path) else { continue };
        let digest = match stored.get(path) {
            Some(blob) => blob.digest,
            None => Digest::of(b""),
        };
        let halves = pages.entry(ix).or_default();
        *(if key { &mut halves.0 } else { &mut halves.1 }) = Some(digest);
    }
    pages.retain(|_, halves| *halves != (None, None));
    pages
}
/// Does `work`, which waits for the disk, and at the same time judges the written layers of one document each.
/// Faults are reported; the layers are still sealed, since nothing that an agent wrote may be lost.
pub(super) fn judged_meanwhile<T>(
    frozen: &Frozen,
    changes: &Changes,
    work: impl FnOnce() -> T,
) -> (T, Vec<String>) {
    let mut written = vec![LayerFile::ModelDiff, LayerFile::WorldEnv, LayerFile::WorldProcs];
    written.retain(|file| {
        let put = changes.put.get(file.path().as_bytes());
        put.is_some_and(|put| put.inode.content().is_some())
    });
    if written.is_empty() {
        return (work(), Vec::new());
    }
    let mut wrong = Vec::new();
    let done = rayon::in_place_scope(|scope| {
        scope.spawn(|_| wrong = written.iter().filter_map(|file| judge(frozen, *file)).collect());
        work()
    });
    (done, wrong)
}

/// The fault of a layer.
fn judge(frozen: &Frozen, file: LayerFile) -> Option<String> {
    let bytes = match read_path(frozen, file.path().as_bytes()) {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("{file}: {error}; it is sealed unchanged")),
    };
    let wrong = match file {
        LayerFile::ModelDiff => ModelDiff::parse(&bytes).err(),
        LayerFile::WorldEnv => Env::parse(&bytes).err(),
        LayerFile::WorldProcs => Procs::parse(&bytes).err(),
        _ => None,
    };
    wrong.map(|wrong| format!("{file}: {wrong}; it is sealed unchanged"))
}

/// Reads a layer's file of a frozen fork; nothing if it does not exist.
fn read_path(frozen: &Frozen, path: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some((_, inode)) = frozen.resolve(path)
        && let Some(content) = inode.content()
    {
        content::read_all(frozen, content, &mut bytes)?;
    }
    Ok(bytes)
}

/// Digests of keys and values by the page's index.
type Halves = BTreeMap<u32, (Option<Digest>, Option<Digest>)>;

/// The page that a path names, and whether it is its keys.
fn page_of(path: &[u8]) -> Option<(u32, bool)> {
    let name = std::str::from_utf8(path.strip_prefix(PAGES)?).ok()?;
    let (ix, half) = name.split_once('.')?;
    Some((ix.parse().ok()?, half == "k"))
}
