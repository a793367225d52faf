//! The `ProcessFork` store on disk: content-addressed blobs, image markers and tags.
//!
//! ```text
//! <store>/blobs/sha256/<aa>/<hex64>.zst   zstd of a payload, named by the SHA-256 of the payload
//! <store>/images/<hex64>.json             a manifest's exact bytes; its SHA-256 is the image's id
//! <store>/refs/tags/<name>                ours: sha256:<hex64>
//! <store>/refs/projects/<name>            ours: sha256:<hex64> and a folder
//! <store>/refs/applies/<key>/<n>.json     ours: a change of a user's folder, until it is forgotten
//! ```
//! `pf` takes no locks and ignores what it does not know. Opening and reading write nothing.

pub mod applies;
mod atomic;
mod batch;
mod blob;
mod blob_error;
mod compress;
pub mod copy_tag;
mod decode;
mod direct_io;
mod frames;
mod handle;
pub mod images;
mod io;
mod lock;
pub mod manifest;
pub mod projects;
mod records;
mod remove;
pub mod seekable;
mod spliced;
pub mod tags;
mod unsynced;
mod write;

pub use crate::digest::Digest;
pub(crate) use crate::util::home::Home;
pub use crate::util::sharing::{Openness, Sharing, plain_folder_mode};
pub use applies::Applies;
pub(crate) use atomic::write_whole;
pub use batch::Batch;
pub use blob::{Blobs, MAX_METADATA};
pub use blob_error::{BlobError, Size};
pub use compress::{SEEKABLE_FROM, compress};
pub use frames::{Edited, Packed};
pub use handle::Store;
pub use images::{Image, Images, MarkerError};
pub(crate) use io::rename_new;
pub use io::{StoreIo, SystemIo};
pub use lock::Pin;
pub use manifest::{LayerFile, Manifest};
pub use projects::Projects;
pub use remove::Removed;
pub use seekable::{SeekTable, Seekable};
pub use spliced::SplicedDocument;
pub use tags::Tags;
pub use write::REFRESH_AFTER;
