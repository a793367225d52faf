//! Where a store's forks are changed: through the mount that writes them, or on disk without such a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::holder::{self, Holder};
use super::own::OwnMount;
use super::secret::SecretArg;
use super::status::{read_status, read_statuses};
use crate::cache::{Cache, CacheConfig};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, BaseReader, Fork, Registry};
use crate::images;
use crate::mount::mountinfo::{Mounted, mounts};
use crate::mount::silent;
use crate::ops::back::Request;
use crate::ops::line;
use crate::store::{Store, tags};

/// Memory, in bytes, for the few blobs that are read to make or list forks.
const CACHE: u64 = 64 << 20;

/// How long a mount may take to report the result of a request, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

/// Where forks are changed.
pub(crate) enum Place {
    /// Under this mountpoint.
    Mount(PathBuf),
    /// On disk, with no other writer.
    Disk(Box<Registry>),
}

impl Place {
    /// The names of the forks.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let mountpoint = match self {
            Self::Mount(mountpoint) => mountpoint,
            Self::Disk(registry) => return Ok(registry.names()),
        };
        let folder = mountpoint.join("forks");
        let failed = |e| Error::io(e, format!("cannot list {}", folder.display()));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            // A fork's name is UTF-8.
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The mount that writes a store's forks.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) mountpoint: PathBuf,
    /// Its cache.
    pub(crate) cache_dir: PathBuf,
}

/// The result of a search for the mount that writes a store's forks.
enum Writing {
    Mount(Served),
    /// None of the mounts that answer. A silent one may be the writer.
    Unknown(Mounted),
    None,
}

/// Finds the mount that writes a store's forks. Keeps a mount that ends itself until this process ends.
fn writing_mount(store: &Store) -> Result<Writing> {
    if let Some(own) = OwnMount::of(store) {
        own.keep()?;
    }
    let found = look_for_mount(store)?;
    if let Writing::Mount(served) = &found
        && let Some(own) = OwnMount::at(store, &served.mountpoint)
        && own.keep()?
    {
        // It may have ended before this process kept it.
        return look_for_mount(store);
    }
    Ok(found)
}

fn look_for_mount(store: &Store) -> Result<Writing> {
    // Mounts of other stores and read-only mounts are not asked: a silent one would block this.
    let may_write = |mounted: &Mounted| {
        mounted.is_ours()
            && mounted.source == store.root()
            && !mounted.options.split(',').any(|option| option == "ro")
    };
    let mounts: Vec<_> = mounts()?.into_iter().filter(may_write).collect();
    let folders: Vec<_> = mounts.iter().map(|mounted| mounted.path.clone()).collect();
    let mut found = Writing::None;
    for (mounted, status) in mounts.into_iter().zip(read_statuses(&folders)) {
        match status {
            Ok(status)
                if status.writes_forks
                    && status.info.store.to_string_lossy() == store.root().to_string_lossy() =>
            {
                return Ok(Writing::Mount(Served {
                    mountpoint: mounted.path,
                    cache_dir: status.info.cache_dir,
                }));
            }
            Err(error) if error.kind() == ErrorKind::NoAnswer => found = Writing::Unknown(mounted),
            // A mount of another user, or a dead one, gives no status and is skipped.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(found)
}

/// How long a new mount may take to get hold of the forks, which a command may be writing.
const TAKING: Duration = Duration::from_secs(3);

/// Finds the mount that writes a store's forks. Without one, makes the own mount of this user, which ends when
/// it is idle.
pub(crate) fn mounted(store: &Store) -> Result<Served> {
    let look = || -> Result<Option<Served>> {
        match writing_mount(store)? {
            Writing::Mount(served) => Ok(Some(served)),
            Writing::Unknown(mounted) if Holder::of(store).is_some() => Err(silent::no_answer(&mounted)),
            Writing::Unknown(_) | Writing::None => Ok(None),
        }
    };
    if let Some(served) = look()? {
        return Ok(served);
    }
    let own = OwnMount::of(store).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "there is no directory to mount the store in: XDG_RUNTIME_DIR is not set, and /tmp does not exist",
        )
    })?;
    own.prepare()?;
    let alone = own.alone()?;
    // Another run may have made it in the meantime.
    if let Some(served) = look()? {
        return Ok(served);
    }
    // A mount answers but does not write if another program writes the forks: it takes over when that program
    // ends.
    if read_status(&own.mountpoint()).is_err() {
        own.start()?;
    }
    drop(alone);
    let asked = Instant::now();
    loop {
        match look()? {
            Some(served) => return Ok(served),
            None if asked.elapsed() < TAKING => std::thread::sleep(LOOK),
            None => return Err(holder::busy(store)),
        }
    }
}

