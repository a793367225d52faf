//! Reads a fork back from its generations, and checks every record.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::{Arc, Weak};

use super::disk::{DataFile, GenId, Generation};
use super::extents::Src;
use super::frame;
use super::ino::Ino;
use super::inode::Content;
use super::journal::{Frame, HEADER, Writer, frame_at, header, out_of_place, refuse_header, sound_behind};
use super::owners::Given;
use super::reader::{BaseReader, settle};
use super::record::{self, Context, Record, kind};
use super::shared::Shared;
use super::state::{Base, State, apply};
use crate::error::{Error, Result};
use crate::layers::world::Kind;

/// A fork as its generations on disk describe it.
pub(super) struct Recovered {
    pub(super) state: State,
    /// Continues where the last journal ends.
    pub(super) writer: Writer,
    /// The damage, if any.
    pub(super) damage: Option<Damage>,
    /// Bytes of an operation that was never acknowledged, cut from the end of the last journal.
    pub(super) cut: u64,
}

/// Damage of a fork's generations.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) what: String,
    /// Record numbers that are missing in a journal. Any other damage counts as one.
    pub(super) gaps: u32,
}

impl From<String> for Damage {
    fn from(what: String) -> Self {
        Self { what, gaps: 1 }
    }
}

/// Reads generations, oldest first, over a base. The state includes all records up to the first damage.
pub(super) fn recover(
    shared: &Shared,
    base: Arc<Base>,
    folders: &frame::Frame,
    generations: &[Arc<Generation>],
) -> Result<Recovered> {
    let mut state = State::over(base);
    state.set_folders(folders);
    let Some((last, frozen)) = generations.split_last() else {
        return Err(Error::new(
            crate::ErrorKind::Damaged,
            "the fork is damaged: its head names no generation",
        ));
    };
    for generation in frozen {
        generation.freeze();
        adopt(generation);
    }
    let later = &generations[frozen.len()..];
    let mut damage = replay_frozen(&mut state, frozen, later, &*shared.reader, Some(shared))?;
    let mut cut = 0;
    let mut replay = Replay::new(last);
    if damage.is_none() {
        // A power cut may leave an empty folder for a new generation.
        if unwritten(last) {
            if shared.writable {
                last.restart(&header(last.id))?;
            }
            replay.end = HEADER as u64;
            state.raise_floors();
        } else {
            replay.run(&mut state, &*shared.reader)?;
        }
        adopt(last);
        damage = replay.damage.take();
        cut = replay.torn;
    }
    if damage.is_none() {
        damage = missing_data(&state, last).map(Damage::from);
    }
    let mut writer = Writer::new(last.clone());
    writer.end = replay.end;
    writer.seq = replay.seq;
    writer.next_number = replay.numbers.keys().max().map_or(1, |last| last + 1);
    writer.numbers = replay.numbers.into_iter().map(|(number, ino)| (ino, number)).collect();
    if damage.is_none() && cut > 0 && shared.writable {
        shared.set_aside_tail(last, writer.end)?;
    }
    Ok(Recovered { state, writer, damage, cut })
}

/// Applies frozen generations to a state, up to the first damage. Returns that damage, if any.
pub(super) fn replay(
    state: &mut State,
    generations: &[Arc<Generation>],
    reader: &dyn BaseReader,
) -> Result<Option<Damage>> {
    replay_frozen(state, generations, &[], reader, None)
}

fn replay_frozen(
    state: &mut State,
    generations: &[Arc<Generation>],
    later: &[Arc<Generation>],
    reader: &dyn BaseReader,
    mend: Option<&Shared>,
) -> Result<Option<Damage>> {
    let mend = mend.filter(|shared| shared.writable);
    for (i, generation) in generations.iter().enumerate() {
        // No durable record can follow an unfinished one, so all later generations must be empty.
        let is_empty = |later: &Arc<Generation>| {
            fs::metadata(later.journal_path()).map_or(true, |m| m.len() <= HEADER as u64)
        };
        let is_last = || generations[i + 1..].iter().chain(later).all(is_empty);
        // Unsynced files reach the disk in any order, so a power cut may leave two empty generations.
        if unwritten(generation) && is_last() {
            if mend.is_some() {
                generation.restart(&header(generation.id))?;
                durable(generation)?;
            }
            state.raise_floors();
            state.epoch += 1;
            continue;
        }
        let mut replay = Replay::new(generation);
        replay.run(state, reader)?;
        if replay.damage.is_some() {
            return Ok(replay.damage);
        }
        if replay.torn > 0 {
            if !is_last() {
                let what = format!(
                    "the journal of generation {} is cut off at byte {}, and later generations depend on it",
                    generation.id, replay.end
                );
                return Ok(Some(what.into()));
            }
            if let Some(shared) = mend {
                // Made durable at once: the next records depend on it.
                shared.set_aside_tail(generation, replay.end)?;
                durable(generation)?;
            }
        }
        state.epoch += 1;
    }
    Ok(None)
}

