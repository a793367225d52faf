//! Applies: what pfimg changed in directories of its users, newest last, so that each can be finished and taken back.
//! `refs/applies/<key>/<number>.json` is one apply. `<key>` is made of the directory's path, numbers count from 1.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::atomic::write_durably;
use super::io::StoreIo;
use super::records;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::util::sharing::Sharing;

/// The version of the file.
const VERSION: u64 = 1;

/// Hex digits of a key.
const KEY: usize = 32;

/// Branches that applies may move.
const BRANCHES: &str = "refs/heads/pfimg/";

/// How far an apply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The directory is being changed.
    Writing,
    /// The directory was changed.
    Done,
    /// The change is being taken back.
    Undoing,
    /// The change was taken back.
    Undone,
}

impl State {
    /// Whether the directory may be in between the two images.
    pub fn is_unfinished(self) -> bool {
        matches!(self, Self::Writing | Self::Undoing)
    }
}

/// A branch of the directory's own repository that an apply moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Its full name, `refs/heads/pfimg/NAME`.
    pub name: String,
    /// The commit that it named before, in hex; nothing if it did not exist.
    pub old: Option<String>,
    /// The commit that it names then, in hex.
    pub new: String,
}

impl Branch {
    /// Whether git can be given the three as they are: an option or a name with a space in it must not come from a file.
    pub fn is_sound(&self) -> bool {
        let rest = self.name.strip_prefix(BRANCHES).unwrap_or_default();
        let is_name = !rest.is_empty() && !rest.chars().any(|c| c.is_control() || c == ' ');
        is_name && is_id(&self.new) && self.old.iter().all(|id| is_id(id))
    }
}

/// Whether a text is the id of an object of git, in hex.
fn is_id(id: &str) -> bool {
    matches!(id.len(), 40 | 64) && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// One apply of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// Its device when the apply began.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// The fork or image that was applied, as its user named it.
    pub fork: String,
    /// The image that the fork was compared with, if there was one.
    pub base: Option<Digest>,
    /// The image that was applied.
    pub image: Digest,
    /// The image of the paths concerned as they were before.
    pub before: Digest,
    /// The image of the same paths as they are to be afterwards.
    pub after: Digest,
    /// How far it is.
    pub state: State,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// The branch that it moves, if any.
    pub branch: Option<Branch>,
    /// The commit of the paths in the directory's own repository, if one was made.
    pub commit: Option<String>,
}

/// The file's form. A path that is not UTF-8 is there in base64, and as text for people.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u64,
    dir: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dir_b64: Option<String>,
    dev: u64,
    ino: u64,
    fork: String,
    #[serde(default)]
    base: Option<Digest>,
    image: Digest,
    before: Digest,
    after: Digest,
    state: State,
    began_at: DateTime<Utc>,
    #[serde(default)]
    branch: Option<Branch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
}

/// Why a file says nothing of an apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// A newer pfimg wrote it.
    Newer(u64),
    /// It is damaged.
    Damaged(String),
}

impl Apply {
    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let dir = self.dir.as_os_str().as_bytes();
        let is_text = std::str::from_utf8(dir).is_ok();
        let written = Written {
            version: VERSION,
            dir: self.dir.to_string_lossy().into_owned(),
            dir_b64: (!is_text).then(|| data_encoding::BASE64.encode(dir)),
            dev: self.dev,
            ino: self.ino,
            fork: self.fork.clone(),
            base: self.base,
            image: self.image,
            before: self.before,
            after: self.after,
            state: self.state,
            began_at: self.began_at,
            branch: self.branch.clone(),
            commit: self.commit.clone(),
        };
        // Strings, numbers and digests are always JSON.
        let mut bytes = serde_json::to_vec(&written).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads the bytes of a file. Unknown keys are skipped.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unread> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let damaged = |e: serde_json::Error| Unread::Damaged(e.to_string());
        // First the version alone: a newer file may lack or change every other key.
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(Unread::Newer(version));
        }
        let read: Written = serde_json::from_slice(bytes).map_err(damaged)?;
        let dir = match &read.dir_b64 {
            Some(text) => data_encoding::BASE64
                .decode(text.as_bytes())
                .map_err(|e| Unread::Damaged(format!("bad base64: {e}")))?,
            None => read.dir.into_bytes(),
        };
        if !dir.starts_with(b"/") || dir.contains(&0) {
            return Err(Unread::Damaged("its directory is not an absolute path".into()));
        }
        if read.branch.as_ref().is_some_and(|branch| !branch.is_sound()) {
            return Err(Unread::Damaged("it names no branch of pfimg's, or no commit".into()));
        }
        Ok(Self {
            dir: PathBuf::from(std::ffi::OsString::from_vec(dir)),
            dev: read.dev,
            ino: read.ino,
            fork: read.fork,
            base: read.base,
            image: read.image,
            before: read.before,
            after: read.after,
            state: read.state,
            began_at: read.began_at,
            branch: read.branch,
            commit: read.commit.filter(|id| is_id(id)),
        })
    }

    /// Whether it is one of this directory. A directory that was moved keeps its inode; one that was made again at the path has a new one.
    fn is_of(&self, dir: &Path, dev: u64, ino: u64) -> bool {
        self.ino == ino && (self.dev == dev || self.dir == dir)
    }
}

