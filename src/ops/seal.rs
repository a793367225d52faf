//! Seals a fork: its present state becomes an image that `pf` accepts, and the fork then has it as its base.
//!
//! The fork is frozen by taking a pointer, and its writers continue. Changed content is hashed and
//! compressed; everything else is taken from the base image. Blobs come first, then the image's marker, then
//! the fork's head. If the program ends in between, the fork is unchanged or sealed, and no image lacks a blob.

mod about;
mod content;
mod ignored;
mod layers;
mod ledger;
mod restore;
mod text;
mod times;
mod tree;
mod witness;

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::Utc;

use crate::audit::{Log, note};
use crate::crashpack::Steps;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{About, BaseReader, BlobRef, Body, Changes, Fork, Frozen, Ino, Put};
use crate::layers::effects::Secret;
use crate::layers::world::{Entry, Kind, MAX_DEPTH, Root};
use crate::layers::{FormatError, xattrs};
use crate::ops::fixture;
use crate::ops::seal::content::Job;
use crate::ops::seal::layers::Stored;
use crate::ops::seal::text::{Text, Texts};
use crate::ops::seal::tree::{Merged, NewEntry, TreeChanges};
pub(crate) use crate::ops::seal::witness::{readable, see_manifest};
use crate::oracle::TransferKind;
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::tags::check_new_tag;
use crate::store::{Batch, LayerFile, Manifest, MarkerError, Store};

/// The directory of a fork's files.
const WORLD: &[u8] = b"world/fs";

/// The agent of a fork that began empty.
const AGENT: &str = "pfimg";

/// The leftovers of a seal, in words for a crash pack.
pub(crate) const LEFT: &str = "temporary files left behind";

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
    store: Arc<Store>,
    reader: Arc<dyn BaseReader>,
    secret: Option<Secret>,
    log: Log,
    texts: Texts,
    /// Called before a fork is frozen.
    push: Push,
    /// Whether all further seals are refused.
    stopped: AtomicBool,
}

/// Takes in bytes that programs have written to a fork and that the fork has not received yet.
type Push = Box<dyn Fn(&Fork) -> Result<()> + Send + Sync>;

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("store", &self.store.root()).finish_non_exhaustive()
    }
}

/// The base image of a fork.
struct Parent {
    id: Digest,
    manifest: Manifest,
}

