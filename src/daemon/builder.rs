//! Builds a mount: its cache, its view of the store, its log and its connection to the kernel.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use super::handle::MountedStore;
use super::handler::Handler;
use super::serve::{Event, SETTLE, Serving, Stopper, UnmountOnDrop, session_end};
use super::server::Server;
use super::socket::Socket;
use super::tasks::Tasks;
use super::{dirs, first};
use crate::audit::{Log, note};
use crate::cache::{Cache, CacheConfig};
use crate::control::{MountInfo, Numbering, protocol};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fuse::{OpenRoot, Prepared, SessionConfig};
use crate::layers::effects::Secret;
use crate::mount::attach::{absolute, mount, prepare};
use crate::mount::options::MountOptions;
use crate::mount::own::{Place, prepare_thread};
use crate::store::Store;
use crate::sync::Mutex;
use crate::util::limits;
use crate::vfs::{SealPolicy, Vfs, VfsConfig};

/// Memory for decompressed blobs and file trees unless another size is given, in bytes.
const MEMORY: u64 = 256 << 20;

/// Disk space for decompressed blobs unless another size is given, in bytes.
const DISK: u64 = 8 << 30;

/// How long a fork has no writes before it is sealed, unless another policy is given.
const IDLE: std::time::Duration = std::time::Duration::from_secs(5);

/// Options of a mount. [`Builder::mount`] makes it.
#[derive(Clone, Debug)]
#[must_use = "nothing is mounted before `mount` is called"]
#[allow(clippy::struct_excessive_bools, reason = "each is a separate option")]
pub struct Builder {
    store: Arc<Store>,
    mountpoint: PathBuf,
    options: MountOptions,
    cache_dir: Option<PathBuf>,
    cache_memory: u64,
    cache_disk: u64,
    log_file: Option<PathBuf>,
    mine: Option<bool>,
    reveal_secrets: bool,
    xattrs: bool,
    numbering: Numbering,
    holes: bool,
    spin: bool,
    writeback: bool,
    seal: SealPolicy,
    audit: bool,
    secret: Option<Secret>,
}

impl MountedStore {
    /// Returns the options of a mount of `store` at `mountpoint`, an existing, empty directory.
    pub fn builder(store: impl Into<Arc<Store>>, mountpoint: impl Into<PathBuf>) -> Builder {
        Builder::new(store.into(), mountpoint.into())
    }
}

impl Builder {
    fn new(store: Arc<Store>, mountpoint: PathBuf) -> Self {
        Self {
            store,
            mountpoint,
            options: MountOptions::default(),
            cache_dir: None,
            cache_memory: MEMORY,
            cache_disk: DISK,
            log_file: None,
            mine: None,
            reveal_secrets: false,
            xattrs: false,
            numbering: Numbering::default(),
            holes: false,
            spin: true,
            writeback: false,
            seal: SealPolicy::Idle(IDLE),
            audit: true,
            secret: None,
        }
    }

    /// Sets the directory for decompressed blobs of 1 MiB and more. Several mounts may share it, and it may be deleted at any
    /// time. Without this call it is `pfimg` in `$XDG_CACHE_HOME` or `~/.cache`.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Sets the memory for decompressed blobs and file trees, in bytes. Without this call it is 256 MiB.
    pub fn cache_memory(mut self, bytes: u64) -> Self {
        self.cache_memory = bytes;
        self
    }

    /// Sets the size of the cache directory, in bytes. Without this call it is 8 GiB.
    pub fn cache_disk(mut self, bytes: u64) -> Self {
        self.cache_disk = bytes;
        self
    }

    /// Decides when the mount seals forks without being asked. Without this call it does so after 5 s without writes, and when
    /// the mount ends.
    pub fn seal(mut self, policy: SealPolicy) -> Self {
        self.seal = policy;
        self
    }