/// Which apply: the key of its directory and its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApplyId {
    key: String,
    number: u64,
}

/// The applies of one store.
pub struct Applies {
    store: PathBuf,
    dir: PathBuf,
    io: Arc<dyn StoreIo>,
    sharing: Sharing,
}

impl std::fmt::Debug for Applies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applies").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Applies {
    pub(super) fn new(store: &Path, io: Arc<dyn StoreIo>, sharing: Sharing) -> Self {
        Self { store: store.to_owned(), dir: store.join("refs").join("applies"), io, sharing }
    }

    /// Where an apply is written down.
    pub fn path(&self, id: &ApplyId) -> PathBuf {
        self.dir.join(&id.key).join(format!("{}.json", id.number))
    }

    /// All applies of all directories, each directory's oldest first. What cannot be read is an error in its place.
    pub fn all(&self) -> Result<Vec<(ApplyId, Result<Apply>)>> {
        let mut all = Vec::new();
        for key in records::names(&self.dir)? {
            if key.len() == KEY && key.bytes().all(|b| b.is_ascii_hexdigit()) {
                for id in self.numbers(&key)? {
                    if let Some(read) = self.read(&id).transpose() {
                        all.push((id, read));
                    }
                }
            }
        }
        Ok(all)
    }

    /// The applies of a directory, oldest first.
    pub fn of(&self, dir: &Path, dev: u64, ino: u64) -> Result<Vec<(ApplyId, Apply)>> {
        let own = key(dir);
        let mut found = Vec::new();
        for (id, apply) in self.all()? {
            match apply {
                Ok(apply) if apply.is_of(dir, dev, ino) => found.push((id, apply)),
                Err(error) if id.key == own => return Err(error),
                // A damaged one may be of a directory that was moved here, which only a sound file tells.
                Ok(_) | Err(_) => {}
            }
        }
        found.sort_by(|(a, one), (b, two)| (one.began_at, a).cmp(&(two.began_at, b)));
        Ok(found)
    }

    /// Every image that an apply needs which can be finished or taken back.
    pub fn images(&self) -> Result<Vec<Digest>> {
        self.images_of(|state| state != State::Undone)
    }

    /// Every image that an apply in one of these states names.
    pub fn images_of(&self, is_meant: impl Fn(State) -> bool) -> Result<Vec<Digest>> {
        let mut images = Vec::new();
        for (_, apply) in self.all()? {
            let apply = apply?;
            if is_meant(apply.state) {
                images.extend([apply.before, apply.after]);
            }
        }
        Ok(images)
    }

    /// Writes a new apply down. Durable and atomic.
    pub fn add(&self, apply: &Apply) -> Result<ApplyId> {
        let key = key(&apply.dir);
        let folder = self.dir.join(&key);
        let failed =
            |e| Error::io(e, format!("cannot write the record of the apply to {}", folder.display()));
        records::make_dir(&*self.io, &self.store, &folder, self.sharing).map_err(failed)?;
        loop {
            let number = self.numbers(&key)?.last().map_or(1, |last| last.number.saturating_add(1));
            let id = ApplyId { key: key.clone(), number };
            match write_durably(&*self.io, self.sharing, &self.path(&id), &apply.to_bytes(), true) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                written => return written.map_err(failed).map(|()| id),
            }
        }
    }

    /// Replaces what is written of an apply. Durable and atomic.
    pub fn set(&self, id: &ApplyId, apply: &Apply) -> Result<()> {
        let path = self.path(id);
        write_durably(&*self.io, self.sharing, &path, &apply.to_bytes(), false)
            .map_err(|e| Error::io(e, format!("cannot write {}", path.display())))
    }

    /// Forgets an apply: it cannot be taken back from then on, and its images may be pruned.
    pub fn remove(&self, id: &ApplyId) -> Result<()> {
        let path = self.path(id);
        match self.io.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(e, format!("cannot remove {}", path.display())))
            }
            _ => Ok(()),
        }
    }

    fn numbers(&self, key: &str) -> Result<Vec<ApplyId>> {
        let names = records::names(&self.dir.join(key))?;
        let numbers = names.iter().filter_map(|name| name.strip_suffix(".json"));
        let numbers = numbers.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let mut numbers: Vec<u64> = numbers.filter_map(|digits| digits.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers.into_iter().map(|number| ApplyId { key: key.to_owned(), number }).collect())
    }

    /// Reads one; nothing if it is gone.
    pub fn read(&self, id: &ApplyId) -> Result<Option<Apply>> {
        let path = self.path(id);
        let bytes =
            records::read(&path).map_err(|e| Error::io(e, format!("cannot read {}", path.display())))?;
        let Some(bytes) = bytes else { return Ok(None) };
        Apply::parse(&bytes).map(Some).map_err(|unread| match unread {
            Unread::Newer(version) => {
                let what = format!("{} has version {version}, this program reads {VERSION}", path.display());
                Error::new(ErrorKind::UnsupportedSchema, what)
                    .with_hint("install the newer pfimg that wrote it")
            }
            Unread::Damaged(why) => {
                let what = format!("{} is not a valid record of an apply: {why}", path.display());
                Error::new(ErrorKind::Damaged, what)
                    .with_hint("remove the file if you cannot repair it; that apply can then not be undone")
            }
        })
    }
}

