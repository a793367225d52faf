//! The file of a socket for commands: made for a mount, and removed at its end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::dirs::make_socket_folder;
use crate::control::client::short_path;
use crate::error::{self, Error};
use crate::fork::GenId;

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long another daemon may take to make its socket.
const TURN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// A socket that listens, and its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: OwnedFd,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket of a new daemon. Removes those of daemons that were killed.
    pub(super) fn make() -> error::Result<Self> {
        let folder =
            make_socket_folder().map_err(|e| Error::io(e, "cannot make the directory of sockets"))?;
        let failed = |e: io::Error| Error::io(e, format!("cannot make a socket in {}", folder.display()));
        let random = GenId::random()?.to_string();
        let path = folder.join(format!("{}-{}", std::process::id(), &random[..8]));
        let opened = File::open(&folder).map_err(failed)?;
        // Until it listens, another daemon would take it for one of a killed daemon.
        if wait_for_turn(&opened) {
            remove_stale(&folder);
        }
        let listener = new_socket().map_err(failed)?;
        // The file gets this mode when it is made.
        fchmod(&listener, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        // The path itself, if it fits: programs that clean /tmp then know that a daemon uses it.
        let bound = address(&path, &opened).and_then(|address| bind(&listener, &address));
        bound.map_err(|e| failed(e.into()))?;
        // Its file is removed if this fails.
        let this = Self { listener, path };
        listen(&this.listener, BACKLOG).map_err(|e| failed(e.into()))?;
        Ok(this)
    }

    /// The path of its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// The address of a socket, by a short path if its own is too long.
fn address(path: &Path, folder: &File) -> Result<SocketAddrUnix, Errno> {
    let name = path.file_name().unwrap_or_default();
    SocketAddrUnix::new(path).or_else(|_| SocketAddrUnix::new(short_path(folder).join(name)))
}

/// Waits until no other daemon makes its socket. Returns whether it is this one's turn, which lasts until the directory is closed.
fn wait_for_turn(folder: &File) -> bool {
    let asked = Instant::now();
    while flock(folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        if asked.elapsed() > TURN {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

/// Removes the files of sockets on which no daemon listens.
fn remove_stale(folder: &Path) {
    let Ok(opened) = File::open(folder) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            continue;
        }
        // A daemon that listens takes the connection, or serves its maximum of connections.
        let refused = || connect(new_socket().ok()?, &address(&entry.path(), &opened).ok()?).err();
        if refused() == Some(Errno::CONNREFUSED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
