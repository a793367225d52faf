//! `forks/` and `work/`: finds, makes, renames and discards forks.

use std::sync::Arc;
use std::time::Duration;

use super::announcement::{Announcement, What};
use super::announcements::Announcements;
use super::answer::Entry;
use super::attempt::{Attempt, OnDisk, Stop, logged, may_wait};
use super::cached_writes::CachedWrites;
use super::fork_files::ForkFiles;
use super::fork_table::{ForkTable, no_fork, without_numbers};
use super::mounted::Mounted;
use super::node::{BuiltinDir, Node};
use super::nodes::Nodes;
use super::replaced::Replaced;
use crate::audit::{Log, note};
use crate::error::{Error, ErrorKind, Posix, Result};
use crate::fork::{self, Fork, NewFile, RenameMode};
use crate::layers::world::Kind;
use crate::ops::line;
use crate::store::{Home, tags};

/// How long the kernel may cache a link in `work/`. An outdated link does no harm: it leads to `forks/NAME`, which is
/// invalidated.
const WORK_TTL: Duration = Duration::from_secs(1);

/// Which forks may be discarded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    Any,
    /// Only an empty fork.
    Empty,
    /// Only a fork without unsealed changes.
    Sealed,
}

/// The folder of forks, and the folder of links to them.
pub(super) struct ForksDir {
    pub(super) nodes: Arc<Nodes>,
    pub(super) table: Arc<ForkTable>,
    pub(super) files: Arc<ForkFiles>,
    pub(super) cached_writes: Arc<CachedWrites>,
    pub(super) announcements: Arc<Announcements>,
    pub(super) store: OnDisk,
    pub(super) home: Arc<Home>,
    pub(super) log: Log,
}

impl ForksDir {
    /// Finds a name in `forks/`.
    pub(super) fn lookup(&self, name: &str) -> Attempt<Entry> {
        if let Some((name, uid)) = self.table.made_as(name) {
            let mounted = self.table.find(&name)?;
            if mounted.fork.uid() != uid {
                return Err(ErrorKind::NotFound.into());
            }
            return Ok(Entry { entry_ttl: Duration::ZERO, ..self.files.root_entry(&mounted)? });
        }
        self.files.root_entry(&self.table.find(name)?)
    }

    /// Finds a name in `work/`.
    pub(super) fn lookup_link(&self, name: &str) -> Attempt<Entry> {
        let made = self.table.find(name)?.fork.created_ns();
        let target = format!("../forks/{name}/world/fs").into();
        self.nodes.own_entry(self.nodes.keyed(Node::link(b"work", target, made)), WORK_TTL)
    }

    /// `mkdir forks/NAME@SOURCE`, or `mkdir forks/NAME` for an empty one.
    pub(super) fn create(&self, name: &[u8], new: &NewFile<'_>) -> Attempt<Entry> {
        may_wait()?;
        let text = std::str::from_utf8(name).map_err(|_| ErrorKind::InvalidInput)?;
        if new.kind != Kind::Dir {
            tracing::info!("refused: forks/{text:?} can only be a folder, a fork");
            return Err(ErrorKind::Posix(Posix::NotPermitted).into());
        }
        let (name, source) = match text.split_once('@') {
            Some((name, source)) => (name, Some(source)),
            None => (text, None),
        };
        let mode = new.mode & !new.umask.unwrap_or_default();
        let mounted = self.make_noted(name, source, mode).map_err(logged)?;
        // The name itself is not announced. If a program already uses it, the kernel would drop it and mounts below it.
        let mut entry = self.files.root_entry(&mounted)?;
        if source.is_some() {
            // The fork's own name is different.
            self.table.note_made(text, mounted.fork.uid());
            entry.entry_ttl = Duration::ZERO;
        }
        Ok(entry)
    }

    /// Makes a fork for a command. The kernel learns its name from an announcement, unless a program uses it already.
    pub(super) fn make_announced(&self, name: &str, source: &str, mode: u16) -> Result<()> {
        self.check_new(name)?;
        self.make_noted(name, Some(source), mode)?;
        self.announcements.add(Announcement::of(BuiltinDir::Forks, name, What::Made(Kind::Dir)));
        Ok(())
    }

