//! `--store-mode`: the users of a store, and a warning if other users can read it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Sharing, Store};

/// The users of what pfimg makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StoreMode {
    Private,
    Group,
}

/// How a store is shared.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct SharingArg {
    /// Access to the store. `private`: only you. `group`: all members of the directory's group. The store
    /// remembers it [default: private]
    #[arg(long, value_name = "WHO")]
    store_mode: Option<StoreMode>,
}

/// How often, and how many times, pfimg looks at a directory that is not a store: another program may be making
/// one there.
const MAKING_LOOK: Duration = Duration::from_millis(5);
const MAKING_LOOKS: u32 = 20;

impl SharingArg {
    /// Opens a store. Makes one in an empty or missing directory. A directory with other files stays as it is.
    pub(crate) fn open_or_create(self, path: &Path) -> Result<Store> {
        let wanted = self.store_mode.map(|mode| match mode {
            StoreMode::Private => Sharing::Private,
            StoreMode::Group => Sharing::Group,
        });
        let mut looks = 0;
        loop {
            let opened = match Store::open(path) {
                Err(error) if error.kind() == ErrorKind::NotAStore => error,
                Ok(store) => {
                    return match wanted.filter(|wanted| *wanted != store.sharing()) {
                        Some(wanted) => share(store, wanted),
                        None => Ok(store),
                    };
                }
                other => return other,
            };
            let nothing_there = match fs::read_dir(path) {
                Ok(mut entries) => entries.next().is_none(),
                Err(e) => e.kind() == std::io::ErrorKind::NotFound,
            };
            if nothing_there {
                return Store::create_shared(path, wanted.unwrap_or_default());
            }
            // Another program may be making the store: the directory was missing or empty a moment ago.
            looks += 1;
            if looks == MAKING_LOOKS {
                return Err(opened);
            }
            std::thread::sleep(MAKING_LOOK);
        }
    }
}

/// Changes how an existing store is shared.
fn share(store: Store, sharing: Sharing) -> Result<Store> {
    let at = store.root().display().to_string();
    let store = store.share(sharing).map_err(|e: Error| e.with_hint("run this as the owner of the store"))?;
    eprintln!("pfimg: {at} is now {}; existing files in it keep their modes", shown(sharing));
    let command = match sharing {
        Sharing::Private => format!("chmod -R go= {at}"),
        Sharing::Group => format!("chmod -R g+rwX {at} && find {at} -type d -exec chmod g+s {{}} +"),
    };
    eprintln!("pfimg: to change these too: {command}");
    Ok(store)
}

fn shown(sharing: Sharing) -> &'static str {
    match sharing {
        Sharing::Private => "private",
        Sharing::Group => "for its group",
    }
}

/// Warns in one line that other users can read a store, unless its user chose that.
pub(crate) fn tell_if_open(store: &Store) {
    let Some(open) = store.openness() else { return };
    let at = store.root().display();
    let who = if open.everybody { "other users" } else { "members of its group" };
    let what = if open.writes { "read and change" } else { "read" };
    eprintln!(
        "pfimg: {who} can {what} the store {at} (mode {:04o}). To close it: chmod -R go= {at}",
        open.mode
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &Path) -> Result<Store> {
        SharingArg { store_mode: None }.open_or_create(path)
    }

    #[test]
    fn a_directory_with_other_files_does_not_become_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/store");
        assert_eq!(made(&path).unwrap().root(), path.canonicalize().unwrap());
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        made(&other).unwrap();
        fs::remove_dir_all(&other).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("letter"), "dear").unwrap();
        assert_eq!(made(&other).unwrap_err().kind(), ErrorKind::NotAStore);
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    }

    #[test]
    fn a_store_remembers_how_it_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let open = |store_mode| {
            SharingArg { store_mode }.open_or_create(&dir.path().join("store")).unwrap().sharing()
        };
        assert_eq!(open(Some(StoreMode::Group)), Sharing::Group);
        assert_eq!(open(None), Sharing::Group);
        assert_eq!(open(Some(StoreMode::Private)), Sharing::Private);
        assert_eq!(open(None), Sharing::Private);
    }

    #[test]
    fn programs_that_make_one_store_at_the_same_time_all_get_it() {
        for store_mode in [None, Some(StoreMode::Group)] {
            for _ in 0..50 {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("store");
                std::thread::scope(|scope| {
                    for _ in 0..8 {
                        scope.spawn(|| SharingArg { store_mode }.open_or_create(&path).unwrap());
                    }
                });
            }
        }
    }
}
