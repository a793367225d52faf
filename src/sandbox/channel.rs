//! The channel by which the processes of a run send messages and notice each other's end.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// A message; two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The builder has entered its new namespaces.
    Left,
    /// The starter has mapped the builder's users.
    Mapped,
    /// The starter has moved the builder to its control group. The value says whether the command may make namespaces of control
    /// groups.
    Grouped(bool),
    /// The command runs.
    Started,
    /// Send this signal to the command.
    Signal(u8),
    /// Continue the command.
    Continue,
    /// Give the command the terminal, and continue it.
    Foreground,
    /// This signal stopped the command.
    Stopped(u8),
}

/// One end of a channel.
pub(super) struct Channel(File);

impl Channel {
    /// Makes both ends of a channel. The second one stays open across exec.
    pub(super) fn pair() -> Result<(Self, OwnedFd)> {
        let failed = |e: rustix::io::Errno| Error::io(e.into(), "cannot make a socket");
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(failed)?;
        Ok((Self::of(ours), theirs))
    }

    pub(super) fn of(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// Keeps this end open for the next program that is executed.
    pub(super) fn hand_on(&self) -> Result<()> {
        rustix::io::fcntl_setfd(&self.0, rustix::io::FdFlags::empty())
            .map_err(|e| Error::io(e.into(), "cannot pass a socket to the next process"))
    }

    /// Sends a message. Returns whether the other end is still open.
    pub(super) fn say(&mut self, message: Message) -> bool {
        let bytes = match message {
            Message::Left => [0, 0],
            Message::Mapped => [1, 0],
            Message::Signal(number) => [2, number],
            Message::Continue => [3, 0],
            Message::Foreground => [4, 0],
            Message::Stopped(number) => [5, number],
            Message::Grouped(free) => [6, u8::from(free)],
            Message::Started => [7, 0],
        };
        self.0.write_all(&bytes).is_ok()
    }

    /// Waits for a message. Returns [`None`] once the other end is closed.
    pub(super) fn hear(&mut self) -> Option<Message> {
        let mut bytes = [0; 2];
        self.0.read_exact(&mut bytes).ok()?;
        match bytes {
            [0, _] => Some(Message::Left),
            [1, _] => Some(Message::Mapped),
            [2, number] => Some(Message::Signal(number)),
            [3, _] => Some(Message::Continue),
            [4, _] => Some(Message::Foreground),
            [5, number] => Some(Message::Stopped(number)),
            [6, free] => Some(Message::Grouped(free != 0)),
            [7, _] => Some(Message::Started),
            _ => None,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
