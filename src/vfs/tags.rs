//! `tags/`: names of images, as symlinks that any tool can create, rename and remove.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::announcements::Announcements;
use super::answer::Entry;
use super::attempt::{Attempt, OnDisk, Outcome, logged, may_wait};
use super::image_links::{IMAGE_TTL, ImageLinks};
use super::readdir::{Emit, list_changing};
use crate::audit::{Log, note};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{NewFile, RenameMode};
use crate::layers::world::Kind;
use crate::store::Home;
use crate::store::tags::refuse_new_tag;

/// Logs why a change that looks possible was refused, and returns the kind of error.
fn refused(kind: ErrorKind, why: &str) -> ErrorKind {
    tracing::info!("refused: {why}");
    kind
}

fn utf8(name: &[u8]) -> Outcome<&str> {
    std::str::from_utf8(name).map_err(|_| refused(ErrorKind::InvalidInput, "a tag's name is not UTF-8"))
}

/// Returns the image that a link in `tags/` names: a tag, an image's id or prefix, or `latest`. Relative targets start in
/// `tags/`, absolute ones at the mountpoint. Does not read the disk.
fn named_by(target: &Path, mountpoint: &Path) -> Option<String> {
    let from_top: PathBuf = match target.strip_prefix(mountpoint) {
        Ok(below) if target.is_absolute() => below.to_owned(),
        _ if target.is_absolute() => return None,
        _ => {
            let mut at = PathBuf::from("tags");
            for part in target.components() {
                match part {
                    Component::CurDir => {}
                    Component::ParentDir => at.pop().then_some(())?,
                    Component::Normal(name) => at.push(name),
                    Component::RootDir | Component::Prefix(_) => return None,
                }
            }
            at
        }
    };
    let parts: Option<Vec<&str>> = from_top
        .components()
        .map(|part| if let Component::Normal(name) = part { name.to_str() } else { None })
        .collect();
    match parts?.as_slice() {
        ["latest"] => Some("latest".to_owned()),
        ["images" | "tags", name] => Some((*name).to_owned()),
        _ => None,
    }
}

/// The folder of tags.
pub(super) struct TagDir {
    pub(super) links: Arc<ImageLinks>,
    pub(super) announcements: Arc<Announcements>,
    pub(super) store: OnDisk,
    pub(super) home: Arc<Home>,
    pub(super) log: Log,
    pub(super) mountpoint: PathBuf,
    pub(super) read_only: bool,
    /// Whether cookies must be short.
    pub(super) narrow: bool,
}

impl TagDir {
    /// Finds a tag.
    pub(super) fn lookup(&self, name: &str) -> Attempt<Entry> {
        let tags = self.store.at(may_wait()?).tags();
        let id = tags.get(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => ErrorKind::NotFound.into(),
            _ => logged(error),
        })?;
        let target = format!("../images/{}", id.hex());
        let place = ["tags", name].concat();
        self.links.entry(place.as_bytes(), target, &id, IMAGE_TTL)
    }

    fn may_write_tags(&self) -> Attempt<()> {
        may_wait()?;
        self.home.require().map_err(|error| error.kind())?;
        if self.read_only { Err(ErrorKind::ReadOnly.into()) } else { Ok(()) }
    }

    /// Makes a tag: `ln -s ../images/<id> tags/NAME`, or `cp -P` of another tag. Only such links can be made in `tags/`.
    pub(super) fn create(&self, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        self.may_write_tags()?;
        let name = utf8(name)?;
        if new.kind != Kind::Symlink {
            let why =
                format!("tags/{name:?} can only be a symlink to an image: ln -s ../images/ID tags/NAME");
            return Err(refused(ErrorKind::Posix(Posix::NotPermitted), &why).into());
        }
        let image =
            self.set_tag(name, new.target).map_err(|error| refused(error.kind(), &error.to_string()))?;
        self.announcements.knows_tag(name, Some(image));
        self.log.note(note::tags_changed(&[name], &[], Some(&image)));
        self.lookup(name)
    }

    fn set_tag(&self, name: &str, target: &[u8]) -> Result<Digest> {
        use std::os::unix::ffi::OsStrExt;
        if let Some(why) = refuse_new_tag(name) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a tag: {why}")));
        }
        let target = Path::new(std::ffi::OsStr::from_bytes(target));
        let source = named_by(target, &self.mountpoint).ok_or_else(|| {
            let what = format!(
                "tags/{name} cannot lead to {}: this is not an image of this mount",
                target.display()
            );
            Error::new(ErrorKind::Posix(Posix::NotPermitted), what)
        })?;
        let store = self.store.here()?;
        let image = store.resolve(&source)?;
        if !store.images().contains(&image) {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no image {image}")));
        }
        store.tags().set(name, &image, false)?;
        Ok(image)
    }

    /// Removes a tag.
    pub(super) fn remove(&self, name: &[u8]) -> Attempt<()> {
        self.may_write_tags()?;
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        let image = self.store.at(may_wait()?).tags().remove(name).map_err(logged)?;
        self.announcements.knows_tag(name, None);
        self.log.note(note::tags_changed(&[], &[name], image.as_ref()));
        Ok(())
    }

    /// Lists all tags.
    pub(super) fn list(&self, cookie: u64, emit: Emit<'_>) -> Attempt<()> {
        let names = self.store.at(may_wait()?).tags().names().map_err(logged)?;
        list_changing(names.iter().map(|name| (name.as_str(), Kind::Symlink)), cookie, self.narrow, emit);
        Ok(())
    }

    /// Renames a tag.
    pub(super) fn rename(&self, name: &[u8], new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        self.may_write_tags()?;
        let (name, new_name) = (utf8(name)?, utf8(new_name)?);
        let replace = match mode {
            RenameMode::Replace => true,
            RenameMode::NoReplace => false,
            RenameMode::Exchange | RenameMode::Whiteout { .. } => return Err(ErrorKind::InvalidInput.into()),
        };
        let tags = self.store.at(may_wait()?).tags();
        tags.rename(name, new_name, replace).map_err(|error| refused(error.kind(), &error.to_string()))?;
        let image = tags.get(new_name).ok();
        self.announcements.knows_tag(name, None);
        self.announcements.knows_tag(new_name, image);
        self.log.note(note::tags_changed(&[new_name], &[name], image.as_ref()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_an_image_however_its_path_is_written_and_nothing_else() {
        let named = |target: &str| named_by(Path::new(target), Path::new("/mnt/pf"));
        for (target, name) in [
            ("../images/abcd", "abcd"),
            ("./../images/sha256:ab", "sha256:ab"),
            ("../tags/../images//abcd/", "abcd"),
            ("before", "before"),
            ("../tags/before", "before"),
            ("../latest", "latest"),
            ("/mnt/pf/images/abcd", "abcd"),
            ("/mnt/pf/tags/before", "before"),
        ] {
            assert_eq!(named(target).as_deref(), Some(name), "{target}");
        }
        for target in [
            "",
            ".",
            "..",
            "../..",
            "../../images/abcd",
            "../images",
            "../images/abcd/world",
            "../forks/x",
            "/images/abcd",
            "/mnt/pf",
            "/mnt/pf/../pf/images/abcd",
            "../latest/x",
        ] {
            assert_eq!(named(target), None, "{target}");
        }
    }
}
