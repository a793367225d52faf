//! Finds all references to blobs.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;

use super::report::Progress;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, References};
use crate::layers::cache::PageManifest;
use crate::layers::effects::Effects;
use crate::layers::procs::{Known, Procs};
use crate::layers::world::{self, Kind};
use crate::store::applies::State;
use crate::store::images::MAX_MANIFEST;
use crate::store::{BlobError, LayerFile, Manifest, MarkerError, Size, Store};
use crate::sync::Mutex;
use crate::util::parallel::parallel_for_each;

/// Marks referenced blobs. Marking again reads what is new, and forgets nothing.
pub(super) struct Marker<'a> {
    store: &'a Store,
    jobs: NonZeroUsize,
    progress: &'a dyn Progress,
    marked: HashSet<Digest>,
    images: HashSet<Digest>,
    layers: HashSet<(LayerFile, Digest)>,
    problems: Vec<String>,
    notes: Vec<String>,
}

/// A layer that refers to blobs, and an image that has it.
type Layer = (LayerFile, Digest, Digest);

/// How a layer was read.
enum Read {
    Blobs(Vec<Digest>),
    /// Its references are unknown.
    Problem(String),
}

impl<'a> Marker<'a> {
    pub(super) fn new(store: &'a Store, jobs: NonZeroUsize, progress: &'a dyn Progress) -> Self {
        Self {
            store,
            jobs,
            progress,
            marked: HashSet::new(),
            images: HashSet::new(),
            layers: HashSet::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn is_marked(&self, digest: &Digest) -> bool {
        self.marked.contains(digest)
    }

    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    pub(super) fn images(&self) -> u64 {
        self.images.len() as u64
    }

    pub(super) fn into_words(mut self) -> (Vec<String>, Vec<String>) {
        self.problems.sort_unstable();
        self.problems.dedup();
        self.notes.sort_unstable();
        self.notes.dedup();
        (self.problems, self.notes)
    }

    /// Marks everything that is referenced now. Images are listed before forks: a fork moves to a new image
    /// after that has its marker, so one of the two lists has the image.
    pub(super) fn mark(&mut self) -> Result<()> {
        let mut odd = Vec::new();
        let ids = self.store.images().ids(&mut |path| odd.push(path))?;
        for path in odd {
            if path.extension().is_some_and(|extension| extension == "json") {
                self.problems
                    .push(format!("{} may be an image, but its name is not a digest", path.display()));
            }
        }
        let mut roots: BTreeMap<Digest, Root> = ids.into_iter().map(|id| (id, Root::Image)).collect();
        for name in self.store.tags().names()? {
            match self.store.tags().get(&name) {
                Ok(id) => drop(roots.entry(id).or_insert(Root::Tag(name))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.problems.push(error.to_string()),
            }
        }
        let References { bases, blobs, problems, .. } = fork::references(self.store.root())?;
        for (name, base) in bases {
            if let Some(base) = base {
                // Comes before any other root: without its base the fork is lost.
                roots.insert(base, Root::Fork(name));
            }
        }
        self.problems.extend(problems);
        self.marked.extend(blobs);
        for (image, _) in self.store.pins()? {
            roots.entry(image).or_insert(Root::Pin);
        }
        for (_, apply) in self.store.applies().all()? {
            match apply {
                // What was taken back needs no image: pruning may have removed them.
                Ok(apply) if apply.state == State::Undone => {}
                Ok(apply) => {
                    for image in [apply.before, apply.after] {
                        roots.entry(image).or_insert(Root::Apply(apply.dir.display().to_string()));
                    }
                }
                Err(error) => self.problems.push(error.to_string()),
            }
        }
        let mut layers = Vec::new();
        for (id, root) in roots {
            if !self.images.contains(&id) {
                self.image(id, &root, &mut layers);
            }
        }
        self.read(&layers);
        Ok(())
    }

    /// Marks an image's manifest and layers, and adds those that refer to more.
    fn image(&mut self, id: Digest, root: &Root, layers: &mut Vec<Layer>) {
        let manifest = match self.store.images().bytes(self.store.blobs(), &id) {
            Ok((bytes, _)) => Manifest::parse(&bytes).map_err(Error::from),
            Err(MarkerError::Absent(_)) => {
                match (self.store.blobs().read(&id, Size::AtMost(MAX_MANIFEST)), root) {
                    // The marker is missing, and all blobs may exist: it can be restored.
                    (Ok(bytes), _) => Manifest::parse(&bytes).map_err(Error::from),
                    // Removed since the markers were listed, or by the program that pinned it.
                    (Err(_), Root::Image | Root::Pin) => return,
                    (Err(_), Root::Tag(name)) => {
                        return self
                            .notes
                            .push(format!("tag {name:?} names {id}, which is not in the store"));
                    }
                    (Err(_), Root::Apply(dir)) => {
                        return self.notes.push(format!(
                            "an apply to {dir} names {id}, which is not in the store: it cannot be undone"
                        ));
                    }
                    (Err(_), Root::Fork(name)) => {
                        return self.problems.push(format!(
                        "fork {name:?} rests on image {id}, which is not in the store: bring it back, or discard the fork"
                    ));
                    }
                }
            }
            Err(error) => Err(error.into()),
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => return self.problems.push(error.context(format_args!("image {id}")).to_string()),
        };
        self.images.insert(id);
        self.marked.insert(id);
        for (file, digest) in manifest.blobs() {
            self.marked.insert(digest);
            let refers = matches!(
                file,
                LayerFile::WorldFs
                    | LayerFile::CacheManifest
                    | LayerFile::WorldProcs
                    | LayerFile::EffectsLedger
            );
            if refers && self.layers.insert((file, digest)) {
                layers.push((file, digest, id));
            }
        }
    }

    fn read(&mut self, layers: &[Layer]) {
        self.progress.layers(layers.len() as u64);
        let found: Mutex<HashSet<Digest>> = Mutex::default();
        let failed: Mutex<Vec<(Layer, String)>> = Mutex::default();
        parallel_for_each(self.jobs, layers, &|layer| {
            let (file, digest, _) = layer;
            match read_layer(self.store, *file, digest) {
                Read::Blobs(blobs) => found.lock().extend(blobs),
                Read::Problem(why) => failed.lock().push((*layer, why)),
            }
            self.progress.layer_done();
        });
        self.marked.extend(found.into_inner());
        for ((file, _, image), why) in failed.into_inner() {
            // Removing an image removes its blobs too.
            if self.store.images().contains(&image) || self.store.blobs().contains(&image) {
                self.problems.push(format!("image {image}: {file}: {why}"));
            }
        }
    }
}

/// Why an image is kept.
enum Root {
    Image,
    Tag(String),
    Fork(String),
    /// An apply, by its directory.
    Apply(String),
    Pin,
}

/// Every digest in a text of any form.
fn named_in(text: &[u8]) -> Vec<Digest> {
    const NAMED: usize = "sha256:".len() + 64;
    let named = text.windows(NAMED).filter(|window| window.starts_with(b"sha256:"));
    named.filter_map(|window| std::str::from_utf8(window).ok()?.parse().ok()).collect()
}

/// The references of a layer.
fn read_layer(store: &Store, file: LayerFile, digest: &Digest) -> Read {
    let bytes = match store.blobs().read_metadata(digest) {
        Ok(bytes) => bytes,
        // A ledger or a list of processes that is missing has no useful references.
        Err(BlobError::Missing(_)) if matches!(file, LayerFile::WorldProcs | LayerFile::EffectsLedger) => {
            return Read::Blobs(Vec::new());
        }
        Err(error) => return Read::Problem(error.to_string()),
    };
    let mut blobs = Vec::new();
    let read = match file {
        // A tree that cannot be shown may still refer to blobs that other programs can read.
        LayerFile::WorldFs => world::visit(&bytes, &mut |entry| {
            // An empty file needs no blob in the tree, but is shown as one with the empty blob.
            blobs.extend(entry.blob.or_else(|| (entry.kind == Kind::File).then(|| Digest::of(b""))));
            Ok(())
        })
        .map(drop),
        LayerFile::CacheManifest => PageManifest::parse(&bytes).map(|manifest| {
            blobs.extend(manifest.pages.iter().flat_map(|page| [page.k, page.v]));
        }),
        LayerFile::WorldProcs => {
            match Procs::parse(&bytes) {
                Ok(Procs::Known(Known::Criu(criu))) => blobs.push(criu.criu_dump),
                Ok(_) => {}
                // An agent may have written any text; every digest in it is kept.
                Err(_) => blobs.extend(named_in(&bytes)),
            }
            Ok(())
        }
        LayerFile::EffectsLedger => Effects::references(&bytes).and_then(|mut referred| {
            // The ledgers that those continue are needed as well.
            let mut seen = HashSet::from([*digest]);
            while let Some(ledger) = referred.pop() {
                if !seen.insert(ledger) {
                    continue;
                }
                blobs.push(ledger);
                if let Ok(bytes) = store.blobs().read_metadata(&ledger) {
                    referred.extend(Effects::references(&bytes)?);
                }
            }
            Ok(())
        }),
        _ => Ok(()),
    };
    match read {
        Ok(()) => Read::Blobs(blobs),
        Err(error) => Read::Problem(error.to_string()),
    }
}
