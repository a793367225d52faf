//! Tags: names of images. `refs/tags/<name>` holds `sha256:<hex64>` and a newline.
//!
//! Reading them writes nothing. A tag is written, renamed and removed in one durable step: a reader, also
//! after a crash, sees the tags before or after it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::write_durably;
use super::io::{StoreIo, rename_new};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::wait;
use crate::util::names::refuse_new_name;
use crate::util::sharing::Sharing;

/// Longest tag in bytes, the longest file name.
pub const MAX_TAG: usize = 255;

/// Longest tag file that is read, in bytes; a digest and a newline are 72.
const MAX_TAG_FILE: u64 = 1 << 10;

/// Says why `name` cannot be a tag, or nothing if it can.
pub fn refuse_tag_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_TAG {
        Some("it is longer than 255 bytes")
    } else if name.starts_with('.') {
        Some("it starts with a dot")
    } else if name.contains(['/', '\\']) {
        Some("it contains a path separator")
    } else if name.chars().any(char::is_control) {
        Some("it contains a control character")
    } else if name == "latest" || name.starts_with("sha256:") {
        Some("it is reserved")
    } else {
        None
    }
}

/// Says why no tag of this name can be made, or nothing if one can. `pf` makes tags that look like ids. pfimg
/// reads them, but makes none: the id would be taken for the tag.
pub fn refuse_new_tag(name: &str) -> Option<&'static str> {
    refuse_tag_name(name)
        .or_else(|| refuse_new_name(name))
        .or_else(|| Digest::from_hex(name).is_ok().then_some("it is the id of an image"))
}

/// Fails if no tag of this name can be made. Does not read a store.
pub fn check_new_tag(name: &str) -> Result<()> {
    match refuse_new_tag(name) {
        Some(why) => Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a tag: {why}"))),
        None => Ok(()),
    }
}

/// Whether a store has a tag of this name, whatever its file holds.
pub(crate) fn is_there(store: &Path, name: &str) -> bool {
    refuse_tag_name(name).is_none() && store.join("refs/tags").join(name).symlink_metadata().is_ok()
}

/// The tags of one store.
pub struct Tags {
    dir: PathBuf,
    io: Arc<dyn StoreIo>,
    sharing: Sharing,
}

impl std::fmt::Debug for Tags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tags").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Tags {
    pub(super) fn new(store: &Path, io: Arc<dyn StoreIo>, sharing: Sharing) -> Self {
        Self { dir: store.join("refs").join("tags"), io, sharing }
    }

    /// The folder that holds them; it need not exist.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image a tag names. [`ErrorKind::NotFound`] if there is no such tag, [`ErrorKind::Damaged`] if its file
    /// holds no digest.
    pub fn get(&self, name: &str) -> Result<Digest> {
        wait::disk("tag");
        if let Some(why) = refuse_tag_name(name) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a tag: {why}")));
        }
        let path = self.dir.join(name);
        let bytes = read_bounded(&path).map_err(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                Error::new(ErrorKind::NotFound, format!("there is no tag {name:?}"))
                    .with_name(name)
                    .with_hint("list the tags with `pfimg tags`")
            } else {
                Error::io(e, format!("cannot read tag {}", path.display()))
            }
        })?;
        String::from_utf8_lossy(&bytes).trim_end().parse().map_err(|e| {
            Error::new(ErrorKind::Damaged, format!("tag {} does not hold a digest", path.display()))
                .with_source(e)
                .with_hint("remove the file, or tag the image again")
        })
    }

    /// Every tag's name, sorted. Files whose names cannot be tags (temp files) are left out.
    pub fn names(&self) -> Result<Vec<String>> {
        wait::disk("tags");
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(e, format!("cannot list {}", self.dir.display()))),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(e, format!("cannot list {}", self.dir.display())))?;
            if let Ok(name) = entry.file_name().into_string()
                && refuse_tag_name(&name).is_none()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Fails if the name is taken: by a tag, unless `force`, or by a fork. A tag and a fork that have one name already stay so.
    pub fn check_free(&self, name: &str, force: bool) -> Result<()> {
        if self.dir.join(name).symlink_metadata().is_ok() {
            return if force { Ok(()) } else { Err(taken(name)) };
        }
        let store = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        if store.join("forks/heads").join(format!("{name}.json")).symlink_metadata().is_ok() {
            let what = format!("{name:?} cannot be a tag: a fork has this name");
            return Err(Error::new(ErrorKind::AlreadyExists, what).with_hint("choose another name"));
        }
        Ok(())
    }

    /// Tags an image. Durable and atomic; an existing tag of that name is replaced only if `force`.
    pub fn set(&self, name: &str, image: &Digest, force: bool) -> Result<()> {
        check_new_tag(name)?;
        self.check_free(name, force)?;
        let path = self.dir.join(name);
        let failed = |e: io::Error| {
            if !force && e.kind() == io::ErrorKind::AlreadyExists {
                taken(name)
            } else {
                Error::io(e, format!("cannot write tag {}", path.display()))
            }
        };
        self.make_dir().map_err(failed)?;
        let line = format!("{image}\n");
        write_durably(&*self.io, self.sharing, &path, line.as_bytes(), !force).map_err(failed)
    }

    /// Removes a tag; the image stays. Returns the image it named, nothing if its file held no digest.
    pub fn remove(&self, name: &str) -> Result<Option<Digest>> {
        let image = match self.get(name) {
            Ok(image) => Some(image),
            Err(error) if error.kind() == ErrorKind::Damaged => None,
            Err(error) => return Err(error),
        };
        let path = self.dir.join(name);
        let failed = |e| Error::io(e, format!("cannot remove tag {}", path.display()));
        fs::remove_file(&path).map_err(failed)?;
        sync_dir(&self.dir).map_err(failed)?;
        Ok(image)
    }

    /// Renames a tag. A tag that has the new name is replaced only if `replace`.
    pub fn rename(&self, name: &str, new_name: &str, replace: bool) -> Result<()> {
        self.get(name)?;
        check_new_tag(new_name)?;
        self.check_free(new_name, replace)?;
        let (from, to) = (self.dir.join(name), self.dir.join(new_name));
        let failed = |e| Error::io(e, format!("cannot rename tag {} to {new_name:?}", from.display()));
        let renamed = if replace { self.io.rename(&from, &to) } else { rename_new(&*self.io, &from, &to) };
        renamed.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists if !replace => taken(new_name),
            _ => failed(e),
        })?;
        sync_dir(&self.dir).map_err(failed)
    }

    /// Makes the folder, durably.
    fn make_dir(&self) -> io::Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        // The folder is refs/tags of the store.
        let store = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        self.io.create_dir_below(store, &self.dir, self.sharing)?;
        self.dir.ancestors().skip(1).take(2).try_for_each(|dir| self.io.sync_dir(dir))
    }
}

