//! Mounts a `ProcessFork` store as a filesystem, and works with its images and forks without a mount.
//!
//! A *store* holds images of agents: files, model, caches, ledger and messages. An *image* never changes. A *fork* is a
//! writable copy of an image, which costs nothing to make. A *seal* makes a new image of a fork.
//!
//! # Map
//! | to do this | use |
//! |---|---|
//! | open a store; find images, tags and blobs | [`Store`], [`Image`], [`Digest`] |
//! | mount a store in this process | [`MountedStore::builder`], [`Builder`] |
//! | fork, seal, restore, compare and discard in a mount | [`MountedStore`] |
//! | end a mount from another thread | [`Stopper`] |
//! | do the same without FUSE, and read images | [`Forks`], [`Fork`], [`View`] |
//! | find out what failed, on what, and what to do | [`Error`], [`ErrorKind`] |
//!
//! The directory `docs/examples` has three programs: one reads a store without a mount, one writes and seals a fork without
//! FUSE, and one mounts a store and compares two forks.
//!
//! # Example
//! ```
//! use pfimg::{Forks, Store};
//!
//! # fn main() -> pfimg::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let (path, cache) = (dir.path().join("store"), dir.path().join("cache"));
//! let forks = Forks::open(Store::create(&path)?, &cache)?;
//! let draft = forks.create("draft")?;
//! draft.write_file("world/fs/plan.txt", b"first\n")?;
//! let sealed = forks.seal("draft", Some("plan"))?;
//!
//! let branch = forks.fork("branch", "plan")?;
//! branch.write_file("world/fs/plan.txt", b"second\n")?;
//! let differences = forks.diff("plan", "branch")?;
//! assert_eq!(differences[0].path, b"world/fs/plan.txt");
//!
//! forks.restore("branch", "plan")?;
//! assert_eq!(forks.get("branch")?.read_file("world/fs/plan.txt")?, b"first\n");
//! assert_eq!(forks.store().resolve("plan")?, sealed.image);
//! # Ok(())
//! # }
//! ```
//!
//! A mount needs `/dev/fuse`, and for an ordinary user `fusermount3`:
//! ```no_run
//! # fn main() -> pfimg::Result<()> {
//! use pfimg::{MountedStore, Store};
//!
//! let mounted = MountedStore::builder(Store::open("store")?, "mnt").mount()?;
//! let files = mounted.fork("try", "latest")?;
//! std::fs::write(files.join("answer"), "42").expect("a fork takes new files");
//! println!("{}", mounted.seal("try", None)?.image);
//! mounted.unmount()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What this library leaves to the program
//! - It handles no signals. A program that wants to unmount on SIGTERM calls [`Stopper::stop`].
//! - It starts no program but `fusermount3`. If a filesystem is mounted at the mountpoint, a short-lived copy of the process
//!   (fork(2)) asks it whether it answers.
//! - It prints nothing. Its log goes to the subscriber of `tracing` that the program sets up.
//! - It reads the environment only for a mount: `XDG_RUNTIME_DIR` says where its socket for commands is, and without
//!   [`Builder::cache_dir`] other variables say where its cache is.
//!
//! The modules that documentation does not show serve the command `pfimg` and the tests. They may change at any time.

// Locks come from `sync.rs`.
#![warn(clippy::disallowed_types)]

#[doc(hidden)]
pub mod audit;
#[doc(hidden)]
pub mod cache;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod crashpack;
mod daemon;
#[doc(hidden)]
pub mod digest;
pub mod error;
#[doc(hidden)]
pub mod fork;
#[doc(hidden)]
pub mod fuse;
#[doc(hidden)]
pub mod images;
#[doc(hidden)]
pub mod layers;
#[doc(hidden)]
pub mod mount;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod oracle;
#[doc(hidden)]
pub mod sandbox;
#[doc(hidden)]
pub mod store;
mod sync;
#[doc(hidden)]
pub mod tree;
#[doc(hidden)]
pub mod util;
#[doc(hidden)]
pub mod vfs;

pub use daemon::{Builder, Forks, MountedStore, Numbering, Restored, SealPolicy, Sealed, Stopper};
pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use fork::{Difference, Fork, How, Side, View};
pub use layers::effects::Secret;
pub use store::{Image, Manifest, Store};