/// The result of asking the kernel for data that programs wrote.
#[derive(Deserialize)]
struct Pushed {
    #[serde(rename = "pushed")]
    _pushed: bool,
    /// Whether the fork has unsealed changes; `None` from an older daemon.
    unsealed: Option<bool>,
}

/// Makes the mount that writes a fork take in written data that the kernel still keeps. Then the fork on disk
/// equals what programs see. Without such a mount the kernel keeps no data.
pub(crate) fn take_in(store: &Store, fork: &str) -> Result<()> {
    let doing = format!("cannot take in data that programs wrote to fork {fork:?}");
    let mountpoint = match writing_mount(store)? {
        Writing::Mount(served) => served.mountpoint,
        Writing::Unknown(mounted) if Holder::of(store).is_some() => {
            return Err(silent::no_answer(&mounted).context(doing));
        }
        Writing::Unknown(_) | Writing::None => return Ok(()),
    };
    match push(&mountpoint, fork) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!(
                "pfimg: data that programs are writing to fork {fork:?} may be missing: only the user who mounted the store can take it in"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Does the same through a given mount.
pub(crate) fn push(mountpoint: &Path, fork: &str) -> Result<()> {
    let doing = format!("cannot take in data that programs wrote to fork {fork:?}");
    let Pushed { .. } = ask(mountpoint, fork, &doing, |number| format!(".push-{number}"))?;
    Ok(())
}

/// Finds the mount that writes a store's forks, or takes its place.
pub(crate) fn find(store: &Arc<Store>) -> Result<Place> {
    let silent = match writing_mount(store)? {
        Writing::Mount(served) => return Ok(Place::Mount(served.mountpoint)),
        Writing::Unknown(mounted) => Some(mounted),
        Writing::None => None,
    };
    let registry = registry(store, false)?;
    if registry.is_writable() {
        return Ok(Place::Disk(Box::new(registry)));
    }
    Err(silent.map_or_else(|| holder::busy(store), |mounted| silent::no_answer(&mounted)))
}

/// Returns the image that a fork was made of: its image before the first seal, or its present one. If that has
/// left the store, returns the next one that is there.
pub(crate) fn origin(store: &Store, fork: &Fork) -> Result<Option<Digest>> {
    for seal in fork.seals()? {
        if !seal.made {
            if store.images().contains(&seal.image) {
                return Ok(Some(seal.image));
            }
            continue;
        }
        let Ok(image) = store.image(&seal.image) else { continue };
        match image.manifest.parents.first() {
            None => return Ok(None),
            Some(parent) if store.images().contains(parent) => return Ok(Some(*parent)),
            Some(_) => {}
        }
    }
    fork.lineage()
}

/// Finds an image by a name from the user, which may be `FORK@SEAL`.
pub(crate) fn image(store: &Store, name: &str) -> Result<Digest> {
    line::image(store, name).map_err(|error| {
        let is_fork = fork::refuse_fork_name(name).is_none()
            && store.root().join("forks/heads").join(format!("{name}.json")).exists();
        if error.kind() == ErrorKind::NotFound && is_fork {
            return error.with_hint(format!("make an image of fork {name:?} with `pfimg seal {name}`"));
        }
        error
    })
}

/// How often a fork is read again because another program seals or discards it.
const ATTEMPTS: usize = 3;

/// Fails if a fork has unsealed work, or if that is unknown.
pub(crate) fn refuse_unsealed(store: &Arc<Store>, place: &Place, name: &str) -> Result<()> {
    let unsealed = match place {
        Place::Mount(mountpoint) => {
            let doing = format!("cannot tell whether fork {name:?} has unsealed work");
            let pushed: Pushed = ask(mountpoint, name, &doing, |number| format!(".push-{number}"))?;
            pushed.unsealed.map_or_else(|| unsealed_on_disk(store, name), Ok)
        }
        Place::Disk(registry) => registry.get(name).map(|fork| fork.damage().is_some() || fork.is_changed()),
    };
    let unsealed = unsealed.map_err(|error| {
        let what = format!("cannot tell whether fork {name:?} has unsealed work");
        // The fork exists, and its image does not: damage.
        let is_there = || fork::beside::OnDisk::read(store.root(), name).is_ok();
        if error.kind() == ErrorKind::NotFound && is_there() {
            return Error::new(ErrorKind::Missing, format!("{what}: {}", error.message()))
                .with_hint("use --force to discard it anyway");
        }
        error.context(what).with_hint("use --force to discard it anyway")
    })?;
    if !unsealed {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, format!("fork {name:?} has unsealed work"))
        .with_hint(format!("seal it with `pfimg seal {name}`, or discard it with --force")))
}

fn unsealed_on_disk(store: &Arc<Store>, name: &str) -> Result<bool> {
    let mut attempt = 1;
    loop {
        let read = registry(store, true).and_then(|registry| Ok(registry.get(name)?.is_changed()));
        match read {
            Err(e) if attempt < ATTEMPTS && matches!(e.kind(), ErrorKind::Missing | ErrorKind::Damaged) => {
                attempt += 1;
            }
            read => return read,
        }
    }
}

/// Opens the forks on disk.
pub(crate) fn registry(store: &Arc<Store>, read_only: bool) -> Result<Registry> {
    let options = fork::Options { read_only, ..fork::Options::default() };
    Registry::open(store.root(), reader(store), options)
}

/// Reads the images that forks rest on.
pub(crate) fn reader(store: &Arc<Store>) -> Arc<dyn BaseReader> {
    let cache = Arc::new(Cache::new(
        Arc::clone(store),
        &CacheConfig { heap_bytes: CACHE, disk_bytes: CACHE, dir: super::mount::default_cache_dir() },
    ));
    images::fork_reader(Arc::clone(store), cache)
}

/// Fails if the user names a secret for a seal that a mount will make with another one.
pub(crate) fn check_secret(mountpoint: &Path, secret: &SecretArg) -> Result<()> {
    let Some(secret) = secret.read()? else { return Ok(()) };
    match read_status(mountpoint)?.info.session_secret {
        Some(its) if its == secret.fingerprint() => Ok(()),
        its => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the store is mounted at {}, which chains ledgers with {}",
                mountpoint.display(),
                if its.is_some() { "another secret" } else { "a fresh secret each" }
            ),
        )
        .with_hint("give the secret to `pfimg mount`, or unmount the store, or seal without a secret")),
    }
}

