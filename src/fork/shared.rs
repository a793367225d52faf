//! What all forks of a store share: their base images, their generations, and how many heads name each.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::disk::{GenId, Generation, OpenFiles};
use super::journal::header;
use super::owners::Owners;
use super::reader::BaseReader;
use super::state::{Base, base_of};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// The data that all forks of a store share.
pub(super) struct Shared {
    pub(super) forks: PathBuf,
    pub(super) files: Arc<OpenFiles>,
    pub(super) reader: Arc<dyn BaseReader>,
    pub(super) writable: bool,
    pub(super) writeback: bool,
    owners: Owners,
    bases: Mutex<HashMap<Option<Digest>, Weak<Base>>>,
    /// Generations in memory: one value for each, shared by all forks that use it.
    generations: Mutex<HashMap<GenId, Weak<Generation>>>,
    /// How many heads name a generation.
    refs: Mutex<HashMap<GenId, usize>>,
}

impl Shared {
    pub(super) fn new(
        forks: PathBuf,
        files: Arc<OpenFiles>,
        reader: Arc<dyn BaseReader>,
        owners: Owners,
        (writable, writeback): (bool, bool),
    ) -> Self {
        let (bases, generations, refs) = Default::default();
        Self { forks, files, reader, writable, writeback, owners, bases, generations, refs }
    }

    /// The generations that heads name.
    pub(super) fn named(&self) -> HashSet<GenId> {
        self.refs.lock().keys().copied().collect()
    }

    /// Whether only one head names a generation.
    pub(super) fn is_named_once(&self, id: GenId) -> bool {
        self.refs.lock().get(&id) == Some(&1)
    }

    /// Returns the base of an image, which its forks share. Without an image, makes an empty one with this time.
    pub(super) fn base(&self, image: Option<Digest>, created_ns: i64) -> Result<Arc<Base>> {
        let Some(id) = image else { return Ok(Arc::new(Base::empty(self.owners.clone(), created_ns))) };
        if let Some(base) = self.bases.lock().get(&image).and_then(Weak::upgrade) {
            return Ok(base);
        }
        let base = Arc::new(self.base_of(id)?);
        let mut bases = self.bases.lock();
        bases.retain(|_, base| base.strong_count() > 0);
        bases.insert(image, Arc::downgrade(&base));
        Ok(base)
    }

    fn base_of(&self, image: Digest) -> Result<Base> {
        let reader = &self.reader;
        Ok(base_of(
            image,
            reader.tree(&image)?,
            &reader.layers(&image)?,
            reader.times(&image)?,
            self.owners.clone(),
        ))
    }

    pub(super) fn generation(&self, id: GenId) -> Arc<Generation> {
        let mut generations = self.generations.lock();
        if let Some(generation) = generations.get(&id).and_then(Weak::upgrade) {
            return generation;
        }
        let generation = Generation::new(&self.forks, id, self.files.clone());
        generations.insert(id, Arc::downgrade(&generation));
        generation
    }

    pub(super) fn new_generation(&self) -> Result<Arc<Generation>> {
        let generation = Generation::create(&self.forks, self.files.clone(), header)?;
        let mut generations = self.generations.lock();
        generations.retain(|_, generation| generation.strong_count() > 0);
        generations.insert(generation.id, Arc::downgrade(&generation));
        Ok(generation)
    }

    pub(super) fn add_refs(&self, ids: &[GenId]) {
        let mut refs = self.refs.lock();
        for id in ids {
            *refs.entry(*id).or_default() += 1;
        }
    }

    /// Releases references of heads. Generations that no head names are then removed, at the latest when nothing in memory
    /// reads them.
    pub(super) fn drop_refs(&self, ids: &[GenId]) {
        let mut unused = Vec::new();
        {
            let mut refs = self.refs.lock();
            for id in ids {
                if let Some(count) = refs.get_mut(id) {
                    *count -= 1;
                    if *count == 0 {
                        refs.remove(id);
                        unused.push(*id);
                    }
                }
            }
        }
        for id in unused {
            let generation = self.generations.lock().get(&id).and_then(Weak::upgrade);
            let generation =
                generation.unwrap_or_else(|| Generation::new(&self.forks, id, self.files.clone()));
            generation.doom();
        }
    }

    /// Copies the torn end of a journal to a file, and cuts it off.
    pub(super) fn set_aside_tail(&self, generation: &Generation, from: u64) -> Result<()> {
        let path = generation.journal_path();
        let failed = |e| Error::io(e, format!("cannot cut the torn end of {}", path.display()));
        let journal = fs::read(&path).map_err(failed)?;
        let tail = journal.get(from as usize..).unwrap_or_default();
        let kept = self.forks.join("damaged").join(format!("{}-{from}.tail", generation.id));
        let options = File::options().write(true).truncate(true).clone();
        let set_aside = self.files.sharing.open_or_create(&options, &kept);
        set_aside.and_then(|mut file| file.write_all(tail)).map_err(failed)?;
        let file = generation.journal().map_err(failed)?;
        generation.io().truncate(&file, from).map_err(failed)?;
        tracing::warn!(
            "{}: cut off {} bytes of an unfinished operation; they are kept in {}",
            path.display(),
            tail.len(),
            kept.display()
        );
        Ok(())
    }
}