/// The key of a directory.
fn key(dir: &Path) -> String {
    Digest::of(dir.as_os_str().as_bytes()).hex()[..KEY].to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::io::SystemIo;
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Apply {
        Apply {
            dir: "/home/a/project".into(),
            dev: 2049,
            ino: 77,
            fork: "try-2".into(),
            base: Some(Digest::of(b"base")),
            image: Digest::of(b"image"),
            before: Digest::of(b"before"),
            after: Digest::of(b"after"),
            state: State::Writing,
            began_at: "2026-11-20T09:20:56.312327059Z".parse().unwrap(),
            branch: Some(Branch {
                name: "refs/heads/pfimg/try-2".into(),
                old: None,
                new: "0123456789abcdef0123456789abcdef01234567".into(),
            }),
            commit: Some("89abcdef0123456789abcdef0123456789abcdef".into()),
        }
    }

    fn applies(dir: &Path) -> Applies {
        Applies::new(dir, Arc::new(SystemIo), Sharing::Private)
    }

    #[test]
    fn an_apply_comes_back_as_it_was_written_whatever_the_path_holds() {
        let dir = tempfile::tempdir().unwrap();
        let applies = applies(dir.path());
        assert!(applies.all().unwrap().is_empty());
        for path in [&b"/a b\n"[..], b"/\xff\"\\", b"/x"] {
            let apply = Apply { dir: PathBuf::from(std::ffi::OsStr::from_bytes(path)), ..sample() };
            let id = applies.add(&apply).unwrap();
            let done = Apply { state: State::Done, branch: None, base: None, ..apply.clone() };
            let second = applies.add(&apply).unwrap();
            applies.set(&second, &done).unwrap();
            let found = applies.of(&apply.dir, 1, 77).unwrap();
            assert_eq!(found, [(id.clone(), apply.clone()), (second.clone(), done)]);
            // The directory was made again, or is one of another name on another device.
            assert!(applies.of(&apply.dir, 2049, 78).unwrap().is_empty());
            applies.remove(&id).unwrap();
            applies.remove(&id).unwrap();
            assert_eq!(applies.of(&apply.dir, 1, 77).unwrap().len(), 1);
        }
        assert_eq!(applies.images().unwrap().len(), 6);
        // A directory that was moved is found by its inode, in the order of time.
        assert_eq!(applies.of(Path::new("/elsewhere"), 2049, 77).unwrap().len(), 3);
        assert!(applies.of(Path::new("/elsewhere"), 2050, 77).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_where_its_directory_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let applies = applies(dir.path());
        let id = applies.add(&sample()).unwrap();
        let good = String::from_utf8(sample().to_bytes()).unwrap();
        let bad = [
            (good.replace("\"version\":1", "\"version\":2"), ErrorKind::UnsupportedSchema),
            (good.replace("/home/a", "home/a"), ErrorKind::Damaged),
            (good.replace("refs/heads/pfimg", "refs/heads"), ErrorKind::Damaged),
            (good.replace("0123456789abcdef0123", "--help"), ErrorKind::Damaged),
            (good.replace("writing", "reading"), ErrorKind::Damaged),
            (String::new(), ErrorKind::Damaged),
        ];
        for (text, kind) in bad {
            fs::write(applies.path(&id), &text).unwrap();
            assert_eq!(applies.of(&sample().dir, 0, 77).unwrap_err().kind(), kind, "{text}");
            assert!(applies.images().is_err() && applies.of(Path::new("/b"), 0, 77).unwrap().is_empty());
        }
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn any_bytes_are_read_or_refused_and_what_is_read_is_written_the_same(
            noise in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..600, cut in any::<bool>(),
        ) {
            let mut bytes = sample().to_bytes();
            let at = at.min(bytes.len());
            let end = if cut { bytes.len() } else { (at + noise.len()).min(bytes.len()) };
            bytes.splice(at..end, noise);
            if let Ok(apply) = Apply::parse(&bytes) {
                prop_assert_eq!(Apply::parse(&apply.to_bytes()), Ok(apply));
            }
        }
    }
}
