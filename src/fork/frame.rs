//! The folders around a fork's files, and the files in them that have a fixed place.
//!
//! Mode and owner of a fork's own folder and of its layers' folders. No image keeps them, so the fork's head does.
//!
//! The head records them as they are before its first generation; the journals record later changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ino::Ino;

/// The mode of a fork's folders if nothing else is recorded.
pub(super) const FOLDER_MODE: u16 = 0o755;

/// The folders every fork of an image has: number, parent, name.
pub(super) const FOLDERS: [(Ino, Ino, &[u8]); 7] = [
    (Ino::MODEL, Ino::TOP, b"model"),
    (Ino::CACHE, Ino::TOP, b"cache"),
    (Ino::PAGES, Ino::CACHE, b"pages"),
    (Ino::WORLD, Ino::TOP, b"world"),
    (Ino::FS, Ino::WORLD, b"fs"),
    (Ino::EFFECTS, Ino::TOP, b"effects"),
    (Ino::TRACE, Ino::TOP, b"trace"),
];

/// The number that a folder of this name has by its place alone.
pub(super) fn fixed_ino(parent: Ino, name: &[u8]) -> Option<Ino> {
    FOLDERS.iter().find(|(_, p, n)| *p == parent && *n == name).map(|(ino, ..)| *ino)
}

/// Where the records are: the folder, and the name in it.
pub(super) const RECORDS: [(Ino, &[u8]); 2] =
    [(Ino::EFFECTS, b"ledger.jsonl"), (Ino::TRACE, b"messages.jsonl")];

/// Whether a name is that of the ledger or the trace.
pub(super) fn is_record(folder: Ino, name: &[u8]) -> bool {
    RECORDS.contains(&(folder, name))
}

/// Mode and owner of the folders around `world/fs`, by path. The fork's top folder has the empty path. Folders with the
/// default mode and owner are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Frame(BTreeMap<String, Folder>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Folder {
    #[serde(with = "octal")]
    pub(super) mode: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gid: Option<u32>,
}

mod octal {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's own form
    pub(super) fn serialize<S: Serializer>(mode: &u16, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{mode:04o}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mode = u16::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a mode")))
    }
}

/// The folders by their paths. Only `world/fs` is not among them: an image keeps what that has.
fn paths() -> impl Iterator<Item = (String, Ino)> {
    let path = |parent: Ino, name: &[u8]| {
        let above = FOLDERS.iter().find(|(ino, ..)| *ino == parent).map(|(.., name)| *name);
        let parts: Vec<&[u8]> = above.into_iter().chain([name]).collect();
        String::from_utf8_lossy(&parts.join(&b'/')).into_owned()
    };
    let layers = FOLDERS.iter().filter(|(ino, ..)| *ino != Ino::FS);
    std::iter::once((String::new(), Ino::TOP))
        .chain(layers.map(move |(ino, parent, name)| (path(*parent, name), *ino)))
}

impl Frame {
    /// Whether all folders have the default mode and owner.
    pub(super) fn is_plain(&self) -> bool {
        self.0.is_empty()
    }

    /// Records mode and owner of those folders that exist.
    pub(super) fn of(folder: impl Fn(Ino) -> Option<Folder>) -> Self {
        let folder = |ino| {
            let folder: Folder = folder(ino)?;
            let plain = folder.mode == FOLDER_MODE && folder.uid.is_none() && folder.gid.is_none();
            (!plain).then_some(folder)
        };
        Self(paths().filter_map(|(path, ino)| Some((path, folder(ino)?))).collect())
    }

    /// Calls `set` with each recorded folder.
    pub(super) fn each(&self, mut set: impl FnMut(Ino, &Folder)) {
        if self.is_plain() {
            return;
        }
        for (path, ino) in paths() {
            if let Some(folder) = self.0.get(&path) {
                set(ino, folder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::state::{Base, State};
    use super::*;
    use crate::fork::Owners;

    #[test]
    fn attributes_of_directories_are_written_by_path_and_read_back() {
        let all: Vec<String> = paths().map(|(path, _)| path).collect();
        assert_eq!(all, ["", "model", "cache", "cache/pages", "world", "effects", "trace"]);
        let mut state = State::over(Arc::new(Base::empty(Owners::kept(1, 2), 0)));
        assert!(state.folders().is_plain());
        let text = r#"{"":{"mode":"2750","gid":7},"trace":{"mode":"0711","uid":5,"gid":6}}"#;
        let frame: Frame = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&frame).unwrap(), text);
        state.set_folders(&frame);
        // An empty fork has no other folder yet.
        assert_eq!(serde_json::to_string(&state.folders()).unwrap(), r#"{"":{"mode":"2750","gid":7}}"#);
        for bad in [r#"{"":{"mode":"999"}}"#, r#"{"":{"mode":"17777"}}"#, r#"{"":{}}"#, r#"{"":[]}"#] {
            assert!(serde_json::from_str::<Frame>(bad).is_err(), "{bad}");
        }
    }
}
