//! The records of a journal: one for each operation, and its bytes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::disk::{DataFile, Generation};
use super::extents::{BlobRef, Piece, Src};
use super::ino::Ino;
use crate::digest::Digest;
use crate::layers::world::Kind;

/// An operation on a fork.
#[derive(Clone, Debug)]
pub(super) enum Record {
    /// A new file, folder, link or special.
    Create(Create),
    /// One more name for a file.
    Link { ino: Ino, parent: Ino, name: Vec<u8>, time: i64 },
    /// Removes a name.
    Remove { parent: Ino, name: Vec<u8>, time: i64 },
    /// A new name; a file that has it is replaced, or gets the old name.
    Rename { from: Ino, name: Vec<u8>, to: Ino, new_name: Vec<u8>, exchange: bool, time: i64 },
    /// A new name, which replaces a file that has it, and a whiteout under the old one.
    Whiteout(Whiteout),
    /// New attributes.
    Attr(Attrs),
    /// New content of a range.
    Splice(Splice),
    /// An extended attribute set or removed.
    Xattr { ino: Ino, name: Vec<u8>, value: Option<Vec<u8>>, time: i64 },
}

/// See [`Record::Create`].
#[derive(Clone, Debug)]
pub(super) struct Create {
    /// Folder.
    pub parent: Ino,
    /// Name in it.
    pub name: Vec<u8>,
    /// Number; if it is in use, replay takes another one.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
    /// Target of a symlink, else empty.
    pub target: Vec<u8>,
    /// The time.
    pub time: i64,
}

/// See [`Record::Whiteout`].
#[derive(Clone, Debug)]
pub(super) struct Whiteout {
    /// The folder of the new name.
    pub to: Ino,
    /// The new name.
    pub new_name: Vec<u8>,
    /// The device under the old name.
    pub device: Create,
}

/// See [`Record::Attr`]. An unset attribute stays.
#[derive(Clone, Debug)]
pub(super) struct Attrs {
    /// File.
    pub ino: Ino,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length; bytes after it are cut.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<i64>,
    /// Modification time.
    pub mtime: Option<i64>,
    /// Change time.
    pub ctime: i64,
}

impl Attrs {
    /// A record with only the time of the change.
    pub(super) fn of(ino: Ino, ctime: i64) -> Self {
        Self { ino, mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, ctime }
    }
}

/// See [`Record::Splice`].
#[derive(Clone, Debug)]
pub(super) struct Splice {
    /// File.
    pub ino: Ino,
    /// The offset in the file.
    pub off: u64,
    /// The number of bytes; bytes in no part become a hole.
    pub len: u64,
    /// Length of the file afterwards.
    pub size: u64,
    /// Parts in order.
    pub parts: Vec<Part>,
    /// Whether suid and sgid are cleared.
    pub clears_suid: bool,
    /// The time.
    pub time: i64,
}

/// A stretch of a [`Splice`].
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Offset in the splice.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
    /// The place of its bytes.
    pub from: From,
}

/// The place of a part's bytes.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// In this value, to be written into the journal.
    Bytes(Vec<u8>),
    /// Written already: a piece's offset and source. A data file must be of the record's generation.
    There(u64, Src),
}

impl Part {
    /// The piece that it becomes; [`None`] while its bytes are not written.
    pub(super) fn piece(&self) -> Option<Piece> {
        match &self.from {
            From::Bytes(_) => None,
            From::There(off, src) => Some(Piece { len: self.len, off: *off, src: src.clone() }),
        }
    }
}

/// Kinds of records on disk. `BIND` gives a file its number in the generation, by a path it has at that moment.
pub(super) mod kind {
    pub(crate) const BIND: u8 = 1;
    pub(crate) const CREATE: u8 = 2;
    pub(crate) const LINK: u8 = 3;
    pub(crate) const REMOVE: u8 = 4;
    pub(crate) const RENAME: u8 = 5;
    pub(crate) const ATTR: u8 = 6;
    pub(crate) const SPLICE: u8 = 7;
    pub(crate) const XATTR: u8 = 8;
    pub(crate) const WHITEOUT: u8 = 9;
}

impl Record {
    /// The file that it makes, if any.
    pub(super) fn made(&self) -> Option<&Create> {
        match self {
            Self::Create(create) | Self::Whiteout(Whiteout { device: create, .. }) => Some(create),
            _ => None,
        }
    }

