//! A fork: its identity, its snapshots, its list of seals, and its files.

use std::ops::Deref;

use super::compare::View;
use super::core::Core;
use super::disk::{About, Entry, GenId, Head, Restored, Seal};
use super::gate::Operation;
use super::ino::Ino;
use super::posix::Files;
use super::reader::LayerBase;
use super::replaced::{ChangedName, Comparison};
use super::restore::{self, PathsBack};
use super::snapshot::{Frozen, Kept, Sealed, Snapshots};
use crate::digest::Digest;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::sync::{MutexGuard, wait};

/// The longest manifest in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// One fork, loaded. Its operations on files are those of [`Files`].
pub struct Fork {
    files: Files,
    /// See [`Fork::numbered_by`].
    numbered_by: String,
}

impl std::fmt::Debug for Fork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fork").field("uid", &self.core.uid).finish_non_exhaustive()
    }
}

impl Deref for Fork {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl Fork {
    pub(super) fn new(core: Core) -> Self {
        let numbered_by = core.head.lock().numbered_by.clone();
        let numbered_by = numbered_by.unwrap_or_else(|| core.uid.clone());
        Self { files: Files::new(core), numbered_by }
    }

    /// Its identity, which stays when it is renamed: 32 hex digits.
    pub fn uid(&self) -> &str {
        &self.core.uid
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.core.head.lock().name.clone()
    }

    /// Its name, unless the head is being written just now.
    pub(crate) fn name_if_free(&self) -> Option<String> {
        self.core.head.try_lock().map(|head| head.name.clone())
    }

    /// The fork's damage in words, if any. A damaged fork is readable up to the damaged record, and cannot be written.
    pub fn damage(&self) -> Option<&str> {
        self.core.damage()
    }

    /// Counts the record numbers that were missing when the journals were read back. Any other damage counts as one.
    pub fn journal_gaps(&self) -> u32 {
        self.core.damage.as_ref().map_or(0, |damage| damage.gaps)
    }

    /// The fork's base image on disk.
    pub fn base(&self) -> Option<Digest> {
        self.core.live.read().image
    }

    /// The image it descends from: its base, or the image whose manifest it holds, as in a copy of a fork's folder. The store
    /// may no longer have that image.
    pub fn lineage(&self) -> Result<Option<Digest>> {
        if let Some(image) = self.base() {
            return Ok(Some(image));
        }
        let Ok(manifest) = self.lookup(Ino::TOP, b"manifest.json") else { return Ok(None) };
        if manifest.kind != Kind::File || manifest.size == 0 || manifest.size > MAX_MANIFEST {
            return Ok(None);
        }
        Ok(Some(Digest::of(&self.read_vec(manifest.ino, 0, MAX_MANIFEST as usize)?)))
    }

    /// The image that it was made of, where its head says so; and whether that says that it began with nothing.
    pub fn beginning(&self) -> (Option<Digest>, bool) {
        let head = self.core.head.lock();
        (head.origin, head.began_empty)
    }

    /// When it was made, in nanoseconds since 1970.
    pub fn created_ns(&self) -> i64 {
        self.core.created_ns
    }

    /// Whether anything was changed since the last seal. May also be true if the changes cancel each other out.
    pub fn is_changed(&self) -> bool {
        self.core.live.read().is_changed()
    }

    /// Whether it holds anything that its image lacks: later changes, or files that the seal left out.
    pub fn is_unlike_its_image(&self) -> bool {
        self.core.live.read().state.dirt().next().is_some()
    }

    /// A value that is different after every change.
    pub fn version(&self) -> (GenId, u64) {
        self.core.live.read().version()
    }

    /// Waits until no other seal of this fork runs. None begins until the guard is dropped.
    pub(crate) fn sealing(&self) -> MutexGuard<'_, ()> {
        self.core.sealing.lock()
    }

    /// Whether it began empty and still is.
    pub fn is_blank(&self) -> bool {
        let live = self.core.live.read();
        live.image.is_none() && live.state.dirt().next().is_none()
    }

    /// Whether it was discarded, or replaced by a restore.
    pub(crate) fn is_discarded(&self) -> bool {
        self.core.is_discarded()
    }

    pub(crate) fn may_write(&self) -> Result<()> {
        self.core.may_write()
    }

    /// The `uid` from which a mount derives the inode numbers of this fork's files. A restore does not change it.
    pub fn numbered_by(&self) -> &str {
        &self.numbered_by
    }

    /// Makes everything that was acknowledged durable: all of the fork, since a durable journal must not
    /// refer to data that is not durable. Writers continue during the call.
    pub fn fsync(&self) -> Result<()> {
        self.core.fsync()
    }

    /// Whether there is data without references.
    pub fn has_trash(&self) -> bool {
        self.core.live.read().generations.iter().any(|generation| generation.has_trash())
    }

    /// Frees the space of data without references. Makes the fork durable first, so that no power cut brings
    /// back a name whose data is removed. Returns whether there was anything to do.
    pub fn reap(&self) -> Result<bool> {
        wait::required()?;
        let generations = self.core.live.read().generations.clone();
        let unreferenced: Vec<_> =
            generations.iter().filter(|g| g.has_trash()).map(|g| (g, g.take_trash())).collect();
        if unreferenced.is_empty() {
            return Ok(false);
        }
        if let Err(e) = self.fsync() {
            for (generation, numbers) in unreferenced {
                generation.return_unreferenced(numbers);
            }
            return Err(e);
        }
        for (generation, numbers) in unreferenced {
            generation.remove(numbers);
        }
        Ok(true)
    }

