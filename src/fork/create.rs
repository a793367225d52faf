//! Makes forks: from an image, from another fork, or empty.

use std::sync::Arc;

use super::disk::{GenId, Generation};
use super::frame::{FOLDER_MODE, Frame};
use super::head::Head;
use super::ino::Ino;
use super::journal::Writer;
use super::live::{Fork, Live, now};
use super::registry::{Registry, Slot};
use super::state::State;
use crate::digest::Digest;
use crate::error::Result;
use crate::sync::Mutex;

/// The initial state of a fork.
struct NewFork {
    image: Option<Digest>,
    /// The mode of the fork's top folder.
    mode: u16,
    /// Modes and owners of the folders around its files.
    folders: Frame,
    state: State,
    baseline: Arc<State>,
    /// The frozen generations that it rests on, oldest first.
    generations: Vec<Arc<Generation>>,
    created_ns: i64,
}

impl Registry {
    /// Makes a fork from an image, or an empty one.
    pub fn create(&self, name: &str, image: Option<Digest>) -> Result<Arc<Fork>> {
        self.create_as(name, image, FOLDER_MODE)
    }

    /// Like [`Registry::create`], with a mode for the top folder.
    pub fn create_as(&self, name: &str, image: Option<Digest>, mode: u16) -> Result<Arc<Fork>> {
        self.check_new(name)?;
        let created_ns = now();
        let state = State::over(self.shared.base(image, created_ns)?);
        let baseline = Arc::new(state.detached());
        let (folders, generations) = Default::default();
        self.establish(name, NewFork { image, mode, folders, state, baseline, generations, created_ns })
    }

    /// Makes a fork from the present state of another fork.
    pub fn branch(&self, source: &Fork, name: &str) -> Result<Arc<Fork>> {
        self.branch_as(source, name, 0o7777)
    }

    /// Like [`Registry::branch`], with a mode for the top folder. Bits that the source's folder lacks are cleared.
    pub fn branch_as(&self, source: &Fork, name: &str, mode: u16) -> Result<Arc<Fork>> {
        self.check_new(name)?;
        // Held until the new head names the generations, so that none of them is released before.
        let mut head = source.head.lock();
        let frozen = source.freeze_locked(&mut head)?;
        let mode = mode & frozen.state.nodes.get(&Ino::TOP).map_or(FOLDER_MODE, |top| top.mode);
        let new = NewFork {
            image: head.base,
            mode,
            folders: head.folders.clone(),
            state: frozen.state.branch(),
            baseline: frozen.baseline.clone(),
            generations: frozen.generations.clone(),
            created_ns: now(),
        };
        self.establish(name, new)
    }

    fn establish(&self, name: &str, new: NewFork) -> Result<Arc<Fork>> {
        let NewFork { image, mode, folders, state, baseline, mut generations, created_ns } = new;
        let active = self.shared.new_generation()?;
        generations.push(active.clone());
        let head = Head {
            name: name.to_owned(),
            uid: GenId::random()?.to_string(),
            created_ns,
            base: image,
            generations: generations.iter().map(|generation| generation.id).collect(),
            folders,
            numbered_by: None,
            origin: image,
            began_empty: image.is_none() && generations.len() == 1,
            extra: serde_json::Map::new(),
        };
        let ids = head.generations.clone();
        self.shared.add_refs(&ids);
        let writer = Writer::new(active);
        let mut live = Live::new(state, baseline, writer, generations, image);
        // Set before the fork has a name, so that the fork is never more open than it should be.
        let closed = live.set_mode(Ino::TOP, mode);
        if let Err(e) = closed.and_then(|()| head.write(&self.shared.files, &self.shared.forks, false)) {
            self.shared.drop_refs(&ids);
            return Err(e);
        }
        let fork = self.fork(head, live, None, true);
        if image.is_none() {
            fork.begin_making();
        }
        self.slots.lock().insert(name.to_owned(), Arc::new(Mutex::new(Slot::Loaded(fork.clone()))));
        Ok(fork)
    }
}