    /// The same for a change.
    pub(super) fn made_mut(&mut self) -> Option<&mut Create> {
        match self {
            Self::Create(create) | Self::Whiteout(Whiteout { device: create, .. }) => Some(create),
            _ => None,
        }
    }

    /// The record's kind on disk.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Create(_) => kind::CREATE,
            Self::Link { .. } => kind::LINK,
            Self::Remove { .. } => kind::REMOVE,
            Self::Rename { .. } => kind::RENAME,
            Self::Whiteout(_) => kind::WHITEOUT,
            Self::Attr(_) => kind::ATTR,
            Self::Splice(_) => kind::SPLICE,
            Self::Xattr { .. } => kind::XATTR,
        }
    }

    /// The files that it names, which need a number before it. The file that it makes is not one of them.
    pub(super) fn inos(&self) -> [Option<Ino>; 2] {
        match self {
            Self::Create(create) => [Some(create.parent), None],
            Self::Link { ino, parent, .. } => [Some(*ino), Some(*parent)],
            Self::Remove { parent, .. } => [Some(*parent), None],
            Self::Rename { from, to, .. } => [Some(*from), Some(*to)],
            Self::Whiteout(Whiteout { to, device, .. }) => [Some(device.parent), Some(*to)],
            Self::Attr(attrs) => [Some(attrs.ino), None],
            Self::Splice(splice) => [Some(splice.ino), None],
            Self::Xattr { ino, .. } => [Some(*ino), None],
        }
    }
}

/// Appends a record's payload to `out`. `numbers` gives files their numbers, `sealed_len` is that of the changed file. Bytes
/// to be written into the journal become pieces of it: the payload will start at `start` of `generation`.
pub(super) fn encode(
    record: &mut Record,
    numbers: &dyn Fn(Ino) -> u64,
    sealed_len: u64,
    start: u64,
    generation: &Arc<Generation>,
    out: &mut Vec<u8>,
) {
    let begin = out.len();
    let mut out = Out(out);
    match record {
        Record::Create(create) => out.create(create, numbers),
        Record::Whiteout(Whiteout { to, new_name, device }) => {
            out.create(device, numbers);
            out.num(numbers(*to)).bytes(new_name);
        }
        Record::Link { ino, parent, name, time } => {
            out.num(numbers(*ino)).num(numbers(*parent)).bytes(name).time(*time);
        }
        Record::Remove { parent, name, time } => {
            out.num(numbers(*parent)).bytes(name).time(*time);
        }
        Record::Rename { from, name, to, new_name, exchange, time } => {
            out.num(numbers(*from)).bytes(name).num(numbers(*to)).bytes(new_name);
            out.num(u64::from(*exchange)).time(*time);
        }
        Record::Attr(attrs) => {
            let size = attrs.size.map(|size| size.saturating_sub(sealed_len));
            out.num(numbers(attrs.ino)).option(attrs.mode.map(u64::from)).option(attrs.uid.map(u64::from));
            out.option(attrs.gid.map(u64::from)).option(size);
            out.option(attrs.atime.map(|t| t as u64)).option(attrs.mtime.map(|t| t as u64)).time(attrs.ctime);
        }
        Record::Splice(splice) => {
            out.num(numbers(splice.ino)).num(splice.off.saturating_sub(sealed_len)).num(splice.len);
            out.num(splice.size.saturating_sub(sealed_len))
                .num(u64::from(splice.clears_suid))
                .time(splice.time);
            out.num(splice.parts.len() as u64);
            for part in &mut splice.parts {
                out.num(part.at).num(part.len);
                match &part.from {
                    From::Bytes(bytes) => {
                        out.num(0);
                        let off = start + (out.0.len() - begin) as u64;
                        out.0.extend_from_slice(bytes);
                        part.from = From::There(off, Src::Journal(generation.clone()));
                    }
                    From::There(off, Src::Data(file)) => {
                        out.num(if file.shared { 2 } else { 1 }).num(file.number).num(*off);
                    }
                    From::There(off, Src::Blob(blob)) => {
                        out.num(3).num(*off).num(blob.size);
                        out.0.extend_from_slice(blob.digest.as_bytes());
                    }
                    // Only bytes that were just written are in this journal, and those are `Bytes`. Written
                    // as a hole of length zero, so that such a record cannot be read back as a different one.
                    From::There(_, Src::Journal(_)) => {
                        out.num(9);
                    }
                }
            }
        }
        Record::Xattr { ino, name, value, time } => {
            out.num(numbers(*ino)).bytes(name).num(u64::from(value.is_some()));
            out.bytes(value.as_deref().unwrap_or_default()).time(*time);
        }
    }
}

