//! What is compared. Another filesystem is one more implementation of [`System`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Result;
use crate::scratch::pfimg;

/// FUSE requests by kind.
pub(crate) type Requests = BTreeMap<String, i64>;

/// How long a daemon may take to end after its mount is gone.
const END: Duration = Duration::from_secs(15);

/// What a system remembers when a workload starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything: the workload ran just before.
    Warm,
    /// Nothing: new mount, new cache folder, empty page cache.
    Cold,
    /// New mount and cache folder, but what lies on the disk is in the page cache.
    Unmounted,
    /// New mount and empty page cache, but the cache folder of an earlier mount.
    Second,
}

impl State {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Unmounted => "new mount, disk cached",
            Self::Second => "cold, second mount",
        }
    }

    pub(crate) fn drops_page_cache(self) -> bool {
        matches!(self, Self::Cold | Self::Second)
    }
}

/// Memory of a daemon in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// The most it ever had resident.
    pub(crate) peak: u64,
    /// What is resident now.
    pub(crate) resident: u64,
}

/// A filesystem that shows the tree.
pub(crate) trait System {
    fn name(&self) -> &'static str;

    /// Where the tree is.
    fn tree(&self) -> &Path;

    /// Forgets what `state` says, the page cache apart.
    fn reset(&mut self, _state: State) -> Result<()> {
        Ok(())
    }

    /// Ends it: unmounts.
    fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    /// Requests that its daemon has answered.
    fn requests(&self) -> Result<Requests> {
        Ok(Requests::new())
    }

    /// Its daemon, if it has one.
    fn daemon(&self) -> Option<u32> {
        None
    }
}

/// The tree on the local disk.
pub(crate) struct Native {
    pub(crate) tree: PathBuf,
}

impl System for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn tree(&self) -> &Path {
        &self.tree
    }
}

/// A mount of a store.
pub(crate) struct Mount {
    pub(crate) mountpoint: PathBuf,
    pub(crate) pid: u32,
    /// How long `pfimg mount` took, until the mount answered and the command ended.
    pub(crate) took: Duration,
}

impl Mount {
    pub(crate) fn new(store: &Path, mountpoint: &Path, cache_dir: &Path) -> Result<Self> {
        Self::with(store, mountpoint, cache_dir, &[])
    }

    pub(crate) fn with(store: &Path, mountpoint: &Path, cache_dir: &Path, args: &[&str]) -> Result<Self> {
        let started = Instant::now();
        let status = pfimg("mount")
            .args([store, mountpoint])
            .arg("--cache-dir")
            .arg(cache_dir)
            .arg("--log")
            .arg(mountpoint.with_extension("log"))
            .args(args)
            // Ctrl-C must not end it halfway between mounting and telling.
            .process_group(0)
            .status()?;
        let took = started.elapsed();
        if !status.success() {
            return Err(format!("pfimg mount: {status}").into());
        }
        let text = fs::read(mountpoint.join(".pfimg/status.json"))?;
        let said: Value = serde_json::from_slice(&text)?;
        let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok(Self { mountpoint: mountpoint.into(), pid: pid.ok_or("status.json names no pid")?, took })
    }

