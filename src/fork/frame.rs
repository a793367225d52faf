//! Mode and owner of a fork's own folder and of its layers' folders. No image keeps them, so the fork's head does.
//!
//! The head records them as they are before its first generation; the journals record later changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ino::Ino;
use super::state::{FOLDERS, State};

/// The mode of a fork's folders if nothing else is recorded.
pub(super) const FOLDER_MODE: u16 = 0o755;

/// Mode and owner of the folders around `world/fs`, by path. The fork's top folder has the empty path. Folders with the
/// default mode and owner are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Frame(BTreeMap<String, Folder>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Folder {
    #[serde(with = "octal")]
    mode: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
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

    /// Reads the present mode and owner of a fork's folders.
    pub(super) fn of(state: &State) -> Self {
        let folder = |ino| {
            let inode = state.nodes.get(&ino)?;
            let (mode, uid, gid) = (inode.mode, inode.uid, inode.gid);
            let plain = mode == FOLDER_MODE && uid.is_none() && gid.is_none();
            (!plain).then_some(Folder { mode, uid, gid })
        };
        Self(paths().filter_map(|(path, ino)| Some((path, folder(ino)?))).collect())
    }

    /// Sets mode and owner of those folders that the fork has.
    pub(super) fn apply(&self, state: &mut State) {
        if self.is_plain() {
            return;
        }
        for (path, ino) in paths() {
            if let (Some(folder), Some(inode)) = (self.0.get(&path), state.nodes.get_mut(&ino)) {
                let inode = Arc::make_mut(inode);
                (inode.mode, inode.uid, inode.gid) = (folder.mode, folder.uid, folder.gid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Base;
    use super::*;
    use crate::fork::Owners;

    #[test]
    fn attributes_of_directories_are_written_by_path_and_read_back() {
        let all: Vec<String> = paths().map(|(path, _)| path).collect();
        assert_eq!(all, ["", "model", "cache", "cache/pages", "world", "effects", "trace"]);
        let mut state = State::over(Arc::new(Base::empty(Owners::kept(1, 2), 0)));
        assert!(Frame::of(&state).is_plain());
        let text = r#"{"":{"mode":"2750","gid":7},"trace":{"mode":"0711","uid":5,"gid":6}}"#;
        let frame: Frame = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&frame).unwrap(), text);
        frame.apply(&mut state);
        // An empty fork has no other folder yet.
        assert_eq!(serde_json::to_string(&Frame::of(&state)).unwrap(), r#"{"":{"mode":"2750","gid":7}}"#);
        for bad in [r#"{"":{"mode":"999"}}"#, r#"{"":{"mode":"17777"}}"#, r#"{"":{}}"#, r#"{"":[]}"#] {
            assert!(serde_json::from_str::<Frame>(bad).is_err(), "{bad}");
        }
    }
}