/// Appends the payload that gives a file its number to `out`.
pub(super) fn encode_bind(number: u64, path: &[u8], out: &mut Vec<u8>) {
    Out(out).num(number).bytes(path);
}

/// Reads the payload that gives a file its number.
pub(super) fn decode_bind(payload: &[u8]) -> Option<(u64, &[u8])> {
    let mut input = In { rest: payload, at: 0 };
    let bind = (input.num()?, input.bytes()?);
    input.rest.is_empty().then_some(bind)
}

/// The first number of a payload: of most kinds the file's.
pub(super) fn first_number(payload: &[u8]) -> Option<u64> {
    In { rest: payload, at: 0 }.num()
}

/// The blobs that the payload of a splice refers to, of any file; [`None`] if it is invalid.
pub(super) fn splice_blobs(payload: &[u8]) -> Option<Vec<Digest>> {
    let mut input = In { rest: payload, at: 0 };
    // File, offset, length, size, whether suid is cleared; then the time.
    for _ in 0..5 {
        input.num()?;
    }
    input.time()?;
    let mut blobs = Vec::new();
    for _ in 0..input.num()? {
        let (_at, len) = (input.num()?, input.num()?);
        match input.num()? {
            0 => drop(input.take(usize::try_from(len).ok()?)?),
            1 | 2 => drop((input.num()?, input.num()?)),
            3 => {
                input.num()?;
                input.num()?;
                blobs.push(Digest::from_bytes(input.take(32)?.try_into().ok()?));
            }
            _ => return None,
        }
    }
    input.rest.is_empty().then_some(blobs)
}

/// The data needed to read records.
pub(super) struct Context<'a> {
    /// Files by their number in the generation.
    pub(super) numbers: &'a HashMap<u64, Ino>,
    /// The generation.
    pub(super) generation: &'a Arc<Generation>,
    /// Its data files that are in use.
    pub(super) data: &'a mut HashMap<u64, Weak<DataFile>>,
}

impl Context<'_> {
    fn file(&mut self, number: u64, shared: bool) -> Arc<DataFile> {
        if let Some(file) = self.data.get(&number).and_then(Weak::upgrade) {
            return file;
        }
        let file = DataFile::known(self.generation, number, shared);
        self.data.insert(number, Arc::downgrade(&file));
        file
    }
}

/// Reads a record at `start` of the journal; [`None`] if it is invalid. The second value is the number of the
/// file it makes, if it makes one. `sealed_len` returns the sealed length of an append-only file.
pub(super) fn decode(
    kind: u8,
    payload: &[u8],
    start: u64,
    cx: &mut Context<'_>,
    sealed_len: &dyn Fn(Ino) -> u64,
) -> Option<(Record, Option<u64>)> {
    let mut input = In { rest: payload, at: start };
    let input = &mut input;
    let numbers = cx.numbers;
    let known = |number: u64| numbers.get(&number).copied();
    let mut made = None;
    let record = match kind {
        kind::CREATE => {
            made = Some(input.num()?);
            Record::Create(input.create(&known)?)
        }
        kind::WHITEOUT => {
            made = Some(input.num()?);
            let device = input.create(&known)?;
            let (to, new_name) = (known(input.num()?)?, input.bytes()?.to_vec());
            Record::Whiteout(Whiteout { to, new_name, device })
        }
        kind::LINK => Record::Link {
            ino: known(input.num()?)?,
            parent: known(input.num()?)?,
            name: input.bytes()?.to_vec(),
            time: input.time()?,
        },
        kind::REMOVE => Record::Remove {
            parent: known(input.num()?)?,
            name: input.bytes()?.to_vec(),
            time: input.time()?,
        },
        kind::RENAME => Record::Rename {
            from: known(input.num()?)?,
            name: input.bytes()?.to_vec(),
            to: known(input.num()?)?,
            new_name: input.bytes()?.to_vec(),
            exchange: input.num()? != 0,
            time: input.time()?,
        },
        kind::ATTR => {
            let ino = known(input.num()?)?;
            let number = |value: Option<u64>| value.map(u32::try_from).transpose().ok();
            Record::Attr(Attrs {
                ino,
                mode: input.option()?.map(u16::try_from).transpose().ok()?,
                uid: number(input.option()?)?,
                gid: number(input.option()?)?,
                size: match input.option()? {
                    Some(size) => Some(size.checked_add(sealed_len(ino))?),
                    None => None,
                },
                atime: input.option()?.map(|t| t as i64),
                mtime: input.option()?.map(|t| t as i64),
                ctime: input.time()?,
            })
        }
        kind::SPLICE => {
            let ino = known(input.num()?)?;
            let sealed_len = sealed_len(ino);
            let (off, len) = (input.num()?.checked_add(sealed_len)?, input.num()?);
            let (size, clears_suid, time) =
                (input.num()?.checked_add(sealed_len)?, input.num()? != 0, input.time()?);
            let mut parts = Vec::new();
            let mut last = 0;
            for _ in 0..input.num()? {
                let (at, part_len) = (input.num()?, input.num()?);
                let from = match input.num()? {
                    0 => {
                        let off = input.at;
                        input.take(usize::try_from(part_len).ok()?)?;
                        From::There(off, Src::Journal(cx.generation.clone()))
                    }
                    form @ (1 | 2) => {
                        let number = input.num()?;
                        From::There(input.num()?, Src::Data(cx.file(number, form == 2)))
                    }
                    3 => {
                        let (off, size) = (input.num()?, input.num()?);
                        let digest = Digest::from_bytes(input.take(32)?.try_into().ok()?);
                        if off.checked_add(part_len)? > size {
                            return None;
                        }
                        From::There(off, Src::Blob(Arc::new(BlobRef { digest, size })))
                    }
                    _ => return None,
                };
                if at < last || part_len == 0 || at.checked_add(part_len)? > len {
                    return None;
                }
                last = at + part_len;
                parts.push(Part { at, len: part_len, from });
            }
            off.checked_add(len)?;
            Record::Splice(Splice { ino, off, len, size, parts, clears_suid, time })
        }
        kind::XATTR => {
            let (ino, name) = (known(input.num()?)?, input.bytes()?.to_vec());
            let set = input.num()? != 0;
            let value = input.bytes()?.to_vec();
            Record::Xattr { ino, name, value: set.then_some(value), time: input.time()? }
        }
        _ => return None,
    };
    input.rest.is_empty().then_some((record, made))
}

