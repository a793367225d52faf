//! Where a store's forks are changed: through the mount that writes them, or on disk without such a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holder::{self, Holder};
use super::own::OwnMount;
use super::secret::SecretArg;
use super::statuses::{read_status, read_statuses};
use crate::control::Client;
use crate::daemon::calls;
use crate::daemon::forks::registry;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, Fork, Registry};
use crate::mount::mountinfo::{Mounted, mounts};
use crate::mount::silent;
use crate::store::Store;

/// Where forks are changed.
pub(crate) enum Place {
    /// By this mount.
    Mount(Served),
    /// On disk, with no other writer.
    Disk(Box<Registry>),
}

impl Place {
    /// The names of the forks.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        match self {
            Self::Mount(served) => calls::names(&served.client),
            Self::Disk(registry) => Ok(registry.names()),
        }
    }
}

/// The mount that writes a store's forks.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) mountpoint: PathBuf,
    /// Its cache.
    pub(crate) cache_dir: PathBuf,
    /// Asks its daemon.
    pub(crate) client: Client,
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
                    client: Client::of(&status.info),
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
const LOOK: Duration = Duration::from_millis(1);

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

/// Makes the mount that writes a fork take in written data that the kernel still keeps. Then the fork on disk
/// equals what programs see. Without such a mount the kernel keeps no data.
pub(crate) fn take_in(store: &Store, fork: &str) -> Result<()> {
    let doing = format!("cannot take in data that programs wrote to fork {fork:?}");
    let client = match writing_mount(store)? {
        Writing::Mount(served) => served.client,
        Writing::Unknown(mounted) if Holder::of(store).is_some() => {
            return Err(silent::no_answer(&mounted).context(doing));
        }
        Writing::Unknown(_) | Writing::None => return Ok(()),
    };
    match calls::flush(&client, fork) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!(
                "pfimg: data that programs are writing to fork {fork:?} may be missing: only the user who mounted the store can take it in"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Finds the mount that writes a store's forks, or takes its place.
pub(crate) fn find(store: &Arc<Store>) -> Result<Place> {
    let silent = match writing_mount(store)? {
        Writing::Mount(served) => return Ok(Place::Mount(served)),
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

/// Fails if a fork has unsealed work, or if that is unknown.
pub(crate) fn refuse_unsealed(store: &Arc<Store>, place: &Place, name: &str) -> Result<()> {
    let unsealed = match place {
        Place::Mount(served) => calls::flush(&served.client, name),
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