/// The result of a seal or a restore.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {
    pub(crate) image: Digest,
    pub(crate) new: bool,
    pub(crate) reports: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Done(T),
    Failed(Failed),
}

/// Why a mount refused a request. Older daemons send no kind, and put the hint into the error.
#[derive(Deserialize)]
struct Failed {
    error: String,
    exit_code: u8,
    kind: Option<String>,
    hint: Option<String>,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let Failed { error, exit_code, kind, hint } = failed;
        let by_code = || match exit_code {
            2 => ErrorKind::InvalidInput,
            4 => ErrorKind::Damaged,
            _ => ErrorKind::Io(None),
        };
        let kind = kind.and_then(|kind| ErrorKind::named(&kind)).unwrap_or_else(by_code);
        // The text comes from `Vfs`, in the daemon.
        let error = Self::new(kind, error);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Sends a request about a fork to a mount: makes a directory in its `.snap/`, named by a number, and reads the
/// answer under that number.
pub(crate) fn ask<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    name: impl FnOnce(&str) -> String,
) -> Result<T> {
    let number = fork::GenId::random()?.to_string();
    let name = name(&number);
    ask_as(mountpoint, fork, doing, &number, &name)
}

fn ask_as<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    number: &str,
    name: &str,
) -> Result<T> {
    let folder = fork_folder(mountpoint, fork)?;
    let made = std::fs::create_dir(folder.join(".snap").join(name));
    let answer = answer_to(mountpoint, number, made.is_ok());
    match (made, answer.ok().and_then(|text| serde_json::from_slice(&text).ok())) {
        (Ok(()), Some(Answer::Done(done))) => Ok(done),
        (_, Some(Answer::Failed(failed))) => Err(failed.into()),
        (Err(e), _) => Err(explain(e, doing.to_owned(), mountpoint)),
        (Ok(()), None) => Err(Error::new(ErrorKind::Io(None), format!("{doing}: the daemon sent no reply"))),
    }
}

/// The most bytes of a request in one name, before base64. A name has at most 255 bytes.
const PART: usize = 150;