fn taken(name: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("there is a tag {name:?} already"))
        .with_hint("use --force to take it from its image")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a small regular file. Anything else gives no bytes: a fifo would hang its reader, `/dev/zero` never
/// end.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MAX_TAG_FILE).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::io::SystemIo;
    use super::*;

    #[test]
    fn a_tag_is_read_back_and_not_replaced_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        assert_eq!(tags.names().unwrap(), Vec::<String>::new());
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        tags.set("before", &a, false).unwrap();
        assert_eq!(tags.get("before").unwrap(), a);
        assert_eq!(tags.set("before", &b, false).unwrap_err().kind(), ErrorKind::AlreadyExists);
        tags.set("before", &b, true).unwrap();
        assert_eq!(tags.get("before").unwrap(), b);
        assert_eq!(tags.names().unwrap(), ["before"]);
        assert_eq!(tags.get("after").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_tag_is_renamed_and_removed_and_missing_and_taken_names_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(tags.remove("a").unwrap_err().kind(), ErrorKind::NotFound);
        tags.set("a", &a, false).unwrap();
        tags.set("b", &b, false).unwrap();
        assert_eq!(tags.rename("a", "b", false).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(tags.rename("a", "x/y", true).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(tags.rename("../a", "c", true).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(tags.rename("nothing", "c", true).unwrap_err().kind(), ErrorKind::NotFound);
        tags.rename("a", "b", true).unwrap();
        assert_eq!((tags.names().unwrap(), tags.get("b").unwrap()), (vec!["b".to_owned()], a));
        tags.rename("b", "c", false).unwrap();
        assert_eq!(tags.remove("c").unwrap(), Some(a));
        // A file that holds no digest can be removed by its name.
        fs::write(tags.dir().join("bad"), "garbage").unwrap();
        assert_eq!(tags.remove("bad").unwrap(), None);
        assert_eq!(tags.names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn names_that_would_escape_or_confuse_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        let long = "x".repeat(256);
        for bad in
            ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "latest", "sha256:ab", &long]
        {
            assert_eq!(
                tags.set(bad, &Digest::of(b""), false).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad:?}"
            );
            assert_eq!(tags.get(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        for good in ["a", "v1.0", "name:tag", "ünïcode", "a b"] {
            tags.set(good, &Digest::of(b""), false).unwrap();
        }
    }

    #[test]
    fn a_tag_file_with_garbage_is_damage_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        fs::create_dir_all(tags.dir()).unwrap();
        fs::write(tags.dir().join("bad"), "garbage").unwrap();
        let error = tags.get("bad").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.hint().is_some() && error.to_string().contains("bad"), "{error}");
    }

    #[test]
    fn a_tag_whose_making_was_cut_off_names_no_image_and_can_be_removed_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        fs::create_dir_all(tags.dir()).unwrap();
        // Every beginning of a tag's file, as a power cut might leave it.
        let whole = format!("{}\n", Digest::of(b"a"));
        for length in 0..whole.len() - 1 {
            fs::write(tags.dir().join("cut"), &whole[..length]).unwrap();
            assert_eq!(tags.get("cut").unwrap_err().kind(), ErrorKind::Damaged, "{length} bytes");
        }
        tags.set("cut", &Digest::of(b"b"), true).unwrap();
        assert_eq!(tags.get("cut").unwrap(), Digest::of(b"b"));
        fs::write(tags.dir().join("cut"), "").unwrap();
        assert_eq!(tags.remove("cut").unwrap(), None);
        tags.set("cut", &Digest::of(b"a"), false).unwrap();
    }

    #[test]
    fn a_tag_that_is_not_a_regular_file_is_damage_and_hangs_no_reader() {
        let dir = tempfile::tempdir().unwrap();
        let tags = Tags::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        fs::create_dir_all(tags.dir().join("folder")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", tags.dir().join("endless")).unwrap();
        std::process::Command::new("mkfifo").arg(tags.dir().join("fifo")).status().unwrap();
        fs::write(tags.dir().join("noise"), vec![0xff; 1 << 20]).unwrap();
        for name in tags.names().unwrap() {
            assert_eq!(tags.get(&name).unwrap_err().kind(), ErrorKind::Damaged, "{name}");
        }
        assert_eq!(tags.names().unwrap().len(), 4);
    }
}
