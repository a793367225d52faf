//! Asks the daemon of a mount, over the socket that its `status.json` names.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use serde::de::DeserializeOwned;

use super::protocol::{self, MAX_REPLY, Request, VERSION};
use super::status::MountInfo;
use crate::error::{Error, ErrorKind, Result};

/// How long a daemon may take to read a request. The reply comes when the work is done, which has no limit.
const SENDING: Duration = Duration::from_secs(10);

/// The longest path of a socket, without the zero at its end.
const MAX_PATH: usize = 107;

/// Asks the daemon of one mount. Each request has a separate connection.
#[derive(Clone, Debug)]
pub struct Client {
    mountpoint: PathBuf,
    /// The version of the daemon's program.
    version: String,
    /// The version of the protocol that it speaks; 0 if it has none.
    protocol: u64,
    socket: Option<PathBuf>,
}

impl Client {
    /// Prepares to ask the daemon that described itself so. Connects to nothing yet.
    pub fn of(info: &MountInfo) -> Self {
        Self {
            mountpoint: info.mountpoint.clone(),
            version: info.version.clone(),
            protocol: info.protocol,
            socket: info.socket.clone(),
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Sends a request, and waits for the reply.
    ///
    /// # Errors
    /// Those of the daemon, with their kind, path and hint. `Unsupported`: the daemon speaks another version. `NoAnswer`: it
    /// ended, or cannot be reached. `PermissionDenied`: another user mounted the store.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let socket = self.usable_socket()?;
        let line = protocol::request_line(request)?;
        let stream = connect(socket).map_err(|e| self.unreachable(e, socket))?;
        stream.set_write_timeout(Some(SENDING)).map_err(|e| self.unreachable(e, socket))?;
        match send_all(&stream, &line) {
            // The daemon has refused already, and its reply says why.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {}
            sent => sent.map_err(|e| self.unreachable(e, socket))?,
        }
        let mut reply = Vec::new();
        let read = BufReader::new(stream).take(MAX_REPLY as u64).read_until(b'\n', &mut reply);
        match read {
            Ok(_) if reply.ends_with(b"\n") => protocol::reply(&reply),
            Ok(_) => Err(self.no_reply()),
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => Err(self.no_reply()),
            Err(e) => Err(self.unreachable(e, socket)),
        }
    }

    fn usable_socket(&self) -> Result<&Path> {
        let (mountpoint, own) = (self.mountpoint.display(), env!("CARGO_PKG_VERSION"));
        if self.protocol != VERSION {
            let what = format!(
                "the daemon of the mount at {mountpoint} (pfimg {}) speaks version {} of the protocol, and this command (pfimg {own}) version {VERSION}",
                self.version, self.protocol
            );
            return Err(Error::new(ErrorKind::Unsupported, what).with_path(&self.mountpoint).with_hint(
                format!("run `pfimg umount {mountpoint}`, and mount the store again with this pfimg"),
            ));
        }
        self.socket.as_deref().ok_or_else(|| {
            let what = format!("the daemon of the mount at {mountpoint} has no socket for commands");
            Error::new(ErrorKind::NoAnswer, what).with_path(&self.mountpoint).with_hint(format!(
                "read its log, which says why (`pfimg status`), run `pfimg umount {mountpoint}`, and mount the store again"
            ))
        })
    }

    /// The error for a daemon whose socket cannot be used.
    fn unreachable(&self, error: io::Error, socket: &Path) -> Error {
        let mountpoint = self.mountpoint.display();
        if error.kind() == io::ErrorKind::PermissionDenied {
            let what = format!("cannot ask the daemon of the mount at {mountpoint}");
            return Error::io(error, what)
                .with_path(socket)
                .with_hint("run the command as the user who mounted the store");
        }
        Error::new(ErrorKind::NoAnswer, format!("cannot ask the daemon of the mount at {mountpoint}"))
            .with_source(error)
            .with_path(socket)
            .with_hint(format!("run `pfimg umount {mountpoint}`, and mount the store again"))
    }

    fn no_reply(&self) -> Error {
        let mountpoint = self.mountpoint.display();
        let what = format!("the daemon of the mount at {mountpoint} ended before it sent a reply");
        Error::new(ErrorKind::NoAnswer, what)
            .with_path(&self.mountpoint)
            .with_hint("read its log (`pfimg status`), and run the command again")
    }
}

/// Connects to a socket, however long its path is.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= MAX_PATH {
        return UnixStream::connect(socket);
    }
    let (folder, name) = socket.parent().zip(socket.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let folder = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    UnixStream::connect(short_path(&folder).join(name))
}

/// Returns a short path of an open directory.
pub(crate) fn short_path(folder: &File) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

/// Sends all bytes. Without the signal that ends a program when the other side is gone.
fn send_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(stream, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::control::Numbering;
    use crate::control::protocol::{Nothing, Sealed};

    fn client(protocol: u64, socket: Option<PathBuf>) -> Client {
        Client::of(&MountInfo {
            pid: 1,
            version: "0.0.9".into(),
            store: "/store".into(),
            mountpoint: "/mnt".into(),
            cache_dir: "/cache".into(),
            log: None,
            socket,
            protocol,
            started_at: chrono::Utc::now(),
            session_secret: None,
            inodes: Numbering::Shared,
        })
    }

    #[test]
    fn a_daemon_of_another_version_is_not_asked_and_both_numbers_are_named() {
        for protocol in [0, VERSION + 1] {
            let error =
                client(protocol, Some("/none".into())).ask::<Nothing>(&Request::Hello {}).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let message = error.message();
            let both =
                [format!("version {protocol}"), format!("version {VERSION}"), "pfimg 0.0.9".to_owned()];
            assert!(both.iter().all(|words| message.contains(words)), "{message}");
            assert!(error.hint().unwrap().contains("pfimg umount /mnt"), "{error}");
            assert_eq!(error.path(), Some(Path::new("/mnt")));
        }
        let error = client(VERSION, None).ask::<Nothing>(&Request::Hello {}).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::NoAnswer, Some(Path::new("/mnt"))));
    }

    #[test]
    fn a_status_of_an_older_daemon_has_version_0_and_no_socket() {
        let status = r#"{"pid":1,"version":"0.0.9","store":"/s","mountpoint":"/m","cache_dir":"/c","log":null,
            "started_at":"2026-12-01T00:00:00Z"}"#;
        let info: MountInfo = serde_json::from_str(status).unwrap();
        assert_eq!((info.protocol, info.socket), (0, None));
    }

    #[test]
    fn a_daemon_that_ends_before_its_reply_or_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the address of a socket can be.
        let folder = dir.path().join("d".repeat(150));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("s");
        let asked = || client(VERSION, Some(path.clone())).ask::<Sealed>(&Request::Forks {}).unwrap_err();
        let error = asked();
        assert_eq!((error.kind(), error.path()), (ErrorKind::NoAnswer, Some(&*path)));
        let listener = UnixListener::bind(short_path(&File::open(&folder).unwrap()).join("s")).unwrap();
        for reply in ["", "{\"pfimg\":1,\"ok\":"] {
            let answering = thread::scope(|scope| {
                let asking = scope.spawn(asked);
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(reply.as_bytes()).unwrap();
                drop(stream);
                asking.join().unwrap()
            });
            assert_eq!(answering.kind(), ErrorKind::NoAnswer, "{answering}");
        }
        drop(listener);
        assert_eq!(asked().kind(), ErrorKind::NoAnswer);
    }
}