/// Sends a request of any length about a fork to a mount. The request goes in parts, each as the name of a
/// directory in `.snap/`: the kernel checks the same permission as for a seal, and nothing remains.
pub(crate) fn ask_for<T: DeserializeOwned>(
    mountpoint: &Path,
    fork: &str,
    doing: &str,
    request: &Request,
) -> Result<T> {
    let snap = fork_folder(mountpoint, fork)?.join(".snap");
    let number = fork::GenId::random()?.to_string();
    let bytes = serde_json::to_vec(request)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, doing.to_owned()).with_source(e))?;
    for (at, part) in bytes.chunks(PART).enumerate() {
        let name = format!(".ask-{number}-{at}={}", BASE64URL_NOPAD.encode(part));
        std::fs::create_dir(snap.join(name)).map_err(|e| explain(e, doing.to_owned(), mountpoint))?;
    }
    ask_as(mountpoint, fork, doing, &number, &format!(".do-{number}"))
}

/// Reads the answer of a mount to the request with a number. If it `will` answer, waits for that: the mount
/// answers once the kernel shows the result, a moment later.
fn answer_to(mountpoint: &Path, number: &str, will: bool) -> std::io::Result<Vec<u8>> {
    let done = mountpoint.join(format!(".pfimg/done-{number}.json"));
    let mut answer = std::fs::read(&done);
    let asked = Instant::now();
    while will
        && answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        && asked.elapsed() < PATIENCE
    {
        std::thread::sleep(LOOK);
        answer = std::fs::read(&done);
    }
    answer
}

/// Discards a fork of a mount, with `force` also one with unsealed work. Returns once the kernel no longer
/// shows it.
pub(crate) fn discard_under(mountpoint: &Path, name: &str, force: bool) -> Result<()> {
    let folder = fork_folder(mountpoint, name)?;
    // The daemon checks again: a program may have written since this process checked.
    let number = format!("{}{}", if force { "" } else { "sealed-" }, fork::GenId::random()?);
    let doing = format!("cannot discard fork {name:?}");
    // Moving a fork there discards it at once, with everything in it.
    std::fs::rename(folder, mountpoint.join(format!(".pfimg/discarded-{number}")))
        .map_err(|e| explain(e, doing.clone(), mountpoint))?;
    answer_to(mountpoint, &number, true).map(drop).map_err(|error| {
        let what = format!(
            "fork {name:?} is discarded, but the daemon did not confirm it: programs may still see it"
        );
        Error::new(ErrorKind::Io(None), what).with_source(error)
    })
}

/// Returns a fork's directory under a mountpoint. Fails for a word that is not a fork's name, such as a path.
pub(crate) fn fork_folder(mountpoint: &Path, name: &str) -> Result<PathBuf> {
    let folder = mountpoint.join("forks").join(name);
    if fork::refuse_fork_name(name).is_some() || !folder.exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no fork {name:?}"))
            .with_name(name)
            .with_hint("list the forks with `pfimg forks`"));
    }
    Ok(folder)
}

/// Returns where a fork's files are under a mountpoint: the directory itself, and not the link in `work/`.
/// Programs that watch a directory or walk through it do not follow a link given to them.
pub(crate) fn files_of(mountpoint: &Path, name: &str) -> PathBuf {
    mountpoint.join("forks").join(name).join("world/fs")
}

/// Returns where a new fork's directory will be. Fails if the name is invalid or taken.
pub(crate) fn new_fork_folder(store: &Store, mountpoint: &Path, name: &str) -> Result<PathBuf> {
    if let Some(why) = fork::refuse_new_fork_name(name) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} cannot be a fork's name: {why}")));
    }
    let folder = mountpoint.join("forks").join(name);
    if folder.exists() {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a fork {name:?} already")));
    }
    if tags::is_there(store.root(), name) {
        let what = format!("{name:?} cannot be a fork's name: a tag has it");
        return Err(Error::new(ErrorKind::AlreadyExists, what).with_hint("choose another name"));
    }
    Ok(folder)
}

/// Warns that a command still runs in a discarded fork.
pub(crate) fn warn_of_run(fork: &str) {
    eprintln!(
        "pfimg: a command of `pfimg run` is still in fork {fork:?}: its files are gone, and it cannot write there. \
         End the command"
    );
}

/// Warns that a command still runs in a restored fork.
pub(crate) fn warn_of_restore(fork: &str) {
    eprintln!(
        "pfimg: a command of `pfimg run` is in fork {fork:?}: it sees the restored files. A changed file that it has open \
         keeps its old content, and cannot be written (\"Stale file handle\")"
    );
}

/// Explains a failed call under a mount, which gives only an error number.
pub(crate) fn explain(error: std::io::Error, doing: String, mountpoint: &Path) -> Error {
    let known = matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::InvalidInput
    );
    let failed = Error::io(error, doing);
    if known {
        return failed;
    }
    failed.with_hint(format!(
        "read the log of the mount at {}; `pfimg status` shows its path",
        mountpoint.display()
    ))
}
