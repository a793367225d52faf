//! Does what a command asks the daemon of a mount for, over the socket or from a program that holds the mount.

use serde::Serialize;

use crate::control::MountInfo;
use crate::control::protocol::{Flushed, Forks, Hello, Nothing, Request, Sealed};
use crate::error::Result;
use crate::fork::About;
use crate::fuse::Commands;
use crate::ops::back::{Asked, Outcome};
use crate::ops::seal::Tag;
use crate::vfs::{NewSeal, Vfs};

/// Takes the reply to a request.
pub(super) trait Replies: Send + 'static {
    /// Sends the reply: the one that the request names, or an error.
    fn reply<T: Serialize>(self, reply: Result<T>);
}

/// Does requests. Clones do those of the same mount.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    commands: Commands,
    hello: Hello,
}

impl Handler {
    pub(super) fn new(commands: &Commands, info: &MountInfo) -> Self {
        let hello = Hello {
            version: info.version.clone(),
            pid: info.pid,
            store: info.store.to_string_lossy().into_owned(),
            mountpoint: info.mountpoint.to_string_lossy().into_owned(),
            log: info.log.as_ref().map(|log| log.to_string_lossy().into_owned()),
        };
        Self { commands: commands.clone(), hello }
    }

    /// Does a request, and returns at once. `replies` gets the reply from another thread, or from this one if nothing has to be
    /// waited for.
    pub(super) fn handle(&self, request: Request, replies: impl Replies) {
        match request {
            Request::Hello {} => replies.reply(Ok(self.hello.clone())),
            Request::Forks {} => self.forks(|forks| replies.reply(forks.map(|forks| Forks { forks }))),
            Request::Fork { name, source, mode } => {
                self.fork(name, source, mode, |done| nothing(replies, done));
            }
            Request::Rename { fork, name } => self.rename(fork, name, |done| nothing(replies, done)),
            Request::Discard { fork, force } => self.discard(fork, force, |done| nothing(replies, done)),
            Request::Flush { fork } => {
                self.flush(fork, |done| replies.reply(done.map(|unsealed| Flushed { unsealed })));
            }
            Request::Seal { fork, tag, force, after, message } => {
                let about = About { after, message, ..About::default() };
                self.seal(fork, tag, force, about, |done| {
                    replies.reply(done.map(|NewSeal { image, new, reports }| Sealed { image, new, reports }));
                });
            }
            Request::Restore { fork, seal, undo, paths } => {
                self.restore(fork, Asked { seal, undo, paths }, |done| replies.reply(done));
            }
        }
    }

    /// Lists the names of the forks.
    pub(super) fn forks(&self, done: impl FnOnce(Result<Vec<String>>) + Send + 'static) {
        self.commands.look(Vfs::fork_names, logged("forks", done));
    }

    /// Makes a fork.
    pub(super) fn fork(
        &self,
        name: String,
        source: String,
        mode: u16,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        self.commands.make_fork(move |vfs| vfs.make_fork(&name, &source, mode), logged("fork", done));
    }

    /// Renames a fork.
    pub(super) fn rename(&self, fork: String, name: String, done: impl FnOnce(Result<()>) + Send + 'static) {
        self.commands.move_fork(move |vfs| vfs.rename_of_fork(&fork, &name), logged("rename", done));
    }

    /// Discards a fork, with `force` also one with unsealed work.
    pub(super) fn discard(&self, fork: String, force: bool, done: impl FnOnce(Result<()>) + Send + 'static) {
        self.commands.move_fork(move |vfs| vfs.discard_of_fork(&fork, force), logged("discard", done));
    }

    /// Makes the kernel hand in what programs wrote to a fork, and tells whether the fork has unsealed changes.
    pub(super) fn flush(&self, fork: String, done: impl FnOnce(Result<bool>) + Send + 'static) {
        self.commands.look(move |vfs| vfs.flush_fork(&fork), logged("flush", done));
    }

    /// Seals a fork.
    pub(super) fn seal(
        &self,
        fork: String,
        tag: Option<String>,
        force: bool,
        about: About,
        done: impl FnOnce(Result<NewSeal>) + Send + 'static,
    ) {
        let work = move |vfs: &Vfs| {
            let tag = tag.as_deref().map(|name| Tag { name, force });
            vfs.seal_fork(&fork, tag, &about)
        };
        self.commands.seal(|_| Vec::new(), work, logged("seal", done));
    }

    /// Restores a fork, or paths of it.
    pub(super) fn restore(
        &self,
        fork: String,
        asked: Asked,
        done: impl FnOnce(Result<Outcome>) + Send + 'static,
    ) {
        let (name, all) = (fork.clone(), Vfs::restores_all(&asked));
        let before = move |vfs: &Vfs| if all { vfs.before_restore_of(&name) } else { Vec::new() };
        self.commands.seal(before, move |vfs| vfs.restore_fork(&fork, &asked), logged("restore", done));
    }
}

fn nothing(replies: impl Replies, done: Result<()>) {
    replies.reply(done.map(|()| Nothing {}));
}

/// Logs an error before it goes to the command.
fn logged<T>(word: &'static str, done: impl FnOnce(Result<T>)) -> impl FnOnce(Result<T>) {
    move |result| {
        if let Err(error) = &result {
            tracing::warn!(request = word, "{error}");
        }
        done(result);
    }
}