    /// Takes no writes.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.options.read_only = read_only;
        self
    }

    /// Lets other users use the mount. An ordinary user needs `user_allow_other` in `/etc/fuse.conf`.
    pub fn allow_other(mut self, allow: bool) -> Self {
        self.options.allow_other = allow;
        self
    }

    /// Mounts over a directory that is not empty, and hides its files until the mount ends.
    pub fn nonempty(mut self, nonempty: bool) -> Self {
        self.options.nonempty = nonempty;
        self
    }

    /// Lets the kernel cache writes. Small writes are then fast, and the mount gets them at close(2) or fsync(2) at the latest.
    /// If this process dies, writes to files that are open and not synced are lost.
    pub fn writeback(mut self, writeback: bool) -> Self {
        self.writeback = writeback;
        self
    }

    /// Writes this mount's events to the store's audit log. Violations of the store's integrity are recorded in any case.
    /// Without this call it does.
    pub fn audit(mut self, audit: bool) -> Self {
        self.audit = audit;
        self
    }

    /// Sets the secret that chains the ledgers of sealed images. Without it each ledger gets a fresh one.
    pub fn session_secret(mut self, secret: Option<Secret>) -> Self {
        self.secret = secret;
        self
    }

    /// Decides how files of images get their inode numbers.
    pub fn numbering(mut self, numbering: Numbering) -> Self {
        self.numbering = numbering;
        self
    }

    /// Answers extended attributes and access control lists, which makes `ls -l` several times slower.
    pub fn xattrs(mut self, xattrs: bool) -> Self {
        self.xattrs = xattrs;
        self
    }

    /// Reports holes in files to lseek(2), which costs a request each time. It excludes [`Builder::writeback`].
    pub fn holes(mut self, holes: bool) -> Self {
        self.holes = holes;
        self
    }

    /// Keeps a second core awake while requests come in a row, on machines with two cores. Requests then take half the time.
    /// Without this call it does.
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Shows files of other users as this user's, so that this user can read and change them. Without this call it does so for
    /// an ordinary user whose mount no other user may use.
    pub fn show_as_mine(mut self, mine: bool) -> Self {
        self.mine = Some(mine);
        self
    }

    /// Shows the session secrets that some ledgers hold. A program that reads such a secret can forge its ledger.
    pub fn reveal_secrets(mut self, reveal: bool) -> Self {
        self.reveal_secrets = reveal;
        self
    }

    /// Sets all options of the mount at once.
    #[doc(hidden)]
    pub fn options(mut self, options: MountOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets the file that `.pfimg/status.json` names as the log of this process.
    #[doc(hidden)]
    pub fn log_file(mut self, file: Option<PathBuf>) -> Self {
        self.log_file = file;
        self
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the mountpoint. [`Builder::check`] makes it absolute.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Checks that the store can be mounted there, and makes all paths absolute. Unmounts a dead mount of pfimg at the
    /// mountpoint. [`Builder::mount`] does this, too.
    ///
    /// # Errors
    /// - `NotFound` or `NotADirectory`: the mountpoint does not exist, or is a file.
    /// - `Busy` or `NoAnswer`: a store is mounted there, or a filesystem that is dead.
    /// - `InvalidInput`: the store or the cache lies below the mountpoint, or two options exclude each other.
    pub fn check(mut self) -> Result<Self> {
        if self.holes && self.writeback {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a mount whose writes the kernel caches cannot report holes in files",
            )
            .with_hint("choose one of the two"));
        }
        self.mountpoint = absolute(&self.mountpoint)?;
        prepare(&self.mountpoint)?;
        let cache_dir = absolute_dir(&self.cache_dir_or_default())?;
        for (path, what) in [(self.store.root(), "the store"), (&*cache_dir, "the cache directory")] {
            refuse_below(&self.mountpoint, path, what)?;
        }
        self.cache_dir = Some(cache_dir);
        Ok(self)
    }

    /// Whether other users' files are shown as the mounting user's.
    fn is_mine(&self) -> bool {
        // If others have access, their files must stay theirs.
        self.mine.unwrap_or_else(|| !rustix::process::geteuid().is_root() && !self.options.allow_other)
    }

    /// Mounts the store. Returns once the mount answers.
    ///
    /// The mount is served by threads of this process. Threads of this process may use it like those of any other. If the
    /// process is killed while one of its threads waits for an answer, the kernel keeps the process until its connection is
    /// aborted (`/sys/fs/fuse/connections`). A shared, writable mapping of a file of the mount can make the process wait for
    /// itself: another process should make such a mapping.
    ///
    /// # Errors
    /// Those of [`Builder::check`], and:
    /// - `NotEmpty`: the mountpoint holds files; see [`Builder::nonempty`].
    /// - `PermissionDenied`: the kernel or `fusermount3` refuses the mount.
    /// - `NotFound`: `/dev/fuse` or `fusermount3` is missing. The hint says which package has it.
    /// - `Io`: a thread cannot be started, or the mount does not answer.
    pub fn mount(self) -> Result<MountedStore> {
        let this = self.check()?;
        if !this.options.nonempty && refuse_full(&this.mountpoint).is_err() {
            // Another mount may have begun there since the check.
            prepare(&this.mountpoint)?;
            refuse_full(&this.mountpoint)?;
        }
        start_pool()?;
        let socket = make_socket();
        let (vfs, cache, log, info) = this.parts(socket.as_ref())?;
        let (events, received) = mpsc::channel();
        let stopper = Stopper::new(events, &vfs);
        let served = this.serve(&vfs, &stopper, &received);
        let (guard, session, tasks) = match served {
            Ok(served) => served,
            Err(error) => {
                // Otherwise the two would keep each other.
                vfs.push_by(None);
                return Err(error);
            }
        };
        let handler = Handler::new(session.commands(), &info);
        let server = socket.and_then(|socket| start_server(socket, &handler));
        log.note_quietly(note::resumed(&this.mountpoint.to_string_lossy()));
        let (handle, stops) = (Arc::downgrade(&vfs), stopper.clone());
        let serving = Serving { vfs, cache, log, guard, session, tasks, server, stopper, events: received };
        let (done, ended) = mpsc::channel();
        let served =
            thread::Builder::new().name("pfimg-mount".into()).spawn(move || drop(done.send(serving.run())));
        if let Err(error) = served {
            handle.upgrade().inspect(|vfs| vfs.push_by(None));
            return Err(no_thread(error));
        }
        Ok(MountedStore {
            cache_dir: this.cache_dir_or_default(),
            store: this.store,
            mountpoint: this.mountpoint,
            read_only: this.options.read_only,
            vfs: handle,
            handler,
            stopper: stops,
            ended: Mutex::new(Some(ended)),
        })
    }

    fn cache_dir_or_default(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(dirs::cache_dir)
    }

    /// Makes the parts of the mount that know no kernel.
    fn parts(&self, socket: Option<&Socket>) -> Result<(Arc<Vfs>, Arc<Cache>, Log, MountInfo)> {
        let (memory, disk_bytes) = limits::cache_sizes(self.cache_memory, self.cache_disk);
        let tree_bytes = memory / 4;
        let dir = self.cache_dir_or_default();
        let cache = Arc::new(Cache::new(
            Arc::clone(&self.store),
            &CacheConfig { heap_bytes: memory - tree_bytes, disk_bytes, dir: dir.clone() },
        ));
        let info = MountInfo {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            store: self.store.root().to_owned(),
            mountpoint: self.mountpoint.clone(),
            cache_dir: dir,
            log: self.log_file.clone(),
            socket: socket.map(|socket| socket.path().to_owned()),
            protocol: protocol::VERSION,
            started_at: chrono::Utc::now(),
            session_secret: self.secret.as_ref().map(Secret::fingerprint),
            inodes: self.numbering,
        };
        let read_only = self.options.read_only;
        let config = VfsConfig {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mine: self.is_mine(),
            reveal_secrets: self.reveal_secrets,
            xattrs: self.xattrs,
            inodes: self.numbering,
            read_only,
            writeback: self.writeback,
            tree_bytes,
            seal: if read_only { SealPolicy::Manual } else { self.seal },
            session_secret: self.secret.clone(),
        };
        let log = match (read_only, self.audit) {
            (true, _) => Log::off(),
            (false, false) => Log::packs_only(self.store.root()),
            (false, true) => Log::start(self.store.root(), "mount").map_err(no_thread)?,
        };
        let vfs = Vfs::new(Arc::clone(&self.store), Arc::clone(&cache), config, info.clone(), log.clone());
        let adopting = thread::Builder::new().name("pfimg-adopt".into()).spawn({
            let cache = Arc::clone(&cache);
            move || cache.scan_existing()
        });
        if let Err(error) = adopting {
            tracing::warn!("files of earlier mounts in the cache directory are not counted: {error}");
        }
        Ok((Arc::new(vfs), cache, log, info))
    }

    /// Mounts, and begins to serve the kernel.
    fn serve(
        &self,
        vfs: &Arc<Vfs>,
        stopper: &Stopper,
        received: &mpsc::Receiver<Event>,
    ) -> Result<(UnmountOnDrop, crate::fuse::Session, Tasks)> {
        let config = SessionConfig {
            allow_other: self.options.allow_other,
            read_only: self.options.read_only,
            writeback: self.writeback,
            spin: self.spin,
            holes: self.holes,
        };
        let prepared = Prepared::new(Arc::clone(vfs), config, prepare_thread)?;
        // Changes are reported from here on.
        let watched = vfs.watch();
        let source = self.store.root();
        let (fd, own) = mount(&self.mountpoint, source, &self.options)?;
        let place =
            Place { path: own.path.clone(), device: own.device().to_owned(), source: source.to_owned() };
        let guard = UnmountOnDrop(Some(own));
        let root: OpenRoot = Arc::new(move || place.root());
        let events = stopper.events();
        let session = prepared.serve(fd, root, move |result| drop(events.send(Event::Session(result))))?;
        let tasks = Tasks::start(vfs, watched, session.kernel()).map_err(no_thread)?;
        if let Err(error) = first::apart(|| first::requests(&self.mountpoint)) {
            // Another program may have unmounted the store before the first request.
            let ended = session_end(received, SETTLE).ok_or(error)?;
            let _ = stopper.events().send(Event::Session(ended));
        } else {
            tracing::info!("mounted at {}", self.mountpoint.display());
        }
        Ok((guard, session, tasks))
    }
}

