//! Takes requests of commands over a socket; `control/protocol.rs` has their form.
//!
//! One thread owns the socket and all connections. It only reads and writes lines, and waits for nothing else: requests run on
//! threads of the mount (`fuse/commands.rs`). A connection carries one request. A client that goes away does not stop it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use serde::Serialize;

use super::handler::{Handler, Replies};
use super::peer;
use super::socket::Socket;
use crate::control::protocol::{self, Nothing};
use crate::error::{Error, ErrorKind, Result};

/// How long a client may take to send its request, and to take each part of the reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most connections at a time. Further clients wait until one ends.
const CONNECTIONS: usize = 128;

/// How long no connection is accepted after the system refused one.
const PAUSE: Duration = Duration::from_millis(100);

/// The bytes that are read at once.
const PART: usize = 64 << 10;

/// The number of a connection.
type Number = u64;

/// The thread that owns the socket. It ends when this is dropped, once the requests that it has taken are done.
pub(super) struct Server {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the thread.
struct Waker {
    event: OwnedFd,
    stop: AtomicBool,
}

impl Waker {
    fn wake(&self) {
        // Fails only if the thread has been woken up often, and not looked yet.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl Server {
    /// Starts to take requests.
    pub(super) fn start(socket: Socket, handler: Handler) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let waker = Arc::new(Waker { event, stop: AtomicBool::new(false) });
        let (replies, replied) = channel();
        let connections = Connections {
            socket: Some(socket),
            handler,
            waker: Arc::clone(&waker),
            replies,
            replied,
            all: HashMap::new(),
            next: 0,
            paused: None,
        };
        let thread =
            thread::Builder::new().name("pfimg-control".into()).spawn(move || connections.serve())?;
        Ok(Self { waker, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.waker.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a connection is on its way.
enum State {
    /// Its request arrives.
    Reading(Vec<u8>),
    /// Its request is being done.
    Working,
    /// Its reply leaves: the line, and how much of it has left.
    Writing(Vec<u8>, usize),
}

struct Connection {
    socket: OwnedFd,
    state: State,
    /// When the client has waited too long.
    until: Instant,
}

impl Connection {
    /// What to wait for.
    fn wanted(&self) -> Option<PollFlags> {
        match self.state {
            State::Reading(_) => Some(PollFlags::IN),
            State::Working => None,
            State::Writing(..) => Some(PollFlags::OUT),
        }
    }

    fn reply(&mut self, line: Vec<u8>) {
        self.state = State::Writing(line, 0);
        self.until = Instant::now() + PATIENCE;
    }

    fn refuse(&mut self, error: &Error) {
        self.reply(protocol::reply_line::<Nothing>(Err(error)));
    }
}

/// The reply to one request. Each request gets one, even if an error in pfimg ends it.
struct Reply {
    number: Number,
    replies: Sender<(Number, Vec<u8>)>,
    waker: Arc<Waker>,
    is_sent: bool,
}

impl Reply {
    fn send(&mut self, line: Vec<u8>) {
        self.is_sent = true;
        // Without a receiver the client has gone.
        let _ = self.replies.send((self.number, line));
        self.waker.wake();
    }
}

impl Replies for Reply {
    fn reply<T: Serialize>(mut self, reply: Result<T>) {
        self.send(protocol::reply_line(reply.as_ref()));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_sent {
            let error = Error::new(ErrorKind::Io(None), "an error in pfimg ended the request")
                .with_hint("read the log of the mount (`pfimg status`)");
            self.send(protocol::reply_line::<Nothing>(Err(&error)));
        }
    }
}

/// The socket and its connections.
struct Connections {
    /// Nothing once no more requests are taken.
    socket: Option<Socket>,
    handler: Handler,
    waker: Arc<Waker>,
    replies: Sender<(Number, Vec<u8>)>,
    replied: Receiver<(Number, Vec<u8>)>,
    all: HashMap<Number, Connection>,
    next: Number,
    /// Until when no connection is accepted.
    paused: Option<Instant>,
}

impl Connections {
    fn serve(mut self) {
        loop {
            let (is_new, ready) = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!("cannot wait for commands: {error}");
                    return;
                }
            };
            self.waker.clear();
            if self.waker.stop.load(Ordering::Acquire) {
                self.socket = None;
                // Their clients learn that no request was done.
                self.all.retain(|_, connection| !matches!(connection.state, State::Reading(_)));
            }
            while let Ok((number, line)) = self.replied.try_recv() {
                if let Some(connection) = self.all.get_mut(&number) {
                    connection.reply(line);
                }
            }
            for number in ready {
                self.advance(number);
            }
            if is_new {
                self.accept();
            }
            let now = Instant::now();
            self.all.retain(|_, connection| connection.wanted().is_none() || connection.until > now);
            if self.socket.is_none() && self.all.is_empty() {
                return;
            }
        }
    }

    /// Waits for something to do. Returns whether a client connects, and the connections that can continue.
    fn wait(&mut self) -> io::Result<(bool, Vec<Number>)> {
        let now = Instant::now();
        self.paused = self.paused.filter(|until| *until > now);
        let accepts = self.paused.is_none() && self.all.len() < CONNECTIONS;
        let listener = self.socket.as_ref().filter(|_| accepts).map(Socket::listener);
        let waiting: Vec<(Number, BorrowedFd<'_>, PollFlags)> = self
            .all
            .iter()
            .filter_map(|(number, one)| Some((*number, one.socket.as_fd(), one.wanted()?)))
            .collect();
        let mut fds = vec![PollFd::new(&self.waker.event, PollFlags::IN)];
        fds.extend(listener.map(|listener| PollFd::from_borrowed_fd(listener, PollFlags::IN)));
        fds.extend(waiting.iter().map(|(_, socket, flags)| PollFd::from_borrowed_fd(*socket, *flags)));
        let until = self.all.values().filter(|one| one.wanted().is_some()).map(|one| one.until);
        let left = until.chain(self.paused).min().map(|until| until.saturating_duration_since(now));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((false, Vec::new())),
            Err(error) => return Err(error.into()),
        }
        let first = 1 + usize::from(listener.is_some());
        let is_new = listener.is_some() && !fds[1].revents().is_empty();
        let ready = waiting.iter().zip(&fds[first..]).filter(|(_, fd)| !fd.revents().is_empty());
        Ok((is_new, ready.map(|((number, ..), _)| *number).collect()))
    }

    fn accept(&mut self) {
        while let Some(socket) = self.socket.as_ref().filter(|_| self.all.len() < CONNECTIONS) {
            let accepted = accept_with(socket.listener(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
            let client = match accepted {
                Ok(client) => client,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    tracing::warn!("cannot accept a command: {error}");
                    self.paused = Some(Instant::now() + PAUSE);
                    return;
                }
            };
            let judged = peer::judge(client.as_fd());
            let state = State::Reading(Vec::new());
            let mut connection = Connection { socket: client, state, until: Instant::now() + PATIENCE };
            if let Err(error) = judged {
                tracing::warn!("{error}");
                connection.refuse(&error);
            }
            self.all.insert(self.next, connection);
            self.next += 1;
        }
    }

    /// Reads or writes what a connection can at once.
    fn advance(&mut self, number: Number) {
        let Some(connection) = self.all.get_mut(&number) else { return };
        let line = match &mut connection.state {
            State::Working => return,
            State::Writing(line, sent) => {
                match send(&connection.socket, &line[*sent..], SendFlags::NOSIGNAL) {
                    Ok(more) => {
                        *sent += more;
                        connection.until = Instant::now() + PATIENCE;
                        if *sent == line.len() {
                            self.all.remove(&number);
                        }
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    // The client has gone.
                    Err(_) => drop(self.all.remove(&number)),
                }
                return;
            }
            State::Reading(bytes) => {
                let mut part = vec![0u8; PART];
                match recv(&connection.socket, &mut part[..], RecvFlags::empty()) {
                    // It ends before its request does.
                    Ok((0, _)) => {
                        self.all.remove(&number);
                        return;
                    }
                    Ok((more, _)) => bytes.extend_from_slice(&part[..more]),
                    Err(Errno::AGAIN | Errno::INTR) => return,
                    Err(_) => {
                        self.all.remove(&number);
                        return;
                    }
                }
                match protocol::first_line(bytes) {
                    Ok(None) => return,
                    Ok(Some(line)) => protocol::request(line),
                    Err(error) => Err(error),
                }
            }
        };
        match line {
            Ok(request) => {
                connection.state = State::Working;
                let (replies, waker) = (self.replies.clone(), Arc::clone(&self.waker));
                self.handler.handle(request, Reply { number, replies, waker, is_sent: false });
            }
            Err(error) => connection.refuse(&error),
        }
    }
}
