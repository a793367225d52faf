//! Modes of everything that pfimg makes: for its user alone, or for the group that shares a store.
//!
//! No other module decides a mode. A private store is the default: files are 0600 and folders 0700, whatever
//! the umask. A store for a group says so in a file, `pfimg.json`: files in it are 0660 and folders 02770, so
//! that the group is inherited. Existing files keep their mode.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The file that says how a store is shared. Without it the store is private.
const FILE: &str = "pfimg.json";
const FORMAT: &str = "pfimg.store";
const VERSION: u32 = 1;

/// The longest such file that is read, in bytes.
const MAX_FILE: u64 = 4 << 10;

/// Who may use new files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Its user alone.
    #[default]
    Private,
    /// The members of its group.
    Group,
}

/// The content of `pfimg.json`.
#[derive(Serialize, Deserialize)]
struct Settings {
    format: String,
    version: u32,
    sharing: Sharing,
}

impl Sharing {
    /// Returns how a store is shared. A file with no value that pfimg knows closes the store; so does a file
    /// that belongs neither to this user, nor to root, nor to the owner of the store.
    pub fn of(store: &Path) -> Self {
        match Self::read(store) {
            Ok(sharing) => sharing.unwrap_or_default(),
            Err(e) => {
                tracing::warn!("{} is ignored, the store is private: {e}", store.join(FILE).display());
                Self::Private
            }
        }
    }

    fn read(store: &Path) -> io::Result<Option<Self>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = match File::options().read(true).custom_flags(flags).open(store.join(FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let trusted = [0, rustix::process::geteuid().as_raw(), fs::metadata(store)?.uid()];
        if !metadata.is_file() || !trusted.contains(&metadata.uid()) {
            return Err(io::Error::other("it is not a regular file of this user, root or the store's owner"));
        }
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let settings: Settings = serde_json::from_slice(&text)?;
        if settings.format != FORMAT || settings.version != VERSION {
            return Err(io::Error::other("a newer pfimg wrote it"));
        }
        Ok(Some(settings.sharing))
    }

    /// The path and the bytes of the file that records this.
    pub(crate) fn settings(self, store: &Path) -> io::Result<(PathBuf, Vec<u8>)> {
        let settings = Settings { format: FORMAT.into(), version: VERSION, sharing: self };
        let mut text = serde_json::to_vec(&settings)?;
        text.push(b'\n');
        Ok((store.join(FILE), text))
    }

    /// The mode of a file.
    pub const fn file_mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Group => 0o660,
        }
    }

    /// The mode of a folder.
    pub const fn folder_mode(self) -> u32 {
        match self {
            Self::Private => 0o700,
            Self::Group => 0o2770,
        }
    }

    /// The mode of a folder, for libraries that make one.
    pub fn folder_permissions(self) -> Permissions {
        Permissions::from_mode(self.folder_mode())
    }

    /// Makes a file that must not exist, for reading and writing.
    pub fn create_new(self, path: &Path) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(self.file_mode());
        let file = options.open(path)?;
        self.grant(&file)?;
        Ok(file)
    }

    /// Opens a file with `options`, and makes it if it does not exist.
    pub fn open_or_create(self, options: &OpenOptions, path: &Path) -> io::Result<File> {
        let mut made = options.clone();
        made.mode(self.file_mode());
        if self == Self::Private {
            return made.create(true).open(path);
        }
        match options.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match made.create_new(true).open(path) {
            Ok(file) => self.grant(&file).map(|()| file),
            // Another program was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options.open(path),
            Err(e) => Err(e),
        }
    }

    /// Makes a folder, and the missing ones above it.
    pub fn create_dir_all(self, dir: &Path) -> io::Result<()> {
        if self == Self::Private {
            return DirBuilder::new().recursive(true).mode(self.folder_mode()).create(dir);
        }
        if dir.is_dir() {
            return Ok(());
        }
        match self.create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(dir.parent().filter(|above| !above.as_os_str().is_empty()).ok_or(e)?)?;
                self.create_dir(dir)
            }
            made => made,
        }
    }

    /// Makes a folder of the store in `root`, and the missing ones between, but never `root` itself: a store
    /// that was moved away while it is in use must not start again at its old path.
    pub fn create_dir_below(self, root: &Path, dir: &Path) -> io::Result<()> {
        if !dir.starts_with(root) || dir == root {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("it is not below {}", root.display()),
            ));
        }
        let make = || match self {
            Self::Private => DirBuilder::new().mode(self.folder_mode()).create(dir),
            Self::Group => self.create_dir(dir),
        };
        if dir.is_dir() {
            return Ok(());
        }
        let made = match (make(), dir.parent()) {
            (Err(e), Some(above)) if e.kind() == io::ErrorKind::NotFound && above != root => {
                self.create_dir_below(root, above)?;
                make()
            }
            (made, _) => made,
        };
        match made {
            // Another program was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            made => made,
        }
    }

    /// Makes a folder for a group. The folder gets its name only with its mode: another member who is faster
    /// than a chmod(2) would find it closed.
    fn create_dir(self, dir: &Path) -> io::Result<()> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let temp = dir.with_file_name(format!(".tmp-{}.{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&temp)?;
        let made = self.grant_dir(&temp).and_then(|()| {
            match renameat_with(CWD, &temp, CWD, dir, RenameFlags::NOREPLACE) {
                // Not every filesystem supports the flag. An empty folder is replaced then, which does no
                // harm.
                Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&temp, dir),
                renamed => Ok(renamed?),
            }
        });
        if made.is_err() {
            let _ = fs::remove_dir(&temp);
        }
        match made {
            Err(e) if dir.is_dir() => {
                tracing::debug!("another program made {}: {e}", dir.display());
                Ok(())
            }
            made => made,
        }
    }

    /// Opens a new file to the group, whatever the umask. A private file is closed since it was made.
    fn grant(self, file: &File) -> io::Result<()> {
        match self {
            Self::Private => Ok(()),
            Self::Group => file.set_permissions(Permissions::from_mode(self.file_mode())),
        }
    }

    /// Closes a file of this program to others, before anything is written to it.
    pub fn tighten(self, file: &File) -> io::Result<()> {
        let mode = file.metadata()?.mode() & 0o7777;
        let closed = mode & (self.file_mode() | 0o700);
        if mode == closed { Ok(()) } else { file.set_permissions(Permissions::from_mode(closed)) }
    }

    /// Makes a file executable for the users who may read it.
    pub(crate) fn make_runnable(self, file: &File) -> io::Result<()> {
        let mode = self.file_mode();
        file.set_permissions(Permissions::from_mode(mode | (mode >> 2 & 0o111)))
    }

    /// Opens a new folder to the group; only its maker knows its name.
    pub(crate) fn grant_dir(self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Private => Ok(()),
            Self::Group => fs::set_permissions(dir, self.folder_permissions()),
        }
    }
}