fn kind_number(kind: Kind) -> u64 {
    match kind {
        Kind::File => 0,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
        Kind::Chardev => 5,
        Kind::Blockdev => 6,
    }
}

fn number_kind(number: u64) -> Option<Kind> {
    let kinds =
        [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Chardev, Kind::Blockdev];
    kinds.get(usize::try_from(number).ok()?).copied()
}

/// Numbers are LEB128, byte strings have their length before them, times are 8 bytes little-endian.
struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn num(&mut self, mut number: u64) -> &mut Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.num(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn time(&mut self, time: i64) -> &mut Self {
        self.0.extend_from_slice(&time.to_le_bytes());
        self
    }

    fn create(&mut self, create: &Create, numbers: &dyn Fn(Ino) -> u64) {
        self.num(numbers(create.ino)).num(create.ino.0).num(numbers(create.parent)).bytes(&create.name);
        self.num(kind_number(create.kind)).num(u64::from(create.mode)).num(u64::from(create.uid));
        self.num(u64::from(create.gid)).num(create.rdev).bytes(&create.target).time(create.time);
    }

    fn option(&mut self, number: Option<u64>) -> &mut Self {
        match number {
            None => self.num(0),
            Some(number) => self.num(1).num(number),
        }
    }
}

struct In<'a> {
    rest: &'a [u8],
    /// Where `rest` starts in the journal.
    at: u64,
}

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        self.at += len as u64;
        Some(taken)
    }

    fn num(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.num()?).ok()?;
        self.take(len)
    }

    fn time(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// All of it except its number in the generation.
    fn create(&mut self, known: &dyn Fn(u64) -> Option<Ino>) -> Option<Create> {
        Some(Create {
            ino: Ino(self.num()?),
            parent: known(self.num()?)?,
            name: self.bytes()?.to_vec(),
            kind: number_kind(self.num()?)?,
            mode: u16::try_from(self.num()?).ok()?,
            uid: u32::try_from(self.num()?).ok()?,
            gid: u32::try_from(self.num()?).ok()?,
            rdev: self.num()?,
            target: self.bytes()?.to_vec(),
            time: self.time()?,
        })
    }

    #[allow(clippy::option_option)] // the outer option is for a payload that is cut off
    fn option(&mut self) -> Option<Option<u64>> {
        match self.num()? {
            0 => Some(None),
            1 => Some(Some(self.num()?)),
            _ => None,
        }
    }
}