    /// Fails if a fork cannot be called so from now on.
    pub(super) fn check_new(&self, name: &str) -> Result<()> {
        if let Some(why) = fork::refuse_new_fork_name(name) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{name:?} cannot be a fork's name: {why}"),
            ));
        }
        let is_fork = self.table.registry(false)?.is_some_and(|registry| registry.contains(name));
        if is_fork {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is a fork {name:?} already")));
        }
        if tags::is_there(self.store.root(), name) {
            let what = format!("{name:?} cannot be a fork's name: a tag has it");
            return Err(Error::new(ErrorKind::AlreadyExists, what).with_hint("choose another name"));
        }
        Ok(())
    }

    /// Makes a fork, and tells the log and programs that watch `work/`.
    fn make_noted(&self, name: &str, source: Option<&str>, mode: u16) -> Result<Mounted> {
        let made = self.make(name, source, mode)?;
        let mounted = self.table.mounted(&made).map_err(|kind| without_numbers(name, kind))?;
        self.log.note(note::fork_made(name, mounted.fork.base().as_ref()));
        self.announcements.add(Announcement::of(BuiltinDir::Work, name, What::Made(Kind::Symlink)));
        Ok(mounted)
    }

    fn make(&self, name: &str, source: Option<&str>, mode: u16) -> Result<Arc<Fork>> {
        self.home.require()?;
        // Finds the source first, so that a missing one leaves nothing behind.
        let image = match source {
            None => None,
            Some(source) => match self.table.registry(false)? {
                Some(registry) if registry.contains(source) => {
                    let source = self.table.read_back(&registry, source)?;
                    self.cached_writes.push(&source)?;
                    return registry.branch_as(&source, name, mode);
                }
                _ => Some(
                    line::image(self.store.here()?, source)
                        .map_err(|e| e.context(format_args!("cannot make fork {name:?} of {source:?}")))?,
                ),
            },
        };
        let registry = self.table.registry(true)?;
        let registry = registry.ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly, "this mount cannot write the forks of its store")
        })?;
        registry.create_as(name, image, mode)
    }

    /// Renames a fork.
    pub(super) fn rename(&self, name: &[u8], new_name: &[u8], mode: RenameMode) -> Attempt<()> {
        may_wait()?;
        let utf8 = |name| std::str::from_utf8(name).map_err(|_| ErrorKind::InvalidInput);
        let (name, new_name) = (utf8(name)?, utf8(new_name)?);
        if !matches!(mode, RenameMode::Replace | RenameMode::NoReplace) {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.rename_named(name, new_name).map_err(quietly_without_fork)
    }

    /// Renames a fork for a command, with the checks of a new fork.
    pub(super) fn rename_checked(&self, name: &str, new_name: &str) -> Result<()> {
        self.check_new(new_name)?;
        self.rename_named(name, new_name)
    }

    fn rename_named(&self, name: &str, new_name: &str) -> Result<()> {
        self.home.require()?;
        let registry = self.table.registry(false)?.ok_or_else(|| no_fork(name))?;
        let renamed = registry.rename(name, new_name)?;
        self.announcements.add(Announcement::of(BuiltinDir::Work, name, What::Gone(Kind::Symlink)));
        self.announcements.add(Announcement::of(BuiltinDir::Work, new_name, What::Made(Kind::Symlink)));
        for event in note::fork_renamed(name, new_name, renamed.base.as_ref()) {
            self.log.note(event);
        }
        Ok(())
    }

    /// Discards a fork if it is empty.
    pub(super) fn rmdir(&self, name: &[u8]) -> Attempt<()> {
        self.discard(name, Only::Empty, None)
    }

    /// Discards a fork that is moved into `.pfimg/`, to this name.
    pub(super) fn discard_moved(&self, name: &[u8], new_name: &[u8]) -> Attempt<()> {
        self.discard(name, Only::Any, Some((BuiltinDir::Control, new_name.to_vec())))
    }

    fn discard(&self, name: &[u8], only: Only, place: Option<(BuiltinDir, Vec<u8>)>) -> Attempt<()> {
        may_wait()?;
        let name = std::str::from_utf8(name).map_err(|_| ErrorKind::NotFound)?;
        self.discard_named(name, only, place).map_err(|error| match error.kind() {
            // The usual answer of `rmdir` for a folder that is not empty.
            kind @ ErrorKind::Posix(Posix::NotEmpty) => kind.into(),
            _ => quietly_without_fork(error),
        })
    }

    /// Discards a fork, if `only` allows it. `place` is where the kernel has the fork's folder.
    pub(super) fn discard_named(
        &self,
        name: &str,
        only: Only,
        place: Option<(BuiltinDir, Vec<u8>)>,
    ) -> Result<()> {
        self.home.require()?;
        let registry = self.table.registry(false)?.ok_or_else(|| no_fork(name))?;
        // Judged during the discard, since before it the name may come to lead to another fork.
        let is_empty = |fork: &Fork| {
            let mut empty = true;
            fork.readdir(fork::Ino::TOP, 0, &mut |_| {
                empty = false;
                false
            })?;
            if empty || fork.is_blank() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Posix(Posix::NotEmpty), format!("fork {name:?} is not empty"))
                .with_hint(format!("use `pfimg discard {name}`")))
        };
        let is_sealed = |fork: &Fork| {
            if fork.damage().is_none() && !fork.is_changed() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Busy, format!("fork {name:?} has unsealed work")).with_hint(format!(
                "keep it with `pfimg seal {name}`, or lose it with `pfimg discard --force {name}`"
            )))
        };
        let gone = match only {
            Only::Any => registry.discard(name),
            Only::Empty => registry.discard_if(name, &is_empty),
            Only::Sealed => registry.discard_if(name, &is_sealed),
        }?;
        self.log.note(note::fork_discarded(name, gone.base.as_ref()));
        if let Some(uid) = gone.uid
            && let Some(old) = self.table.discarded(&uid)
        {
            self.announcements.depart(Replaced::discarded(old, place));
        }
        self.announcements.add(Announcement::of(BuiltinDir::Work, name, What::Gone(Kind::Symlink)));
        Ok(())
    }
}

/// Logs an error, unless it only says that there is no such fork.
fn quietly_without_fork(error: Error) -> Stop {
    if error.kind() == ErrorKind::NotFound { ErrorKind::NotFound.into() } else { logged(error) }
}