    pub(crate) fn unmount(self) -> Result<()> {
        let status = pfimg("umount").arg(&self.mountpoint).status()?;
        if !status.success() {
            return Err(format!("pfimg umount: {status}").into());
        }
        let started = Instant::now();
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            if started.elapsed() > END {
                return Err(format!("daemon {} does not end", self.pid).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub(crate) fn requests(&self) -> Result<Requests> {
        let text = fs::read_to_string(self.mountpoint.join(".pfimg/metrics"))?;
        let parse = |line: &str| {
            let (op, count) = line.strip_prefix("pfimg_fuse_requests_total{op=\"")?.split_once("\"} ")?;
            Some((op.to_owned(), count.parse().ok()?))
        };
        Ok(text.lines().filter_map(parse).collect())
    }
}

/// An image in a mounted store.
pub(crate) struct PfimgImage {
    store: PathBuf,
    /// `images/<id>/world/fs`
    within: PathBuf,
    mountpoint: PathBuf,
    tree: PathBuf,
    cache_root: PathBuf,
    caches: u32,
    mount: Option<Mount>,
}

impl PfimgImage {
    pub(crate) fn new(
        store: PathBuf,
        within: PathBuf,
        mountpoint: PathBuf,
        cache_root: PathBuf,
    ) -> Result<Self> {
        let tree = mountpoint.join(&within);
        let mut system = Self { store, within, mountpoint, tree, cache_root, caches: 0, mount: None };
        system.reset(State::Cold)?;
        Ok(system)
    }

    /// The tree of another image in the same mount.
    pub(crate) fn show(&mut self, within: PathBuf) {
        self.tree = self.mountpoint.join(&within);
        self.within = within;
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

impl System for PfimgImage {
    fn name(&self) -> &'static str {
        "pfimg image"
    }

    fn tree(&self) -> &Path {
        &self.tree
    }

    fn reset(&mut self, state: State) -> Result<()> {
        if state == State::Warm && self.mount.is_some() {
            return Ok(());
        }
        self.stop()?;
        if state != State::Second {
            // A new folder: deleting the old one now would disturb what is measured next.
            self.caches += 1;
        }
        let cache_dir = self.cache_root.join(self.caches.to_string());
        self.mount = Some(Mount::new(&self.store, &self.mountpoint, &cache_dir)?);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.mount.take().map_or(Ok(()), Mount::unmount)
    }

    fn requests(&self) -> Result<Requests> {
        self.mount.as_ref().map_or_else(|| Ok(Requests::new()), Mount::requests)
    }

    fn daemon(&self) -> Option<u32> {
        self.mount.as_ref().map(|mount| mount.pid)
    }
}

/// A fork in a mounted store of its own.
pub(crate) struct PfimgFork {
    name: &'static str,
    tree: PathBuf,
    mount: Option<Mount>,
}

impl PfimgFork {
    /// Mounts `store` with `--writes WRITES` and makes a fork of its latest image.
    pub(crate) fn new(store: &Path, mountpoint: &Path, cache: &Path, writes: &'static str) -> Result<Self> {
        let mount = Mount::with(store, mountpoint, cache, &["--writes", writes, "--seal", "manual"])?;
        fs::create_dir(mountpoint.join("forks/bench@latest"))?;
        let name = if writes == "back" { "fork, back" } else { "fork, through" };
        Ok(Self { name, tree: mountpoint.join("forks/bench/world/fs"), mount: Some(mount) })
    }
}

impl System for PfimgFork {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tree(&self) -> &Path {
        &self.tree
    }

    fn stop(&mut self) -> Result<()> {
        self.mount.take().map_or(Ok(()), Mount::unmount)
    }

    fn requests(&self) -> Result<Requests> {
        self.mount.as_ref().map_or_else(|| Ok(Requests::new()), Mount::requests)
    }

    fn daemon(&self) -> Option<u32> {
        self.mount.as_ref().map(|mount| mount.pid)
    }
}

/// fuse-overlayfs over an empty lower folder, where it is installed.
pub(crate) struct FuseOverlay {
    tree: PathBuf,
    child: std::process::Child,
}

impl FuseOverlay {
    /// Mounts it below `dir`, or gives nothing if it is not installed.
    pub(crate) fn new(dir: &Path) -> Result<Option<Self>> {
        let path = |name: &str| dir.join(name);
        for name in ["lower", "upper", "work", "mnt"] {
            fs::create_dir_all(path(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower").display(),
            path("upper").display(),
            path("work").display()
        );
        let started = std::process::Command::new("fuse-overlayfs")
            .args(["-f", "-o", &options])
            .arg(path("mnt"))
            .spawn();
        let child = match started {
            Ok(child) => child,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let this = Self { tree: path("mnt"), child };
        let begun = Instant::now();
        while !fs::read_to_string("/proc/self/mountinfo")?.contains(&*this.tree.to_string_lossy()) {
            if begun.elapsed() > END {
                return Err("fuse-overlayfs does not mount".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(this))
    }
}

impl System for FuseOverlay {
    fn name(&self) -> &'static str {
        "fuse-overlayfs"
    }

    fn tree(&self) -> &Path {
        &self.tree
    }

    fn stop(&mut self) -> Result<()> {
        rustix::mount::unmount(&self.tree, rustix::mount::UnmountFlags::DETACH)?;
        self.child.wait()?;
        Ok(())
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

/// Memory of a process.
pub(crate) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Memory {
        peak: kib("VmHWM:").unwrap_or_default() << 10,
        resident: kib("VmRSS:").unwrap_or_default() << 10,
    }
}

/// Empties the page cache and forgets dentries and inodes. Only root may; says whether it could.
pub(crate) fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
