//! Overlays over the native tree, the kernel's own and fuse-overlayfs, where they can be mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::result::Result;
use crate::systems::{State, System};

/// How long fuse-overlayfs may take to mount.
const START: Duration = Duration::from_secs(15);

/// Which overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The kernel's. Takes root.
    Kernel,
    /// fuse-overlayfs.
    Fuse,
}

/// A mounted overlay.
pub(crate) struct Overlay {
    kind: Kind,
    options: String,
    root: PathBuf,
    work: PathBuf,
    child: Option<Child>,
    mounted: bool,
}

impl Overlay {
    /// Mounts one over `lower` with what it needs in `dir`, or gives nothing if that cannot be done here.
    pub(crate) fn new(kind: Kind, lower: &Path, dir: &Path) -> Result<Option<Self>> {
        let path = |name: &str| dir.join(name);
        for name in ["upper", "workdir", "mnt"] {
            fs::create_dir_all(path(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            path("upper").display(),
            path("workdir").display()
        );
        let root = path("mnt");
        let mut this = Self { kind, options, work: root.join("work"), root, child: None, mounted: false };
        if !this.mount()? {
            return Ok(None);
        }
        fs::create_dir(&this.work)?;
        Ok(Some(this))
    }

    /// Mounts it; says whether that can be done here.
    pub(crate) fn mount(&mut self) -> Result<bool> {
        self.mounted = match self.kind {
            Kind::Kernel => Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &self.options])
                .arg(&self.root)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
            Kind::Fuse => self.mount_fuse()?,
        };
        Ok(self.mounted)
    }

    fn mount_fuse(&mut self) -> Result<bool> {
        let started =
            Command::new("fuse-overlayfs").args(["-f", "-o", &self.options]).arg(&self.root).spawn();
        let child = match started {
            Ok(child) => self.child.insert(child),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let begun = Instant::now();
        while !fs::read_to_string("/proc/self/mountinfo")?.contains(&*self.root.to_string_lossy()) {
            if child.try_wait()?.is_some() {
                self.child = None;
                return Ok(false);
            }
            if begun.elapsed() > START {
                return Err("fuse-overlayfs does not mount".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }
}

impl System for Overlay {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Kernel => "overlayfs",
            Kind::Fuse => "fuse-overlayfs",
        }
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn work(&self) -> Option<&Path> {
        Some(&self.work)
    }

    fn reset(&mut self, state: State) -> Result<()> {
        if matches!(state, State::Warm | State::Once) {
            return Ok(());
        }
        self.stop()?;
        if self.mount()? { Ok(()) } else { Err(format!("{} does not mount again", self.name()).into()) }
    }

    fn stop(&mut self) -> Result<()> {
        if std::mem::take(&mut self.mounted) {
            rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH)?;
        }
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    fn daemon(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}
