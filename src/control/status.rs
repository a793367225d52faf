//! What `.pfimg/status.json` of a mount says.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};

/// How inodes of images are numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Numbering {
    /// The same file at the same path is one inode in every image.
    #[default]
    #[serde(rename = "shared")]
    Shared,
    /// Each image has separate inodes.
    #[serde(rename = "distinct")]
    Distinct,
    /// As with `Shared`, but numbers are counted and stay below 2^32.
    #[serde(rename = "32")]
    Counted,
}

/// Describes a mount. As JSON, bytes of a path that are not UTF-8 are shown as U+FFFD.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountInfo {
    /// Process id of the daemon.
    pub pid: u32,
    /// Version of this program.
    pub version: String,
    /// The store's folder.
    #[serde(serialize_with = "lossy")]
    pub store: PathBuf,
    /// The mountpoint.
    #[serde(serialize_with = "lossy")]
    pub mountpoint: PathBuf,
    /// The folder of decompressed blobs.
    #[serde(serialize_with = "lossy")]
    pub cache_dir: PathBuf,
    /// The file of the log; none if it goes to the terminal.
    #[serde(serialize_with = "lossy_option")]
    pub log: Option<PathBuf>,
    /// The socket that takes requests of commands; none if it could not be made, and from a daemon without the protocol.
    #[serde(default, serialize_with = "lossy_option")]
    pub socket: Option<PathBuf>,
    /// The version of the protocol on the socket; 0 from a daemon without it.
    #[serde(default)]
    pub protocol: u64,
    /// When the mount began, in RFC 3339.
    pub started_at: DateTime<Utc>,
    /// The fingerprint of the secret that chains ledgers at a seal; none if each ledger has its own.
    #[serde(default)]
    pub session_secret: Option<String>,
    /// How inodes are numbered.
    #[serde(default)]
    pub inodes: Numbering,
}

impl MountInfo {
    /// When the mount began, in nanoseconds since 1970.
    pub fn started_ns(&self) -> i64 {
        self.started_at.timestamp_nanos_opt().unwrap_or(0)
    }
}

/// A refused change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused, why, and what to do.
    pub what: String,
    /// When.
    pub at: DateTime<Utc>,
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[allow(clippy::ref_option)]
fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}
