//! pfimg as a [`System`]: an image, or a fork, in a separate mounted store.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::result::Result;
use crate::scratch::pfimg;
use crate::systems::{Requests, State, System};

/// How long a daemon may take to end after its mount is gone, on a machine that is busy with other things.
const END: Duration = Duration::from_mins(2);

/// A mount of a store.
pub(crate) struct Mount {
    pub(crate) mountpoint: PathBuf,
    pub(crate) pid: u32,
    /// How long `pfimg mount` took, until the mount answered and the command ended.
    pub(crate) took: Duration,
}

impl Mount {
    pub(crate) fn new(store: &Path, mountpoint: &Path, cache_dir: &Path, args: &[&str]) -> Result<Self> {
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
            return Err(format!("pfimg mount {}: {status}", store.display()).into());
        }
        let text = fs::read(mountpoint.join(".pfimg/status.json"))?;
        let said: Value = serde_json::from_slice(&text)?;
        let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok(Self { mountpoint: mountpoint.into(), pid: pid.ok_or("status.json names no pid")?, took })
    }

    pub(crate) fn unmount(self) -> Result<()> {
        let status = pfimg("umount").arg(&self.mountpoint).status()?;
        if !status.success() {
            return Err(format!("pfimg umount {}: {status}", self.mountpoint.display()).into());
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

/// Where in a mount the root of a system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the latest image.
    Image,
    /// In a fork of it, with `--writes through` or `back`.
    Fork(&'static str),
}

/// A mounted store whose latest image holds the tree.
pub(crate) struct Pfimg {
    place: Place,
    store: PathBuf,
    mountpoint: PathBuf,
    root: PathBuf,
    work: PathBuf,
    caches: u32,
    mount: Option<Mount>,
}

impl Pfimg {
    /// Mounts a copy of `store` that is made in `dir`; its blobs are hard links, since nothing changes a blob.
    pub(crate) fn new(place: Place, store: &Path, dir: &Path) -> Result<Self> {
        let copy = dir.join("store");
        let copied = std::process::Command::new("cp").arg("-al").args([store, &*copy]).status()?;
        if !copied.success() {
            return Err(format!("cannot copy {}", store.display()).into());
        }
        let mountpoint = dir.join("mnt");
        fs::create_dir(&mountpoint)?;
        let within = if place == Place::Image { "latest/world/fs" } else { "forks/bench/world/fs" };
        let mut this = Self {
            place,
            store: copy,
            root: mountpoint.join(within),
            work: mountpoint.join(within).join("work"),
            mountpoint,
            caches: 0,
            mount: None,
        };
        this.reset(State::Cold)?;
        if place == Place::Image {
            // Not through a link, which each look would follow again.
            this.root = this.root.canonicalize()?;
        } else {
            fs::create_dir(this.mountpoint.join("forks/bench@latest"))?;
            fs::create_dir(&this.work)?;
        }
        Ok(this)
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

impl System for Pfimg {
    fn name(&self) -> &'static str {
        match self.place {
            Place::Image => "image",
            Place::Fork("back") => "fork, back",
            Place::Fork(_) => "fork, through",
        }
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn work(&self) -> Option<&Path> {
        (self.place != Place::Image).then_some(&*self.work)
    }

    fn reset(&mut self, state: State) -> Result<()> {
        if matches!(state, State::Warm | State::Once) && self.mount.is_some() {
            return Ok(());
        }
        self.stop()?;
        if state != State::Second {
            // A new folder: deleting the old one now would disturb what is measured next.
            self.caches += 1;
        }
        let cache = self.store.with_file_name(format!("cache-{}", self.caches));
        let writes = if let Place::Fork(writes) = self.place { writes } else { "through" };
        // Seals are measured by themselves; by themselves they come at any time.
        let args = ["--seal", "manual", "--writes", writes];
        self.mount = Some(Mount::new(&self.store, &self.mountpoint, &cache, &args)?);
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