/// Makes the socket for commands. A mount without one still serves programs, and its log says why it has none.
fn make_socket() -> Option<Socket> {
    Socket::make().inspect_err(|error| tracing::warn!("commands cannot reach this mount: {error}")).ok()
}

fn start_server(socket: Socket, handler: &Handler) -> Option<Server> {
    let started = Server::start(socket, handler.clone());
    started.inspect_err(|error| tracing::warn!("commands cannot reach this mount: {error}")).ok()
}

fn no_thread(error: std::io::Error) -> Error {
    Error::io(error, "cannot start a thread")
}

/// Starts the threads that all mounts of this process share for seals, unless they exist. A failure can be returned here, and
/// not where they are first used.
fn start_pool() -> Result<()> {
    match rayon::ThreadPoolBuilder::new().build_global() {
        Err(error) if error.source().is_some() => {
            Err(Error::new(ErrorKind::Io(Some(libc::EAGAIN)), format!("cannot start threads: {error}")))
        }
        _ => Ok(()),
    }
}

fn absolute_dir(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(|e| Error::io(e, format!("cannot use {}", dir.display())))
}

/// Refuses a mountpoint above files that the daemon itself needs: the daemon would wait for its own answers
/// forever.
fn refuse_below(mountpoint: &Path, path: &Path, what: &str) -> Result<()> {
    // A missing path will be made in the nearest directory that exists.
    let real = path.ancestors().find_map(|path| fs::canonicalize(path).ok());
    if !real.is_some_and(|real| real.starts_with(mountpoint)) {
        return Ok(());
    }
    let (mountpoint, path) = (mountpoint.display(), path.display());
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("cannot mount at {mountpoint}: {what}, {path}, lies below it"),
    )
    .with_hint("name an empty directory, such as ~/pf"))
}

/// Refuses a mountpoint that holds files, which the mount would hide.
fn refuse_full(mountpoint: &Path) -> Result<()> {
    // A directory that cannot be read may still serve as a mountpoint.
    let is_empty = fs::read_dir(mountpoint).map_or(true, |mut entries| entries.next().is_none());
    if is_empty {
        return Ok(());
    }
    let what = format!(
        "cannot mount at {}: the directory is not empty, and the mount would hide its files",
        mountpoint.display()
    );
    Err(Error::new(ErrorKind::Posix(Posix::NotEmpty), what)
        .with_path(mountpoint)
        .with_hint("name an empty directory"))
}
