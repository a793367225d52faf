//! Seals forks, step by step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::about::told;
use super::content;
use super::ignored::take_out;
use super::image::image;
use super::layers::judged_meanwhile;
use super::sealing::{Parent, Sealing};
use super::text::Texts;
use super::times;
use super::witness::{LEFT, differing_paths, see_manifest};
use crate::audit::{Log, note};
use crate::crashpack::Steps;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{About, BaseReader, BlobRef, Fork, Frozen, Ino};
use crate::layers::effects::Secret;
use crate::ops::fixture;
use crate::oracle::TransferKind;
use crate::store::tags::check_new_tag;
use crate::store::{LayerFile, MarkerError, Store};

/// The result of a seal.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The image that holds the state of the fork.
    pub image: Digest,
    /// Whether it is new; if not, nothing had changed since it was made.
    pub new: bool,
    /// Files that look different in the fork now, without a write to them.
    pub changed: Vec<Ino>,
    /// Remarks for the user, each with its file.
    pub reports: Vec<String>,
    /// The frozen state that was sealed, if any. The files that the fork no longer needs are removed when
    /// this is dropped.
    pub frozen: Option<Frozen>,
}

/// The tag for an image.
#[derive(Clone, Copy, Debug)]
pub struct Tag<'a> {
    /// The name.
    pub name: &'a str,
    /// Whether it may be moved from another image.
    pub force: bool,
}

/// Seals the forks of a store.
pub struct Sealer {
    pub(super) store: Arc<Store>,
    pub(super) reader: Arc<dyn BaseReader>,
    pub(super) secret: Option<Secret>,
    pub(super) log: Log,
    pub(super) texts: Texts,
    /// Called before a fork is frozen.
    pub(super) push: Push,
    /// Whether all further seals are refused.
    pub(super) stopped: AtomicBool,
}

