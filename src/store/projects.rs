//! Projects: folders whose imports form a line with a name. `refs/projects/<name>` holds the line's last image, a newline, the
//! folder's path, and a newline.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::write_durably;
use super::io::StoreIo;
use super::records;
use super::tags::check_new_tag;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::util::sharing::Sharing;

/// What stands for the image of a line that has none yet.
const NONE: &str = "none";

/// A project as a store remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The folder.
    pub dir: PathBuf,
    /// The image that its last import made, if there is one.
    pub image: Option<Digest>,
}

impl Line {
    fn to_bytes(&self) -> Vec<u8> {
        let image = self.image.map_or_else(|| NONE.to_owned(), |image| image.to_string());
        [image.as_bytes(), b"\n", self.dir.as_os_str().as_bytes(), b"\n"].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.iter().position(|b| *b == b'\n')?;
        let image = match std::str::from_utf8(&bytes[..at]).ok()? {
            NONE => None,
            text => Some(text.parse().ok()?),
        };
        let dir = bytes[at + 1..].strip_suffix(b"\n").filter(|dir| dir.starts_with(b"/"))?;
        Some(Self { dir: PathBuf::from(std::ffi::OsString::from_vec(dir.to_vec())), image })
    }
}

/// The projects of one store.
pub struct Projects {
    store: PathBuf,
    dir: PathBuf,
    io: Arc<dyn StoreIo>,
    sharing: Sharing,
}

impl std::fmt::Debug for Projects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Projects").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Projects {
    pub(super) fn new(store: &Path, io: Arc<dyn StoreIo>, sharing: Sharing) -> Self {
        Self { store: store.to_owned(), dir: store.join("refs").join("projects"), io, sharing }
    }

    /// The project of a name, if there is one. [`ErrorKind::Damaged`] if its file says nothing.
    pub fn get(&self, name: &str) -> Result<Option<Line>> {
        check_new_tag(name)?;
        let path = self.dir.join(name);
        let failed = |e| Error::io(e, format!("cannot read project {}", path.display()));
        let Some(bytes) = records::read(&path).map_err(failed)? else { return Ok(None) };
        let line = Line::parse(&bytes).ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!("{} does not name the image and the directory of a project", path.display()),
            )
            .with_hint("remove the file; the next import begins a new line")
        })?;
        Ok(Some(line))
    }

    /// The names of all projects, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = records::names(&self.dir)?;
        names.retain(|name| check_new_tag(name).is_ok());
        Ok(names)
    }

    /// Remembers a project. Durable and atomic.
    pub fn set(&self, name: &str, line: &Line) -> Result<()> {
        check_new_tag(name)?;
        let path = self.dir.join(name);
        let failed = |e| Error::io(e, format!("cannot write project {}", path.display()));
        records::make_dir(&*self.io, &self.store, &self.dir, self.sharing).map_err(failed)?;
        write_durably(&*self.io, self.sharing, &path, &line.to_bytes(), false).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::io::SystemIo;
    use super::*;

    #[test]
    fn a_project_comes_back_as_it_was_whatever_its_path_holds() {
        let dir = tempfile::tempdir().unwrap();
        let projects = Projects::new(dir.path(), Arc::new(SystemIo), Sharing::Private);
        assert_eq!((projects.get("p").unwrap(), projects.names().unwrap()), (None, vec![]));
        for (name, bytes, image) in [("p", &b"/a b\n/\xff\n"[..], None), ("q", b"/x", Some(Digest::of(b"i")))]
        {
            let line = Line { dir: PathBuf::from(std::ffi::OsStr::from_bytes(bytes)), image };
            projects.set(name, &line).unwrap();
            assert_eq!(projects.get(name).unwrap(), Some(line));
        }
        assert_eq!(projects.names().unwrap(), ["p", "q"]);
        for bad in ["", "none\n", "none\nrelative\n", "x\n/a\n", "none\n/a"] {
            fs::write(projects.dir.join("p"), bad).unwrap();
            assert_eq!(projects.get("p").unwrap_err().kind(), ErrorKind::Damaged, "{bad:?}");
        }
        assert!(projects.get("../p").is_err());
    }
}
