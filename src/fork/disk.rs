//! A fork's files on disk.

mod data;
mod discarded;
mod files;
mod generation;
mod head;
mod id;
mod io;
mod lock;
mod seals;

pub(super) use data::DataFile;
pub(super) use discarded::keep_list;
pub use discarded::{Discarded, discarded, forget_discarded};
pub(super) use files::OpenFiles;
pub use generation::Generation;
pub(super) use head::{Head, check_format, is_too_long, path as head_path};
pub use head::{is_fork, refuse_fork_name, refuse_new_fork_name};
pub use id::GenId;
pub use io::{Io, RealIo};
pub(super) use lock::lock;
pub use seals::{About, Counts, Entry, Restored, Seal, history_of, sealed_as};
pub(super) use seals::{SealList, forget as forget_seals, parse as parse_seals};
