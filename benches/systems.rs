//! What is compared. Another filesystem is one more implementation of [`System`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::result::Result;

/// FUSE requests by kind.
pub(crate) type Requests = BTreeMap<String, i64>;

/// The tree of many files, below a system's root.
pub(crate) const TREE: &str = "tree";

/// A large file, below a system's root.
pub(crate) const BIG: &str = "big/file";

/// What a system remembers when a workload starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything: the workload ran just before.
    Warm,
    /// In the state after the work before it: it is done once, in a separate folder.
    Once,
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
            Self::Once => "",
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

/// A filesystem that shows what is in [`TREE`] and [`BIG`].
pub(crate) trait System {
    fn name(&self) -> &'static str;

    /// The folder with the tree and the large file.
    fn root(&self) -> &Path;

    /// Where new folders can be made, if anywhere.
    fn work(&self) -> Option<&Path>;

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

/// The local disk.
#[derive(Clone)]
pub(crate) struct Native {
    pub(crate) root: PathBuf,
    /// Not in the root, which overlays lie upon.
    pub(crate) work: PathBuf,
}

impl System for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn work(&self) -> Option<&Path> {
        Some(&self.work)
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
