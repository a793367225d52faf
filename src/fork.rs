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

mod apply;
mod aside;
mod attr;
mod back;
pub mod beside;
mod caller;
mod checkpoint;
mod content;
mod copy;
mod create;
mod diff;
mod disk;
mod follow;
mod frame;
mod freeze;
mod head;
mod header;
mod ino;
#[cfg(test)]
mod interleavings;
mod journal;
mod keep;
mod leave;
mod listing;
mod live;
mod making;
mod names;
mod node;
mod owners;
mod path;
mod pieces;
mod policy;
mod record;
mod records;
mod recover;
mod refs;
mod registry;
mod replaced;
mod seals;
mod shown;
mod state;
mod stats;
mod witness;

pub use attr::{SetAttr, SetTime, XattrMode, is_bare_prefix};
pub use back::{Held, Moved, MovedName, PathsBack};
pub use caller::Caller;
pub use content::{Allocate, INLINE, MAX_SIZE};
pub use copy::CopySource;
pub use diff::{Compare, Difference, How, Side, View, compare, compare_where};
pub use disk::{GenId, Generation, Io, RealIo};
pub use follow::Lengths;
pub use freeze::{Changes, Frozen, Put, Sealed};
pub use head::{is_fork, refuse_fork_name, refuse_new_fork_name};
pub use ino::Ino;
pub use keep::Kept;
pub use leave::Onto;
pub use listing::DirEntry;
pub use live::{BaseReader, BaseTimes, Fork};
pub use names::{MAX_LINKS, NewFile, RenameMode};
pub use node::{Attr, Body, Content, Guard, Inode, Name};
pub use owners::{Given, Owners};
pub use pieces::{BlobRef, Piece, Pieces, Src};
pub use policy::can_be_there;
pub use refs::{References, references};
pub use registry::{Options, Registry};
pub use replaced::{ChangedName, Comparison};
pub use seals::{About, Counts, Entry, Restored, Seal, history_of, on_disk, sealed_as};
pub use state::LayerBase;
pub use stats::{ForkInfo, ForkStats};
pub use witness::Operation;
