//! The lists of seals of discarded forks: `discarded/<uid>`, so that their images can still be found and removed.
//!
//! ```text
//! name <the fork's name>
//! <the lines of its list of seals>
//! ```

use std::fs;
use std::io;
use std::path::Path;

use super::files::OpenFiles;
use super::head::refuse_fork_name;
use super::seals::parse;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::write_whole;

/// The directory, in `forks/`.
const DIR: &str = "discarded";

/// Begins the first line.
const NAME: &str = "name ";

/// A fork that was discarded, and the images that were made of it, oldest first. The store may no longer have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The name that it had.
    pub name: String,
    /// The images.
    pub seals: Vec<Digest>,
}

/// Keeps the list of seals of a fork that is about to be discarded. Does nothing if no image was made of the fork.
pub(in crate::fork) fn keep_list(forks: &Path, files: &OpenFiles, uid: &str, name: &str) -> Result<()> {
    let failed = |e| Error::io(e, format!("cannot keep the list of seals of fork {name:?}"));
    let list = match fs::read(forks.join("seals").join(uid)) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !parse(&list).iter().any(|seal| seal.made) {
        return Ok(());
    }
    let (dir, sharing) = (forks.join(DIR), files.sharing);
    let text = [NAME.as_bytes(), name.as_bytes(), b"\n", &list].concat();
    let store = forks.parent().unwrap_or(forks);
    files.io.create_dir_below(store, &dir, sharing).map_err(failed)?;
    write_whole(&*files.io, sharing, &dir.join(uid), &text, false, true).map_err(failed)
}

/// Lists the discarded forks of a store, in the order of their names. Files of another form are skipped.
pub fn discarded(store: &Path) -> Result<Vec<Discarded>> {
    let mut all = Vec::new();
    each(store, &mut |_, fork| all.push(fork))?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Forgets the discarded forks that have no image left in the store.
pub fn forget_discarded(store: &Path, is_there: &dyn Fn(&Digest) -> bool) -> Result<()> {
    each(store, &mut |path, fork| {
        if !fork.seals.iter().any(is_there) {
            // A file that stays is read again next time.
            let _ = fs::remove_file(path);
        }
    })
}

fn each(store: &Path, act: &mut dyn FnMut(&Path, Discarded)) -> Result<()> {
    let dir = store.join("forks").join(DIR);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(e, format!("cannot list {}", dir.display()))),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::read(&path) {
            Ok(text) => {
                if let Some(fork) = Discarded::parse(&text) {
                    act(&path, fork);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(e, format!("cannot read {}", path.display()))),
        }
    }
    Ok(())
}

impl Discarded {
    fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().position(|byte| *byte == b'\n')?;
        let name = std::str::from_utf8(&text[..end]).ok()?.strip_prefix(NAME)?;
        if refuse_fork_name(name).is_some() {
            return None;
        }
        let seals = parse(&text[end..]).into_iter().filter(|seal| seal.made).map(|seal| seal.image);
        Some(Self { name: name.to_owned(), seals: seals.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_its_fork_and_the_images_that_were_made_of_it() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let list = format!("name try 1\n\n{one} 5\nabout 5 {{}}\n{two} 6 found\n{two} x\n{two} 8\n");
        let fork = Discarded::parse(list.as_bytes()).unwrap();
        assert_eq!(fork, Discarded { name: "try 1".into(), seals: vec![one, two] });
        for odd in [&b""[..], b"name a/b\n", b"name a", b"else\n", b"name \xff\n"] {
            assert_eq!(Discarded::parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_discarded_fork_is_forgotten_with_its_last_image() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(discarded(dir.path()).unwrap(), []);
        let lists = dir.path().join("forks").join(DIR);
        fs::create_dir_all(&lists).unwrap();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        fs::write(lists.join("1"), format!("name b\n{one} 5\n{two} 6\n")).unwrap();
        fs::write(lists.join("2"), format!("name a\n{two} 7\n")).unwrap();
        fs::write(lists.join("odd"), "odd").unwrap();
        let names =
            || -> Vec<String> { discarded(dir.path()).unwrap().into_iter().map(|fork| fork.name).collect() };
        assert_eq!(names(), ["a", "b"]);
        forget_discarded(dir.path(), &|image| *image == one).unwrap();
        assert_eq!(names(), ["b"]);
        forget_discarded(dir.path(), &|_| false).unwrap();
        assert_eq!(names(), [""; 0]);
        assert!(lists.join("odd").exists());
    }
}