/// One seal under way.
struct Sealing<'a> {
    store: &'a Store,
    batch: &'a Batch<'a>,
    frozen: &'a Frozen,
    changes: &'a Changes,
    parent: Option<Parent>,
    secret: Option<&'a Secret>,
    texts: &'a Texts,
    ended: content::Ended<'a>,
    /// Times to record that the fork shows and that no program set, by path.
    times: BTreeMap<Vec<u8>, i64>,
    reports: Vec<String>,
    /// The positions of new entries in the tree.
    placed: HashMap<Vec<u8>, Range<usize>>,
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
        let kept = ignored::take_out(&frozen, &mut changes, &mut reports, everything)?;
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
        let (mut manifest, mut stored) = sealing.run(name)?;
        steps
            .did("path", format!("stored {} changed paths in tree {}", changes.put.len(), manifest.world.fs));
        steps.made_by(fixture::seed_of(&manifest.agent));
        steps.saw_paths(&format!("forks/{name}"), sealing.differing_paths(&manifest.world.fs, &stored)?);
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
            let expected = self.name(&mut manifest)?;
            fork.note_seal(&expected, &self.told(name, about, &frozen, &kept, &stored))?;
            let (image, wrong) = layers::judged_meanwhile(&frozen, &changes, || batch.commit(&manifest));
            let image = image?;
            reports.extend(wrong);
            let found = self.store.images().bytes(self.store.blobs(), &image);
            witness::see_manifest(&mut steps, &expected, found);
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
    fn judge(&self, kind: TransferKind, name: &str, steps: &Steps) -> Result<()> {
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

impl Sealing<'_> {
    /// Stores everything and makes the manifest.
    fn run(&mut self, name: &str) -> Result<(Manifest, Stored)> {
        let stored = self.contents()?;
        let tree = self.tree(&stored)?;
        let none = Digest::of(b"");
        let agent = match &self.parent {
            Some(parent) => parent.manifest.agent.clone(),
            None => Agent {
                kind: AGENT.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                fingerprint: String::new(),
            },
        };
        let mut manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            media_type: MEDIA_TYPE.into(),
            agent: Agent { fingerprint: name.to_owned(), ..agent },
            model: ModelRefs { base: none, diff: none },
            cache: CacheRefs { layout: String::new(), manifest: none },
            world: WorldRefs { fs: tree, env: none, procs: none },
            effects: EffectsRefs { ledger: none },
            trace: TraceRefs { messages: none },
            created_at: Utc::now(),
            parents: self.parent.iter().map(|parent| parent.id).collect(),
        };
        self.layers(&stored, tree, &mut manifest)?;
        Ok((manifest, stored))
    }

    /// Stores the contents of changed files, except the ledger: its sealed form differs from the written one.
    fn contents(&self) -> Result<Stored> {
        let mut stored = Stored::new();
        // The first name of a file represents all of its names.
        let mut first: HashMap<Ino, &[u8]> = HashMap::new();
        let mut jobs = Vec::new();
        for (path, put) in &self.changes.put {
            let Some(content) = put.inode.content() else { continue };
            if path == LayerFile::EffectsLedger.path().as_bytes() || path == b"manifest.json" {
                continue;
            }
            if let Some(blob) = content.whole_blob() {
                self.batch.rely_on(blob.digest);
                stored.insert(path.clone(), blob);
            } else if *first.entry(put.ino).or_insert(path) == path.as_slice() {
                jobs.push(Job { path, content });
            }
        }
        let blobs = content::store(self.batch, self.frozen, &jobs, self.ended)?;
        for (job, blob) in jobs.iter().zip(blobs) {
            stored.insert(job.path.to_vec(), blob);
        }
        for (path, put) in &self.changes.put {
            if let Some(blob) = first.get(&put.ino).and_then(|first| stored.get(*first)).copied() {
                stored.entry(path.clone()).or_insert(blob);
            }
        }
        if let Some((_, put)) = self.changes.put.get_key_value(&b"manifest.json"[..])
            && let Some(content) = put.inode.content()
        {
            // Sealed by its meaning, not as a layer.
            let mut bytes = Vec::new();
            content::read_all(self.frozen, content, &mut bytes).map_err(|e| e.context("manifest.json"))?;
            let blob = BlobRef { digest: self.batch.put(&bytes)?, size: content.size };
            stored.insert(b"manifest.json".to_vec(), blob);
        }
        Ok(stored)
    }

    /// Stores the tree.
    fn tree(&mut self, stored: &Stored) -> Result<Digest> {
        let changes = self.tree_changes(stored)?;
        if let Some(parent) = &self.parent
            && self.frozen.image().is_some()
            && changes.is_empty()
        {
            return Ok(parent.manifest.world.fs);
        }
        let damaged = |e: FormatError| Error::new(ErrorKind::Damaged, format!("the base's {e}"));
        // A copied fork has all of its tree itself.
        let parent = self.parent.as_ref().filter(|_| self.frozen.image().is_some());
        let base = parent.map(|parent| &parent.manifest.world.fs);
        let old = match base {
            Some(base) => {
                let read = || {
                    let text = Text::parse(self.store.blobs().read_metadata(base)?);
                    Ok(text.map(|text| Text { packed: self.batch.packed_of(base, &text.bytes), ..text }))
                };
                self.texts.get(base, read)?.map_err(damaged)?
            }
            None => Arc::new(Text::nothing()),
        };
        let Merged { draft, mut text, placed } = tree::merge(&old, changes).map_err(damaged)?;
        let edited = self.batch.put_edited(&draft, base.map(|base| (base, old.packed.as_ref())))?;
        // A tree that cannot be read back would lose the fork that has it as base.
        self.store.blobs().check_metadata(&edited.digest, edited.bytes.len())?;
        (text.bytes, text.packed) = (edited.bytes, edited.packed);
        self.placed = placed;
        self.texts.keep(edited.digest, text, base);
        Ok(edited.digest)
    }

    fn tree_changes(&self, stored: &Stored) -> Result<TreeChanges> {
        let mut changes = TreeChanges::default();
        let inside = |path: &[u8]| path.strip_prefix(WORLD)?.strip_prefix(b"/").map(<[u8]>::to_vec);
        changes.removed = self.changes.removed.iter().filter_map(|path| inside(path)).collect();
        for (path, put) in &self.changes.put {
            if path == WORLD {
                changes.root = Some(root(put, self.mtime(path, put)));
            } else if let Some(inner) = inside(path) {
                let depth = inner.split(|byte| *byte == b'/').count();
                if depth > MAX_DEPTH {
                    let shown = String::from_utf8_lossy(&inner[..inner.len().min(200)]).into_owned();
                    let message = format!(
                        "{shown}… is {depth} directories deep, and an image holds at most {MAX_DEPTH}"
                    );
                    return Err(
                        Error::new(ErrorKind::InvalidInput, message).with_hint("move it up, or remove it")
                    );
                }
                let entry = self.entry(path, put, stored.get(path))?;
                let group = (!put.inode.is_dir() && put.inode.links.len() > 1).then_some(put.ino.0);
                changes.put.insert(inner, NewEntry { entry, group });
            }
        }
        if changes.is_empty() {
            return Ok(changes);
        }
        self.put_folders(&mut changes)?;
        Ok(changes)
    }

    fn entry(&self, path: &[u8], put: &Put, stored: Option<&BlobRef>) -> Result<Entry<'static>> {
        let inode = &put.inode;
        let mut entry = Entry::new("", inode.kind(), inode.mode);
        (entry.uid, entry.gid, entry.mtime_ns) = (inode.uid, inode.gid, self.mtime(path, put));
        match &inode.body {
            Body::File(content) => {
                entry.size = content.size;
                entry.blob = Some(match stored {
                    Some(blob) => blob.digest,
                    None => self.batch.put(b"")?,
                });
            }
            Body::Symlink(target) => {
                entry.size = target.len() as u64;
                entry.blob = Some(self.batch.put(target)?);
                if std::str::from_utf8(target).is_err() {
                    entry.link_target_b64 = Some(target.to_vec());
                }
                entry.link_target = Some(String::from_utf8_lossy(target).into_owned().into());
            }
            Body::Special(Kind::Chardev | Kind::Blockdev) => entry.rdev = Some(inode.rdev),
            Body::Dir(_) | Body::Special(_) => {}
        }
        xattrs::write(&inode.xattrs, &mut entry.extra);
        Ok(entry)
    }
}

fn root(put: &Put, mtime_ns: Option<i64>) -> Root {
    let inode = &put.inode;
    let mut root = Root {
        mode: Some(format!("{:04o}", inode.mode)),
        mtime_ns,
        uid: inode.uid,
        gid: inode.gid,
        ..Root::default()
    };
    xattrs::write(&inode.xattrs, &mut root.extra);
    root
}

/// Draws a secret for a chain: 32 random bytes.
fn fresh_secret() -> Result<Secret> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io(e, "cannot read /dev/urandom"))?;
    Ok(Secret::new(data_encoding::HEXLOWER.encode(&bytes)))
}
