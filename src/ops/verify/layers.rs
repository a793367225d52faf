//! The first round: reads markers, manifests and layers, and the references to blobs in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;

use super::finding::{Code, Finding};
use super::report::{Ledgers, Options};
use crate::digest::Digest;
use crate::layers::cache::PageManifest;
use crate::layers::effects::{Chain, Effects};
use crate::layers::env::Env;
use crate::layers::model::ModelDiff;
use crate::layers::procs::{Known, Procs};
use crate::layers::world::{self, Kind};
use crate::layers::{FormatError, trace};
use crate::store::images::MAX_MANIFEST;
use crate::store::manifest::MAX_PARENTS;
use crate::store::manifest::ManifestError;
use crate::store::{BlobError, LayerFile, Manifest, MarkerError, Size, Store};
use crate::sync::Mutex;
use crate::tree::Tree;

/// Layers whose compressed size in bytes is above this are parsed one at a time, whatever the number of threads:
/// each may take a gigabyte.
pub(super) const GIANT: u64 = 1 << 20;

/// A half of a cache page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Half {
    Keys,
    Values,
}

/// A place at which an image refers to a blob. Its path is computed only for findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Manifest,
    Layer(LayerFile),
    /// The entry of that number in the image's tree.
    Entry(u32),
    Page(u32, Half),
    CriuDump,
    MergedLedger,
}

impl Place {
    /// Whether `pf gc` deletes the blob even though the image refers to it.
    pub(super) fn may_be_missing(self) -> bool {
        matches!(self, Self::CriuDump | Self::MergedLedger)
    }

    /// The layer that holds the reference.
    pub(super) fn layer(self) -> Option<LayerFile> {
        Some(match self {
            Self::Manifest => return None,
            Self::Layer(file) => file,
            Self::Entry(_) => LayerFile::WorldFs,
            Self::Page(..) => LayerFile::CacheManifest,
            Self::CriuDump => LayerFile::WorldProcs,
            Self::MergedLedger => LayerFile::EffectsLedger,
        })
    }
}

/// A reference to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ref {
    /// The image's index in the list of images.
    pub(super) image: u32,
    pub(super) place: Place,
    /// The size in bytes that the reference declares.
    pub(super) size: Option<u64>,
}

/// A finding about a blob, before its path is known.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) blob: Digest,
    pub(super) at: Option<Ref>,
    pub(super) detail: String,
}

/// A manifest's bytes, from the marker or the blob, whichever is whole.
enum ManifestBytes {
    Whole(Vec<u8>),
    Damaged,
    /// The image was removed during the check.
    Vanished,
}

/// The results of all threads.
#[derive(Default)]
pub(super) struct State {
    /// The first reference to each blob.
    pub(super) refs: HashMap<Digest, Ref>,
    /// References that declare another size than the first.
    pub(super) other_sizes: HashMap<Digest, BTreeMap<u64, Ref>>,
    /// Layers that could not be read; the second round gives the reason, if it cannot read them either.
    pub(super) unread: HashMap<Digest, BlobError>,
    /// Each image's layers, if its manifest could be read.
    pub(super) layers: BTreeMap<u32, [(LayerFile, Digest); 8]>,
    /// Images with one parent, and that parent.
    pub(super) descents: Vec<(u32, Digest)>,
    pub(super) findings: Vec<Finding>,
    pub(super) problems: Vec<Problem>,
    pub(super) ledgers: Ledgers,
}

impl State {
    fn refer(&mut self, blob: Digest, new: Ref) {
        // The first by its place in the store, not by the order of threads: findings stay the same.
        let rank = |at: &Ref| (at.place.may_be_missing(), at.image, at.place);
        let Some(first) = self.refs.get_mut(&blob) else {
            self.refs.insert(blob, new);
            return;
        };
        let other = if rank(&new) < rank(first) { std::mem::replace(first, new) } else { new };
        if other.size == first.size && !self.other_sizes.contains_key(&blob) {
            return;
        }
        let sizes = self.other_sizes.entry(blob).or_default();
        if let Some(size) = other.size {
            let known = sizes.entry(size).or_insert(other);
            if rank(&other) < rank(known) {
                *known = other;
            }
        }
        if let Some(size) = first.size {
            sizes.remove(&size);
        }
    }
}

