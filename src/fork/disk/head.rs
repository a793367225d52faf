//! Reads and writes a fork's head: `heads/<name>.json`, the only file that names the fork.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::OpenFiles;
use super::id::GenId;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::errors::taken;
use crate::fork::frame::Frame;
use crate::store::{Sharing, SystemIo, write_whole};
use crate::util::names::refuse_new_name;

/// A fork's head. Its name is that of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::fork) struct Head {
    #[serde(skip)]
    pub(in crate::fork) name: String,
    /// Random, 32 hex digits; stays through renames.
    pub(in crate::fork) uid: String,
    /// When the fork was made, in nanoseconds since 1970.
    pub(in crate::fork) created_ns: i64,
    /// The image it rests on.
    pub(in crate::fork) base: Option<Digest>,
    /// Its generations, oldest first. The last one is written, all others are frozen.
    #[serde(with = "hex")]
    pub(in crate::fork) generations: Vec<GenId>,
    /// Mode and owner of the folders around `world/fs`, before the first of these generations.
    #[serde(default, skip_serializing_if = "Frame::is_plain")]
    pub(in crate::fork) folders: Frame,
    /// What a mount derives inode numbers from if it is not `uid`. After a restore it is the `uid` that the fork had before
    /// its first restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::fork) numbered_by: Option<String>,
    /// The image that it was made of. Absent in a head that an older program made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::fork) origin: Option<Digest>,
    /// Whether it began with nothing instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::fork) began_empty: bool,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub(in crate::fork) extra: Map<String, Value>,
}

mod hex {
    use super::GenId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(ids: &[GenId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<GenId>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| {
                GenId::parse(text).ok_or_else(|| {
                    serde::de::Error::custom(format!("{text:?} is not the name of a generation"))
                })
            })
            .collect()
    }
}

/// Longest name of a fork in bytes: its head's name has `.json` behind it and `.tmp-` and six letters in a temp file.
const MAX_NAME: usize = 200;

/// Says why `name` cannot be a fork's, or nothing if it can.
pub fn refuse_fork_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_NAME {
        Some("it is longer than 200 bytes")
    } else if name.starts_with('.') {
        Some("it starts with a dot")
    } else if name.contains('/') {
        Some("it contains a slash")
    } else if name.contains('@') {
        Some("it contains an @, which names a fork's source")
    } else if name.chars().any(char::is_control) {
        Some("it contains a control character")
    } else {
        None
    }
}

/// Whether a name is too long for a fork. File operations have a separate error for it.
pub(in crate::fork) fn is_too_long(name: &str) -> bool {
    name.len() > MAX_NAME
}

/// Like [`refuse_fork_name`], for a new fork.
pub fn refuse_new_fork_name(name: &str) -> Option<&'static str> {
    // Otherwise `@latest` as a source would mean this fork.
    if name == "latest" {
        return Some("it is reserved for the newest image");
    }
    refuse_fork_name(name).or_else(|| refuse_new_name(name))
}

/// Whether a folder of forks has one of this name, damaged or not.
pub fn is_fork(forks: &Path, name: &str) -> bool {
    refuse_fork_name(name).is_none() && path(forks, name).symlink_metadata().is_ok()
}

pub(in crate::fork) fn path(forks: &Path, name: &str) -> PathBuf {
    forks.join("heads").join(format!("{name}.json"))
}

impl Head {
    /// Reads a head.
    pub(in crate::fork) fn read(path: &Path, name: &str) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| Error::io(e, format!("cannot read {}", path.display())))?;
        let mut head: Self = serde_json::from_slice(&bytes).map_err(|e| {
            let message = format!("{} is not a valid fork head", path.display());
            Error::new(ErrorKind::Damaged, message).with_source(e)
        })?;
        if head.generations.is_empty() || GenId::parse(&head.uid).is_none() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{} is not a valid fork head", path.display()),
            ));
        }
        name.clone_into(&mut head.name);
        Ok(head)
    }

    /// Writes the head, whole or not at all. A head that replaces another is made durable first, so that one of the two
    /// survives a power cut. A new head becomes durable with the fork's first fsync.
    pub(in crate::fork) fn write(&self, files: &OpenFiles, forks: &Path, replace: bool) -> Result<()> {
        let path = path(forks, &self.name);
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => taken(&self.name),
            _ => Error::io(e, format!("cannot write {}", path.display())),
        };
        let mut bytes = serde_json::to_vec(self).map_err(|e| failed(e.into()))?;
        bytes.push(b'\n');
        write_whole(&*files.io, files.sharing, &path, &bytes, !replace, replace).map_err(failed)
    }
}

/// The format of the folder, in `format.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    #[serde(rename = "format")]
    name: String,
    version: u32,
    compatible: Vec<String>,
    read_only_compatible: Vec<String>,
    incompatible: Vec<String>,
}

const FORMAT: &str = "pfimg.forks";
const VERSION: u32 = 1;

/// Checks `format.json`, and makes it if `create` is given. Returns whether the forks may be written: forks with an unknown
/// feature that concerns only writers stay readable.
pub(in crate::fork) fn check_format(forks: &Path, create: Option<Sharing>) -> Result<bool> {
    let path = forks.join("format.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e)
            if e.kind() == io::ErrorKind::NotFound
                && let Some(sharing) = create =>
        {
            let ours = Format {
                name: FORMAT.into(),
                version: VERSION,
                compatible: Vec::new(),
                read_only_compatible: Vec::new(),
                incompatible: Vec::new(),
            };
            let failed = |e: io::Error| Error::io(e, format!("cannot write {}", path.display()));
            let bytes = serde_json::to_vec(&ours).map_err(|e| failed(e.into()))?;
            write_whole(&SystemIo, sharing, &path, &bytes, false, true).map_err(failed)?;
            File::open(forks).and_then(|dir| dir.sync_all()).map_err(failed)?;
            return Ok(true);
        }
        Err(e) => return Err(Error::io(e, format!("cannot read {}", path.display()))),
    };
    let format: Format = serde_json::from_slice(&bytes).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            format!("{} is damaged: it does not name the format of the forks", path.display()),
        )
        .with_source(e)
    })?;
    if format.name != FORMAT || format.version != VERSION || !format.incompatible.is_empty() {
        let message = format!(
            "the forks in {} have format {} {} {:?}, which this program does not read",
            forks.display(),
            format.name,
            format.version,
            format.incompatible
        );
        return Err(
            Error::new(ErrorKind::UnsupportedSchema, message).with_hint("a newer pfimg may read them")
        );
    }
    Ok(format.read_only_compatible.is_empty())
}