/// Takes in bytes that programs have written to a fork and that the fork has not received yet.
type Push = Box<dyn Fn(&Fork) -> Result<()> + Send + Sync>;

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Makes a sealer. The secret chains ledgers in place of a fresh one for each; `reader` is the one that
    /// the forks use.
    pub fn new(store: Arc<Store>, reader: Arc<dyn BaseReader>, secret: Option<Secret>) -> Self {
        Self {
            store,
            reader,
            secret,
            log: Log::off(),
            texts: Texts::default(),
            push: Box::new(|_| Ok(())),
            stopped: AtomicBool::new(false),
        }
    }

    /// Makes one with a log, which records every seal.
    #[must_use]
    pub fn with_log(mut self, log: Log) -> Self {
        self.set_log(log);
        self
    }

    /// Ends the seals under way before they make an image, and refuses others: the forks stay unchanged.
    /// Returns whether this is the first call.
    pub fn stop(&self) -> bool {
        !self.stopped.swap(true, Ordering::Relaxed)
    }

    /// Whether all further seals are refused.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Sets a function that is called before each seal freezes its fork: if it fails, the seal fails.
    pub fn push_before(&mut self, push: impl Fn(&Fork) -> Result<()> + Send + Sync + 'static) {
        self.push = Box::new(push);
    }

    /// Sets the log that records every seal.
    pub fn set_log(&mut self, log: Log) {
        self.log = log;
    }

    /// Seals the present state of a fork, except what its `.pfignore` names. If it fails the fork is
    /// unchanged.
    ///
    /// Waits for another seal of the same fork.
    pub fn seal(&self, fork: &Fork, tag: Option<Tag<'_>>) -> Result<Sealed> {
        self.seal_as(fork, tag, false, &About::default())
    }

    /// Seals all of a fork, including what its `.pfignore` names.
    pub fn seal_everything(&self, fork: &Fork) -> Result<Sealed> {
        self.seal_as(fork, None, true, &About::default())
    }

    /// Seals a fork, or `everything` of it, for a reason that the fork's list tells.
    pub fn seal_as(
        &self,
        fork: &Fork,
        tag: Option<Tag<'_>>,
        everything: bool,
        about: &About,
    ) -> Result<Sealed> {
        let name = &fork.name();
        if let Some(tag) = &tag {
            self.check_tag(tag)?;
        }
        let _only_one = fork.sealing();
        let (sealed, tagged) = (self.push)(fork)
            .and_then(|()| self.seal_frozen(fork, name, everything, (tag, about)))
            .inspect_err(|e| self.log.note_failed("seal", e))
            .map_err(|e| e.context(format_args!("cannot seal fork {name:?}")))?;
        tagged.map_err(|e| {
            e.context(format_args!("fork {name:?} is sealed as {}, but not tagged", sealed.image))
        })?;
        if let Some(tag) = tag {
            self.log.note(note::tags_changed(&[tag.name], &[], Some(&sealed.image)));
        }
        Ok(sealed)
    }

    fn tag(&self, tag: Option<Tag<'_>>, image: &Digest) -> Result<()> {
        tag.map_or(Ok(()), |tag| self.store.tags().set(tag.name, image, tag.force))
    }

    /// Tags an image while a fork moves to it: both wait for the disk. If the fork does not move, the tag is
    /// removed.
    fn tag_meanwhile<T>(
        &self,
        tag: Option<Tag<'_>>,
        image: &Digest,
        rebase: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Result<()>)> {
        let Some(free) = tag.filter(|tag| !tag.force) else {
            let done = rebase()?;
            return Ok((done, self.tag(tag, image)));
        };
        let mut tagged = Ok(());
        let done = rayon::in_place_scope(|scope| {
            scope.spawn(|_| tagged = self.tag(Some(free), image));
            rebase()
        });
        let ours = || self.store.tags().get(free.name).is_ok_and(|named| named == *image);
        if done.is_err()
            && tagged.is_ok()
            && ours()
            && let Err(error) = self.store.tags().remove(free.name)
        {
            tracing::error!("{error}; no fork has its image as base");
        }
        Ok((done?, tagged))
    }

    fn check_tag(&self, tag: &Tag<'_>) -> Result<()> {
        let name = tag.name;
        check_new_tag(name)?;
        self.store.tags().check_free(name, tag.force)
    }

    /// Returns the result, and whether the image was tagged.
    fn seal_frozen(
        &self,
        fork: &Fork,
        name: &str,
        everything: bool,
        (tag, about): (Option<Tag<'_>>, &About),
    ) -> Result<(Sealed, Result<()>)> {
        let changed = if everything { fork.is_unlike_its_image() } else { fork.is_changed() };
        if let (Some(image), false) = (fork.base(), changed) {
            fork.may_write()?;
            if !everything {
                // The caller wants to be able to restore this state.
                fork.note_found(&image, about)?;
            }
            let (changed, reports) = (fork.show_records(), Vec::new());
            let sealed = Sealed { image, new: false, changed, reports, frozen: None };
            return Ok((sealed, self.tag(tag, &image)));
        }
        let left = self.store.blobs().files_left();
        let frozen = fork.freeze()?;
        let mut steps = Steps::new();
        steps.did("checkpoint", format!("froze fork {name}"));
        steps.concerns(format!("forks/heads/{name}.json"));
        // Before any journal is read.
        steps.saw_journal(frozen.journal_gaps()?);
        steps.saw_pending(frozen.pending_operations());
        self.judge(TransferKind::Seal, name, &steps)?;
        let mut changes = frozen.changes()?;
        let mut reports = Vec::new();
        let kept = take_out(&frozen, &mut changes, &mut reports, everything)?;
        let batch = self.store.begin();
        let ended = || {
            let stopped = self.is_stopped();
            let error =
                || Error::new(ErrorKind::Busy, "the seal was interrupted: its program was asked to end");
            stopped.then(error).or_else(|| fork.may_write().err())
        };
        if let Some(error) = ended() {
            return Err(error);
        }
        let mut sealing = Sealing {
            store: &self.store,
            batch: &batch,
            frozen: &frozen,
            changes: &changes,
            parent: self.parent(&frozen)?,
            secret: self.secret.as_ref(),
            texts: &self.texts,
            ended: &ended,
            times: frozen.times_to_record(&changes),
            reports,
            placed: HashMap::new(),
        };
        let (mut manifest, mut stored) = image(&mut sealing, name)?;
        steps
            .did("path", format!("stored {} changed paths in tree {}", changes.put.len(), manifest.world.fs));
        steps.made_by(fixture::seed_of(&manifest.agent));
        steps.saw_paths(&format!("forks/{name}"), differing_paths(&sealing, &manifest.world.fs, &stored)?);
        // Before there is an image: an existing fault must not become part of one.
        self.judge(TransferKind::Seal, name, &steps)?;
        let Sealing { parent, mut reports, .. } = sealing;
        let same = parent.as_ref().filter(|parent| parent.manifest.blobs() == manifest.blobs());
        let (image, new) = if let Some(parent) = same {
            // The changes were reverted.
            steps.saw_leaked(LEFT, self.leaked(left));
            self.judge(TransferKind::Seal, name, &steps)?;
            if about.message.is_some() {
                fork.note_found(&parent.id, about)?;
            }
            (parent.id, false)
        } else {
            if let Some(parent) = &parent {
                self.need(&parent.id)?;
            }
            let expected = times::name(self.reader.as_ref(), &mut manifest)?;
            fork.note_seal(&expected, &told(&self.store, name, about, &frozen, &kept, &stored))?;
            let (image, wrong) = judged_meanwhile(&frozen, &changes, || batch.commit(&manifest));
            let image = image?;
            reports.extend(wrong);
            let found = self.store.images().bytes(self.store.blobs(), &image);
            see_manifest(&mut steps, &expected, found);
            steps.saw_leaked(LEFT, self.leaked(left));
            if let Err(error) = self.judge(TransferKind::Seal, name, &steps) {
                self.take_back(&image);
                return Err(error);
            }
            (image, true)
        };
        let layers = self.reader.layers(&image)?;
        let ledger = LayerFile::EffectsLedger.path().as_bytes();
        if changes.put.contains_key(ledger) {
            // As it is shown: a mount may hide its secret.
            let digest = manifest.effects.ledger;
            stored.insert(ledger.to_vec(), BlobRef { digest, size: self.reader.size(&digest)? });
        }
        let digest = manifest.trace.messages;
        if let Some(trace) = stored.get_mut(LayerFile::TraceMessages.path().as_bytes())
            && trace.digest != digest
        {
            *trace = BlobRef { digest, size: self.reader.size(&digest)? };
        }
        let rebase = || fork.rebase_keeping(&frozen, image, &layers, &stored, &kept);
        let (changed, tagged) = self.tag_meanwhile(tag, &image, rebase).inspect_err(|_| {
            if new {
                self.take_back(&image);
            }
        })?;
        if new {
            self.log.note(note::checkpoint_taken(name, &image));
            self.log.note(note::fork_sealed(name, &image));
        }
        Ok((Sealed { image, new, changed, reports, frozen: Some(frozen) }, tagged))
    }

    /// Removes a new image, unless another program uses it already.
    fn take_back(&self, image: &Digest) {
        let named = |name: &String| self.store.tags().get(name).is_ok_and(|named| named == *image);
        let removed = (|| {
            let forked =
                crate::fork::references(self.store.root())?.bases.values().any(|b| *b == Some(*image));
            if forked || self.store.tags().names()?.iter().any(named) {
                return Ok(());
            }
            self.store.remove_image(image).map(drop)
        })();
        if let Err(error) = removed {
            tracing::error!("{error}; no fork has image {image} as base");
        }
    }

    /// The number of temporary files left behind since there were `before`.
    fn leaked(&self, before: u64) -> u32 {
        u32::try_from(self.store.blobs().files_left() - before).unwrap_or(u32::MAX)
    }

    /// Judges the steps of a transfer; a violation is the caller's error.
    pub(super) fn judge(&self, kind: TransferKind, name: &str, steps: &Steps) -> Result<()> {
        self.log.judge_steps(kind, name, steps).error().map_or(Ok(()), Err)
    }

    /// Fails if an image is no longer in the store.
    fn need(&self, image: &Digest) -> Result<()> {
        if self.store.images().contains(image) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Missing, format!("its base image {image} is no longer in the store"))
            .with_hint(
                "`pf gc --retain-recent` removes images that forks need; copy out what you can still read",
            ))
    }

    /// The image that the fork was made from. A copied fork has it from its copied manifest.
    fn parent(&self, frozen: &Frozen) -> Result<Option<Parent>> {
        if let Some(id) = frozen.image() {
            self.need(&id)?;
            return Ok(Some(Parent { id, manifest: self.store.image(&id)?.manifest }));
        }
        let Some((_, inode)) = frozen.resolve(b"manifest.json") else { return Ok(None) };
        let Some(content) = inode.content().filter(|content| content.size <= crate::store::MAX_METADATA)
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        content::read_all(frozen, content, &mut bytes)?;
        let id = Digest::of(&bytes);
        match self.store.image(&id) {
            Ok(image) => Ok(Some(Parent { id, manifest: image.manifest })),
            Err(MarkerError::Absent(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