/// Returns the default mode of a folder of this process: what the umask leaves. The umask is read from /proc,
/// since setting it would affect other threads.
pub fn plain_folder_mode() -> u16 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask =
        status.lines().find_map(|line| u16::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
    0o777 & !umask.unwrap_or(0o022)
}

/// What other users may do in a store that is not meant for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Openness {
    /// The mode of the store's folder.
    pub mode: u32,
    /// Whether this is true for all users, and not for those of its group alone.
    pub everybody: bool,
    /// Whether they may also change it.
    pub writes: bool,
}

/// The folders of a store that hold its content.
const FOLDERS: [&str; 6] = ["images", "blobs", "blobs/sha256", "forks", "refs", "audit"];

/// Returns what others may do in a store, judged by its modes as ssh(1) judges a key: folders above the store
/// do not count.
pub(crate) fn openness(store: &Path, sharing: Sharing) -> Option<Openness> {
    let mode_of = |path: &Path| fs::metadata(path).map(|metadata| metadata.mode() & 0o7777);
    let mode = mode_of(store).ok()?;
    let inside: Vec<u32> = FOLDERS.iter().filter_map(|name| mode_of(&store.join(name)).ok()).collect();
    let open = |shift: u32| {
        let bits = |mode: u32| mode >> shift & 0o7;
        // A user who cannot search the folder reaches nothing in it.
        if bits(mode) & 0o1 == 0 {
            return None;
        }
        let writes = |mode: u32| bits(mode) & 0o3 == 0o3 && mode & 0o1000 == 0;
        let reads = inside.iter().any(|mode| bits(*mode) & 0o5 != 0);
        let writes = writes(mode) || inside.iter().any(|mode| writes(*mode));
        (reads || writes).then_some(writes)
    };
    if let Some(writes) = open(0) {
        return Some(Openness { mode, everybody: true, writes });
    }
    if sharing == Sharing::Group {
        return None;
    }
    open(3).map(|writes| Openness { mode, everybody: false, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn new_files_are_for_the_user_or_the_group_and_existing_files_keep_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        for (sharing, file, folder) in [(Sharing::Private, 0o600, 0o700), (Sharing::Group, 0o660, 0o2770)] {
            let top = dir.path().join(format!("{sharing:?}"));
            sharing.create_dir_all(&top.join("a/b")).unwrap();
            sharing.create_dir_all(&top.join("a/b")).unwrap();
            sharing.create_new(&top.join("a/new")).unwrap();
            assert!(sharing.create_new(&top.join("a/new")).is_err());
            let append = || sharing.open_or_create(File::options().append(true), &top.join("a/log")).unwrap();
            append();
            assert_eq!([mode(&top), mode(&top.join("a")), mode(&top.join("a/b"))], [folder; 3]);
            assert_eq!([mode(&top.join("a/new")), mode(&top.join("a/log"))], [file; 2]);
            fs::set_permissions(top.join("a/log"), Permissions::from_mode(0o644)).unwrap();
            append();
            assert_eq!(mode(&top.join("a/log")), 0o644);
            assert_eq!(fs::read_dir(top.join("a")).unwrap().count(), 3, "nothing else is left there");
        }
    }

    #[test]
    fn a_folder_of_a_store_is_made_and_never_the_store() {
        let dir = tempfile::tempdir().unwrap();
        for sharing in [Sharing::Private, Sharing::Group] {
            let root = dir.path().join(format!("{sharing:?}"));
            let below = root.join("a/b/c");
            let refused = sharing.create_dir_below(&root, &below).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::NotFound);
            assert!(!root.exists());
            fs::create_dir(&root).unwrap();
            sharing.create_dir_below(&root, &below).unwrap();
            sharing.create_dir_below(&root, &below).unwrap();
            assert_eq!([mode(&root.join("a")), mode(&below)], [sharing.folder_mode(); 2]);
            for other in [&root, dir.path()] {
                let refused = sharing.create_dir_below(&root, other).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
            }
        }
    }

    #[test]
    fn only_a_file_that_makes_sense_opens_a_store_to_its_group() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Sharing::of(dir.path()), Sharing::Private);
        let (path, text) = Sharing::Group.settings(dir.path()).unwrap();
        fs::write(&path, &text).unwrap();
        assert_eq!(Sharing::of(dir.path()), Sharing::Group);
        let newer = String::from_utf8(text.clone()).unwrap().replace("\"version\":1", "\"version\":2");
        for odd in [&b""[..], b"{}", b"group", newer.as_bytes(), &text[..text.len() - 3]] {
            fs::write(&path, odd).unwrap();
            assert_eq!(Sharing::of(dir.path()), Sharing::Private, "{odd:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("elsewhere"), &text).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert_eq!(Sharing::of(dir.path()), Sharing::Private, "a link is not followed");
    }

    #[test]
    fn a_store_is_open_where_others_reach_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let open = |top: u32, inside: u32, sharing| {
            let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            set(dir.path(), top);
            for name in ["blobs", "blobs/sha256"] {
                set(&dir.path().join(name), inside);
            }
            openness(dir.path(), sharing).map(|open| (open.everybody, open.writes))
        };
        let private = Sharing::Private;
        assert_eq!(open(0o700, 0o755, private), None);
        assert_eq!(open(0o755, 0o755, private), Some((true, false)));
        assert_eq!(open(0o711, 0o711, private), Some((true, false)), "names can be guessed");
        assert_eq!(open(0o755, 0o700, private), None, "there is nothing to read");
        assert_eq!(open(0o777, 0o700, private), Some((true, true)), "folders can be replaced");
        assert_eq!(open(0o1777, 0o700, private), None);
        assert_eq!(open(0o750, 0o750, private), Some((false, false)));
        assert_eq!(open(0o2770, 0o2770, private), Some((false, true)));
        assert_eq!(open(0o2770, 0o2770, Sharing::Group), None);
        assert_eq!(open(0o2775, 0o2775, Sharing::Group), Some((true, false)));
    }
}