    /// Begins an operation of several steps, which ends when the guard is dropped. Operations must not nest.
    pub fn operation(&self) -> Operation<'_> {
        self.core.gate.enter()
    }

    fn snapshots(&self) -> Snapshots<'_> {
        Snapshots::of(&self.core)
    }

    /// Freezes the present state, which takes a pointer. The fork continues at once in a new generation.
    ///
    /// Waits for operations of several steps, for one second at most.
    pub fn freeze(&self) -> Result<Frozen> {
        self.snapshots().freeze()
    }

    /// Makes an image of `frozen` the fork's base. Releases the generations of `frozen` and keeps later changes.
    ///
    /// The image and its blobs must be durable. `sealed` names the content of every changed file. For an append-only
    /// file it may have another length. Returns the files whose content or length looks different now, and those that were
    /// replaced. The caller must call [`Files::forget`] for the ones whose number the kernel does not know.
    pub fn rebase(
        &self,
        frozen: &Frozen,
        image: Digest,
        layers: &[LayerBase],
        sealed: &Sealed,
    ) -> Result<Vec<Ino>> {
        self.rebase_keeping(frozen, image, layers, sealed, &Kept::new())
    }

    /// Like [`Fork::rebase`], with an image that lacks the files in `kept`. These stay in the fork.
    pub fn rebase_keeping(
        &self,
        frozen: &Frozen,
        image: Digest,
        layers: &[LayerBase],
        sealed: &Sealed,
        kept: &Kept,
    ) -> Result<Vec<Ino>> {
        self.snapshots().rebase(frozen, image, layers, sealed, kept)
    }

    /// Whether [`Fork::checkpoint`] would pay: the journals are large, and most of their records are outdated.
    pub fn wants_checkpoint(&self) -> bool {
        self.snapshots().wants_checkpoint()
    }

    /// Writes the state that the fork's generations describe into a new one, and releases the old ones. Returns whether there
    /// was anything to write.
    ///
    /// Programs can use the fork during the call: they wait only for the freeze and for the switch of the head.
    pub fn checkpoint(&self) -> Result<bool> {
        self.snapshots().checkpoint()
    }

    /// All its files in their present state.
    pub fn view(&self) -> View {
        View::new(self.core.live.read().state.detached(), self.core.shared.reader.clone())
    }

    /// What [`Fork::restore_paths`] would do now: the paths that change, and those that stay.
    pub fn would_restore(&self, from: &View, paths: &[Vec<u8>]) -> Result<PathsBack> {
        restore::would_restore(&self.core, from, paths)
    }

    /// Puts paths of the fork's files back to what `from` has there, each with all that is below it. What no image holds stays.
    pub fn restore_paths(&self, from: &View, paths: &[Vec<u8>]) -> Result<PathsBack> {
        restore::restore_paths(&self.core, from, paths)
    }

    /// Compares this fork with the one that it replaced. With `all_times`, a file with another change time counts as changed.
    pub fn compare_with(&self, old: &Self, all_times: bool) -> Comparison {
        Comparison::of(self, old, all_times)
    }

    /// Lists the names in a folder of both forks that lead to a different file than in the fork that was replaced.
    pub fn changed_names(
        &self,
        old: &Self,
        folder: Ino,
        compared: &mut Comparison,
    ) -> Result<Vec<ChangedName>> {
        compared.changed_names(self, old, folder)
    }

    /// The fork's seals, oldest first. The images may be gone from the store.
    pub fn seals(&self) -> Result<Vec<Seal>> {
        Ok(self.history()?.iter().filter_map(Entry::seal).collect())
    }

    /// The fork's seals and restores, oldest first. The images may be gone from the store.
    pub fn history(&self) -> Result<Vec<Entry>> {
        self.core.seal_list().entries()
    }

    /// Records that an image is about to be made of the fork.
    pub(crate) fn note_seal(&self, image: &Digest, about: &About) -> Result<()> {
        let _held = self.hold_for_note()?;
        self.core.seal_list().note_seal(image, about)
    }

    /// Adds the unchanged base image to the fork's seals, unless it is in the list and there is no more to say of it.
    pub(crate) fn note_found(&self, image: &Digest, about: &About) -> Result<()> {
        if about.message.is_none() && self.seals()?.iter().any(|seal| seal.image == *image) {
            return Ok(());
        }
        let _held = self.hold_for_note()?;
        self.core.seal_list().note_found(image, about)
    }

    /// Records that paths of the fork were restored.
    pub fn note_restored(&self, restored: &Restored) -> Result<()> {
        let _held = self.hold_for_note()?;
        self.core.seal_list().note_restored(restored)
    }

    /// Holds the head while a line is added to the list of seals: a fork that is discarded at the same time leaves no list.
    fn hold_for_note(&self) -> Result<MutexGuard<'_, Head>> {
        let held = self.core.head.lock();
        self.core.may_write()?;
        Ok(held)
    }
}