/// Makes a repaired frozen generation durable.
fn durable(generation: &Generation) -> Result<()> {
    let (path, io) = (generation.path(), generation.io());
    let synced = generation
        .journal()
        .and_then(|file| io.sync_data(&file))
        .and_then(|()| io.sync_dir(path))
        .and_then(|()| path.parent().map_or(Ok(()), |all| io.sync_dir(all)));
    synced.map_err(|e| Error::io(e, format!("cannot make {} durable", path.display())))
}

/// Whether not even the header of a generation's journal reached the disk.
fn unwritten(generation: &Generation) -> bool {
    match fs::read(generation.journal_path()) {
        Ok(journal) => journal.len() < HEADER || (journal.len() == HEADER && journal.iter().all(|b| *b == 0)),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Marks a generation found on disk as not durable, since its earlier fsyncs are unknown.
fn adopt(generation: &Generation) {
    let data = fs::read_dir(generation.path().join("data")).into_iter().flatten().flatten();
    let numbers = data.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    generation.assume_unsynced(numbers.collect());
}

/// Returns a description of a data file that the state refers to and that is missing or short. Marks unused data files for
/// removal if there is none.
fn missing_data(state: &State, last: &Arc<Generation>) -> Option<String> {
    let mut ends: HashMap<(GenId, u64), (Arc<DataFile>, u64)> = HashMap::new();
    let mut used = BTreeSet::new();
    let mut note = |_: Ino, content: &Content| {
        let own = content.own.iter().map(|own| (own, 0));
        let pieces = content.pieces.all().filter_map(|(_, piece)| match &piece.src {
            Src::Data(file) => Some((file, piece.off + piece.len)),
            _ => None,
        });
        for (file, end) in own.chain(pieces) {
            if Arc::ptr_eq(&file.generation, last) {
                used.insert(file.number);
            }
            let known = ends.entry((file.generation.id, file.number)).or_insert_with(|| (file.clone(), end));
            known.1 = known.1.max(end);
        }
    };
    state.each_content(&mut note);
    let missing = ends.values().find_map(|(file, end)| match file.len() {
        Ok(len) if len >= *end => None,
        Ok(len) => Some(format!("data file {file:?} has {len} bytes instead of {end}")),
        Err(e) => Some(format!("data file {file:?}: {e}")),
    });
    // Replay has dropped files that later records no longer use. Only files unused at the end may be removed.
    last.take_trash();
    if missing.is_none() {
        last.return_unreferenced(
            last.known_data().into_iter().filter(|number| !used.contains(number)).collect(),
        );
    }
    missing
}

struct Replay<'a> {
    generation: &'a Arc<Generation>,
    numbers: HashMap<u64, Ino>,
    data: HashMap<u64, Weak<DataFile>>,
    seq: u64,
    end: u64,
    torn: u64,
    damage: Option<Damage>,
}

impl<'a> Replay<'a> {
    fn new(generation: &'a Arc<Generation>) -> Self {
        Self {
            generation,
            numbers: HashMap::new(),
            data: HashMap::new(),
            seq: 1,
            end: 0,
            torn: 0,
            damage: None,
        }
    }

    fn run(&mut self, state: &mut State, reader: &dyn BaseReader) -> Result<()> {
        state.raise_floors();
        let path = self.generation.journal_path();
        let journal = match fs::read(&path) {
            Ok(journal) => journal,
            Err(e) => {
                self.damage = Some(format!("cannot read {}: {e}", path.display()).into());
                return Ok(());
            }
        };
        if let Some(why) = refuse_header(&journal, self.generation.id) {
            self.damage = Some(format!("{}: {why}", path.display()).into());
            return Ok(());
        }
        let id = self.generation.id;
        let mut at = HEADER;
        while at < journal.len() {
            let Some(frame) = frame_at(&journal, id, at).filter(|frame| frame.seq == self.seq) else {
                let record = format!("record {} at byte {at} of generation {id}", self.seq);
                if let Some(sound) = sound_behind(&journal, id, at, self.seq) {
                    let next = frame_at(&journal, id, sound as usize).map_or(self.seq, |frame| frame.seq);
                    let what = format!("{record} is damaged, and sound records follow at byte {sound}");
                    self.damage = Some(self.up_to(next, what));
                } else if let Some(found) = out_of_place(&journal, at, self.seq) {
                    let what = format!("{record} is missing, and record {found} is in its place");
                    self.damage = Some(self.up_to(found, what));
                } else {
                    self.torn = (journal.len() - at) as u64;
                }
                break;
            };
            if !self.step(state, &frame, reader)? {
                let record = format!("record {} at byte {at} of generation {id}", self.seq);
                self.damage = Some(format!("{record} does not fit the records before it").into());
                break;
            }
            at = frame.end as usize;
            self.seq += 1;
        }
        self.end = at as u64;
        Ok(())
    }

    /// Every record before number `next` is lost.
    fn up_to(&self, next: u64, what: String) -> Damage {
        let gaps = next.saturating_sub(self.seq).max(1);
        Damage { what, gaps: u32::try_from(gaps).unwrap_or(u32::MAX) }
    }

    /// Applies one record. Returns false if it does not fit.
    fn step(&mut self, state: &mut State, frame: &Frame<'_>, reader: &dyn BaseReader) -> Result<bool> {
        if frame.kind == kind::BIND {
            let Some((number, path)) = record::decode_bind(frame.payload) else { return Ok(false) };
            let Some(ino) = state.resolve(path) else { return Ok(false) };
            return Ok(self.numbers.insert(number, ino).is_none());
        }
        if matches!(frame.kind, kind::ATTR | kind::SPLICE)
            && let Some(ino) = record::first_number(frame.payload).and_then(|n| self.numbers.get(&n))
            && let Some(inode) = state.nodes.get(ino)
            && let Some(lazy) = inode.content().and_then(Content::unsettled)
        {
            settle(lazy, reader)?;
        }
        let mut cx = Context { numbers: &self.numbers, generation: self.generation, data: &mut self.data };
        let sealed_len = |ino| state.nodes.get(&ino).map_or(0, |inode| inode.sealed_len());
        let Some((mut record, made)) =
            record::decode(frame.kind, frame.payload, frame.start, &mut cx, &sealed_len)
        else {
            return Ok(false);
        };
        if let Record::Link { parent, name, time, .. } = &record {
            state.give_way(*parent, name, *time);
        }
        let renamed_from = matches!(record, Record::Whiteout(_));
        if let Some(create) = record.made_mut() {
            let unmade = state.nodes.get(&create.ino).is_some_and(|inode| inode.is_dir() && inode.birth == 0);
            if create.kind == Kind::Dir && create.ino.0 <= Ino::TRACE.0 && unmade {
                // A seal has put the folder into the base, and it is the same folder.
                if let Some(inode) = state.edit(create.ino) {
                    (inode.mode, inode.uid, inode.gid) = (create.mode, Some(create.uid), Some(create.gid));
                }
                return Ok(made.is_none_or(|number| self.numbers.insert(number, create.ino).is_none()));
            }
            if !renamed_from {
                state.give_way(create.parent, &create.name, create.time);
            }
            // A seal may have given the number to another file of the base since.
            let mut probe = 0;
            while state.taken(create.ino) && create.ino.0 > Ino::TRACE.0 {
                create.ino = Ino::derive(create.parent, &create.name, probe);
                probe += 1;
            }
            if let Some(number) = made
                && self.numbers.insert(number, create.ino).is_some()
            {
                return Ok(false);
            }
        }
        let applied = apply(state, &record, self.generation.id).is_ok();
        if applied && state.base.owners.are_mine() {
            // Another mount set the owner, so it counts as recorded here.
            let given = match &record {
                Record::Attr(attrs) => Some(attrs.ino),
                record => record.made().map(|create| create.ino),
            };
            if let Some(inode) = given.and_then(|ino| state.nodes.get_mut(&ino)) {
                Arc::make_mut(inode).given = Given::default();
            }
        }
        Ok(applied)
    }
}