/// Reads markers, manifests and layers.
pub(super) struct Checker<'a> {
    pub(super) store: &'a Store,
    pub(super) ids: &'a [Digest],
    pub(super) options: &'a Options,
    pub(super) state: Mutex<State>,
    pub(super) giants: Mutex<()>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(store: &'a Store, ids: &'a [Digest], options: &'a Options) -> Self {
        Self { store, ids, options, state: Mutex::default(), giants: Mutex::default() }
    }

    pub(super) fn problem(&self, code: Code, blob: Digest, at: Ref, detail: impl fmt::Display) {
        let problem = Problem { code, blob, at: Some(at), detail: detail.to_string() };
        self.state.lock().problems.push(problem);
    }

    /// Checks marker and manifest of the image with that index.
    pub(super) fn image(&self, image: u32) {
        let id = self.ids[image as usize];
        let bytes = self.manifest_bytes(&id);
        if matches!(bytes, ManifestBytes::Vanished) {
            return;
        }
        let at_manifest = Ref { image, place: Place::Manifest, size: None };
        self.state.lock().refer(id, at_manifest);
        let ManifestBytes::Whole(bytes) = bytes else { return };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                let code = match error {
                    ManifestError::NewerSchema(_) => Code::ManifestNewerSchema,
                    ManifestError::Malformed(_) => Code::ManifestMalformed,
                };
                self.problem(code, id, at_manifest, error);
                return;
            }
        };
        if manifest.parents.len() > MAX_PARENTS {
            let detail = format!("it names {} parents, and a merge has two", manifest.parents.len());
            self.problem(Code::ParentsTooMany, id, at_manifest, detail);
        }
        for parent in &manifest.parents {
            if !self.store.images().contains(parent) {
                let detail = format!("its parent {parent} is not in this store");
                self.problem(Code::ParentMissing, id, at_manifest, detail);
            }
        }
        let layers = manifest.blobs();
        let mut state = self.state.lock();
        state.layers.insert(image, layers);
        if let [parent] = manifest.parents[..] {
            state.descents.push((image, parent));
        }
        for (file, digest) in layers {
            state.refer(digest, Ref { image, place: Place::Layer(file), size: None });
        }
    }

    /// The layers to parse: each once, with the first image that has it.
    pub(super) fn layers(&self) -> Vec<(u32, LayerFile, Digest)> {
        let state = self.state.lock();
        let mut seen = HashSet::new();
        let all = state.layers.iter().flat_map(|(image, layers)| layers.map(|layer| (*image, layer)));
        // A base may have any bytes.
        all.filter(|(_, layer)| layer.0 != LayerFile::ModelBase && seen.insert(*layer))
            .map(|(image, (file, digest))| (image, file, digest))
            .collect()
    }

    /// The manifest's bytes, from marker or blob.
    fn manifest_bytes(&self, id: &Digest) -> ManifestBytes {
        let marker = self.store.images().marker(id);
        let subject = format!("images/{}.json", id.hex());
        let report = |code, detail: &dyn fmt::Display| {
            let finding = Finding::new(code, &subject, detail).found_in(*id, None, 0);
            self.state.lock().findings.push(finding);
        };
        let blob = || {
            let blob = self.store.blobs().read(id, Size::AtMost(MAX_MANIFEST));
            blob.map_or(ManifestBytes::Damaged, ManifestBytes::Whole)
        };
        if fs::metadata(&marker).is_ok_and(|metadata| !metadata.is_file()) {
            report(Code::MarkerUnreadable, &"not a regular file");
            return blob();
        }
        match self.store.images().bytes(self.store.blobs(), id) {
            Ok((bytes, None)) => ManifestBytes::Whole(bytes),
            Ok((bytes, Some(measured))) => {
                report(
                    Code::MarkerDigestMismatch,
                    &format_args!("its bytes hash to {measured}; the manifest's blob is whole"),
                );
                ManifestBytes::Whole(bytes)
            }
            Err(MarkerError::Absent(_)) => ManifestBytes::Vanished,
            Err(MarkerError::Io { source, .. }) => {
                report(Code::MarkerUnreadable, &source);
                blob()
            }
            Err(MarkerError::Mismatch { measured, .. }) => {
                report(Code::MarkerDigestMismatch, &format_args!("its bytes hash to {measured}"));
                ManifestBytes::Damaged
            }
            Err(error @ MarkerError::Manifest { .. }) => {
                report(Code::ManifestMalformed, &error);
                ManifestBytes::Damaged
            }
        }
    }

    /// Parses a layer and notes its references.
    pub(super) fn layer(&self, image: u32, file: LayerFile, digest: &Digest) {
        let blobs = self.store.blobs();
        let _one_at_a_time =
            blobs.compressed_size(digest).is_ok_and(|size| size > GIANT).then(|| self.giants.lock());
        let bytes = match blobs.read_metadata(digest) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.state.lock().unread.insert(*digest, error);
                return;
            }
        };
        let at = Ref { image, place: Place::Layer(file), size: None };
        let malformed = |code, error: FormatError| self.problem(code, *digest, at, error);
        match file {
            LayerFile::ModelBase => {}
            LayerFile::ModelDiff => {
                if let Err(error) = ModelDiff::parse(&bytes) {
                    malformed(Code::ModelDiffMalformed, error);
                }
            }
            LayerFile::CacheManifest => match PageManifest::parse(&bytes) {
                Ok(manifest) => self.pages(image, &manifest),
                Err(error) => malformed(Code::PageManifestMalformed, error),
            },
            LayerFile::WorldFs => self.tree(at, digest, &bytes),
            LayerFile::WorldEnv => {
                if let Err(error) = Env::parse(&bytes) {
                    malformed(Code::EnvMalformed, error);
                }
            }
            LayerFile::WorldProcs => match Procs::parse(&bytes) {
                Ok(Procs::Known(Known::Criu(criu))) => {
                    let dump = Ref { image, place: Place::CriuDump, size: None };
                    self.state.lock().refer(criu.criu_dump, dump);
                }
                Ok(_) => {}
                Err(error) => malformed(Code::ProcsMalformed, error),
            },
            LayerFile::EffectsLedger => self.ledger(at, digest, &bytes),
            LayerFile::TraceMessages => self.trace(at, digest, &bytes),
        }
    }

    fn pages(&self, image: u32, manifest: &PageManifest) {
        let size = manifest.page_bytes();
        let mut state = self.state.lock();
        for page in &manifest.pages {
            for (half, blob) in [(Half::Keys, page.k), (Half::Values, page.v)] {
                state.refer(blob, Ref { image, place: Place::Page(page.ix, half), size });
            }
        }
    }

    fn tree(&self, at: Ref, digest: &Digest, bytes: &[u8]) {
        let mut refs = Vec::new();
        let mut number = 0;
        let mut bad_path = None;
        // A refused tree may still refer to blobs that other programs can read.
        let read = world::visit(bytes, &mut |entry| {
            let why = world::refuse_path(&entry.path)
                .or_else(|| entry.name_b64.as_deref().and_then(world::refuse_name));
            if let Some(why) = why
                && bad_path.is_none()
            {
                let shown: String = entry.path.chars().take(200).collect();
                bad_path = Some(format!("{shown:?}: {why}"));
            }
            if let (Kind::File | Kind::Symlink, Some(blob)) = (entry.kind, entry.blob) {
                refs.push((blob, Ref { place: Place::Entry(number), size: Some(entry.size), ..at }));
            }
            number += 1;
            Ok(())
        });
        {
            let mut state = self.state.lock();
            for (blob, new) in refs {
                state.refer(blob, new);
            }
        }
        match (read, bad_path) {
            (Err(error), _) => self.problem(Code::TreeMalformed, *digest, at, error),
            (Ok(_), Some(detail)) => self.problem(Code::TreePathRefused, *digest, at, detail),
            (Ok(_), None) => {
                if let Err(error) = Tree::parse(bytes) {
                    let code = if error.at == "root" { Code::TreeMalformed } else { Code::TreeEntryRefused };
                    self.problem(code, *digest, at, error);
                }
            }
        }
    }

    fn ledger(&self, at: Ref, digest: &Digest, bytes: &[u8]) {
        for blob in Effects::references(bytes).unwrap_or_default() {
            self.state.lock().refer(blob, Ref { place: Place::MergedLedger, ..at });
        }
        let ledger = match Effects::parse(bytes) {
            Ok(Effects::Ledger(ledger)) => ledger,
            Ok(Effects::Empty | Effects::Merged(_)) => return,
            Err(error) => return self.problem(Code::LedgerMalformed, *digest, at, error),
        };
        let chain = ledger.verify(self.options.secret.as_ref());
        let finding = {
            let ledgers = &mut self.state.lock().ledgers;
            match chain {
                Chain::Verified => {
                    ledgers.verified += 1;
                    None
                }
                Chain::Unchained => {
                    ledgers.unchained += 1;
                    None
                }
                Chain::NoSecret => {
                    ledgers.unverifiable += 1;
                    let detail = "its secret is neither in its header nor in PF_SESSION_SECRET";
                    Some((Code::LedgerUnverifiable, detail.to_owned()))
                }
                Chain::Broken { line, reason } => {
                    ledgers.broken += 1;
                    Some((Code::LedgerChainBroken, format!("line {line}: {reason}")))
                }
                Chain::CountMismatch { header, found } => {
                    ledgers.broken += 1;
                    let detail = format!("the header counts {header} entries, there are {found}");
                    Some((Code::LedgerCountMismatch, detail))
                }
            }
        };
        if let Some((code, detail)) = finding {
            self.problem(code, *digest, at, detail);
        }
    }

    /// One finding for a trace, however many of its lines are malformed.
    fn trace(&self, at: Ref, digest: &Digest, bytes: &[u8]) {
        let mut first = None;
        let mut more = 0;
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            match (trace::Record::parse(line, index + 1), &first) {
                (Ok(_), _) => {}
                (Err(error), None) => first = Some(error),
                (Err(_), Some(_)) => more += 1,
            }
        }
        if let Some(error) = first {
            let more = if more > 0 { format!(", and {more} more lines") } else { String::new() };
            self.problem(Code::TraceMalformedLine, *digest, at, format_args!("{error}{more}"));
        }
    }
}
