//! Forks: copy-on-write trees over an image, which survive the death of their daemon.
//!
//! A [`Fork`] is a tree in memory (persistent maps over the immutable tree of its base, so that a snapshot
//! takes a pointer) and a journal on disk. An operation is acknowledged once the journal has it: one
//! `write(2)`, which includes small content. Larger content goes to sparse files next to the journal.
//! Replaying the journal gives the same tree, over the base the operations were made on and also over an
//! image sealed from it since.
//!
//! Journals and data files are grouped in generations. Forking a fork freezes its present generation; both
//! forks continue in new ones. The format is described in `docs/FORMAT-forks.md`.
//!
//! This module does not know mounts, lookup counts or users: the kernel checks permissions.

pub mod beside;
mod clock;
mod compare;
mod core;
mod disk;
mod errors;
mod extents;
mod frame;
mod gate;
mod handle;
mod hidden;
mod ino;
mod inode;
#[cfg(test)]
mod interleavings;
mod journal;
mod live;
mod owners;
mod posix;
mod reader;
mod record;
mod registry;
mod replaced;
mod replay;
mod restore;
mod shared;
mod snapshot;
mod state;

pub use compare::{Compare, Difference, How, Side, View, compare, compare_where};
pub use disk::{
    About, Counts, Discarded, Entry, GenId, Generation, Io, RealIo, Restored, Seal, discarded,
    forget_discarded, history_of, is_fork, refuse_fork_name, refuse_new_fork_name, sealed_as,
};
pub use extents::{BlobRef, Piece, Pieces, Src};
pub use gate::Operation;
pub use handle::Fork;
pub use ino::Ino;
pub use inode::{Attr, Body, Content, Inode, Name, Protection};
pub use owners::{Given, Owners};
pub use posix::{
    Allocate, Caller, CopySource, Files, INLINE, MAX_LINKS, MAX_SIZE, NewFile, RenameMode, SetAttr, SetTime,
    XattrMode, can_be_there, is_bare_prefix,
};
pub use reader::{BaseReader, BaseTimes, LayerBase};
pub use registry::{ForkInfo, ForkStats, Lengths, Onto, Options, References, Registry, on_disk, references};
pub use replaced::{ChangedName, Comparison};
pub use restore::{Held, Moved, MovedName, PathsBack};
pub use snapshot::{Changes, Frozen, Kept, Put, Sealed};
pub use state::DirEntry;
