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
        let started = Instant::now();
        let status = pfimg("mount")
            .args([store, mountpoint])
            .arg("--cache-dir")
            .arg(cache_dir)
            .arg("--log")
            .arg(mountpoint.with_extension("log"))
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
