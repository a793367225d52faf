//! The meaning of paths and operations in a mounted store, independent of FUSE.
//!
//! ```text
//! images/<hex64>/…  tags/<name>  agents/<kind>/<time>-<hex12>  latest  forks/<name>/…  work/<name>
//! .pfimg/{audit.json,events.jsonl,metrics,status.json}
//! ```
//! [`Vfs`] (`dispatch`) finds the part that an inode belongs to, and calls it. `nodes` holds the inodes that the kernel knows. The parts
//! are the folders of a mount: `root`, `tags`, `image_dirs`, `forks_dir`, `fork_files`, `snap` and `control`.
//!
//! The content of an image is immutable, so the kernel may cache it for ever. Names that can change have a lifetime of zero,
//! or the watcher invalidates them. Layers are parsed when a program first looks at them.

mod advice;
mod announcement;
mod announcements;
mod announcer;
mod answer;
mod attempt;
mod audit_trail;
mod autoseal;
mod build;
mod cached_writes;
mod called;
mod caller;
mod catalog;
mod changes;
mod commands;
mod config;
mod control;
mod counted;
mod damage;
mod departures;
mod dispatch;
mod documents;
mod fault;
mod fork_changes;
mod fork_files;
mod fork_table;
mod forks_dir;
mod image_attrs;
mod image_dirs;
mod image_files;
mod image_links;
mod image_numbers;
mod inodes;
mod invalidation;
mod key;
mod ledger_ends;
mod malloc;
mod metrics;
mod mounted;
mod moved_paths;
mod moving;
mod node;
mod nodes;
mod place;
mod readahead;
mod readdir;
mod replaced;
mod root;
mod seals;
mod slots;
mod snap;
mod tags;
#[cfg(test)]
mod tests;
mod upkeep;

pub use announcement::{Announcement, What};
pub use announcer::Announcer;
pub use answer::{Attr, Data, Entry, FOREVER};
pub use attempt::{Attempt, Outcome, Stop};
pub use cached_writes::{CachedWrites, LeftWrite, Pusher};
pub use caller::Process;
pub(crate) use catalog::Watched;
pub use config::{SealPolicy, VfsConfig};
pub use dispatch::Vfs;
pub use fork_changes::Writer;
pub use invalidation::{Invalidate, Invalidation};
pub use key::Ino;
pub use metrics::{Metrics, Op};
pub use moved_paths::MovedPaths;
pub use moving::Moving;
pub(crate) use node::MARKER;
pub use nodes::Forgotten;
pub use readdir::{DirEntry, Emit};
pub use replaced::Replaced;
pub use seals::{AfterSeal, NewSeal};

// Types that this room's operations take and give.
pub use crate::fork::{Allocate, NewFile, RenameMode, SetAttr, SetTime, XattrMode};
pub use crate::layers::world::Kind;
