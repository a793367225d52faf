//! The starter: the process of a run that its caller knows.
//!
//! The command is in a separate process group, since signals that it sends to its group must not reach the caller's. A terminal
//! serves one group, so the starter hands it over when the command needs it. Signals, stops and continues of the starter are
//! passed to the command, and stops of the command to the starter, as if the two were one process.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_current_process_group, kill_process};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};

use super::channel::{Channel, Message};
use super::groups::{ControlGroup, Groups};
use super::process::{pid_of, this_program};
use super::secrets::LEDGER_SECRET;
use super::signals::{Became, Taken, look_at};
use super::{namespaces, sys};
use crate::error::{Error, Result};
use crate::util::limits;

/// Signals that are passed to the command.
const SIGNALS: [i32; 10] =
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGTSTP, SIGCONT];

/// Those of them that end a process by default.
const ENDING: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];

/// How often to check whether the terminal is free while the command waits for it.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Signals of one number within this time count as one.
const TOGETHER: Duration = Duration::from_millis(5);

/// The exit code of a command that SIGINT ended.
const INTERRUPTED: u8 = 128 + SIGINT as u8;

/// Changes of the caller's variables for the command.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables that the command does not get.
    pub held: Vec<OsString>,
    /// Variables with new values.
    pub set: Vec<(OsString, OsString)>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The command's exit code, or 128 and the number of the signal that ended it.
    pub code: u8,
    /// Whether the command was ended because its time was up.
    pub timed_out: bool,
    /// The signal by which this process has to end too.
    ending: Option<i32>,
    /// Whether the caller's group gets that signal too.
    tells_group: bool,
}

impl Outcome {
    const fn of(code: u8) -> Self {
        Self { code, timed_out: false, ending: None, tells_group: false }
    }

    /// Ends this process if a signal has to end it; otherwise returns the exit code. Must be called last.
    pub fn pass_on(self) -> u8 {
        if let Some(signal) = self.ending {
            if self.tells_group {
                let _ = kill_current_process_group(Signal::INT);
            }
            sys::die_of(signal);
        }
        self.code
    }
}

/// How long a command may take to end after SIGTERM when its time is up.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Starts the builder and waits for the command's end.
///
/// `groups` are the control groups of this process. `arguments` returns the arguments with which this program acts as the
/// builder, given the number of its channel. After `timeout` the command gets SIGTERM, and is killed if it does not end.
///
/// # Errors
/// If no process can be started, or no namespace can be made.
pub fn start(
    environment: Environment,
    groups: &[ControlGroup],
    timeout: Option<Duration>,
    arguments: impl FnOnce(i32) -> Vec<OsString>,
) -> Result<Outcome> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let groups = Groups::prepare(groups);
    let signals = Taken::new(&SIGNALS)?;
    let (channel, theirs) = Channel::pair()?;
    let mut builder = this_program();
    environment.held.iter().for_each(|name| {
        builder.env_remove(name);
    });
    builder
        .envs(environment.set)
        .env_remove(LEDGER_SECRET)
        .args(arguments(theirs.as_raw_fd()))
        // A signal to the caller's group reaches the command through this process, and only once.
        .process_group(0);
    let builder = limits::with_original(|| builder.spawn())
        .map_err(|e| Error::io(e, "cannot start a process to run the command in"))?;
    drop(theirs);
    let builder = pid_of(&builder);
    Starter {
        builder,
        groups: Some(groups),
        signals,
        channel: Some(channel),
        started: false,
        held: Vec::new(),
        terminal: File::open("/dev/tty").ok(),
        wanted: false,
        given: false,
        deadline,
        timed_out: false,
    }
    .wait()
}

#[allow(clippy::struct_excessive_bools)]
struct Starter {
    builder: Pid,
    /// The run's control group, which is removed at the end.
    groups: Option<Groups>,
    signals: Taken,
    /// The channel to the builder and later to init, while these exist.
    channel: Option<Channel>,
    /// Whether the command has started.
    started: bool,
    /// Signals for the command that came before it started.
    held: Vec<i32>,
    terminal: Option<File>,
    /// Whether the command waits for the terminal, and whether it had it.
    wanted: bool,
    given: bool,
    /// When the command's time is up; after SIGTERM, when it is killed.
    deadline: Option<Instant>,
    timed_out: bool,
}

impl Starter {
    fn wait(mut self) -> Result<Outcome> {
        loop {
            if let Some(Became::Ended(code)) = look_at(self.builder)? {
                return Ok(Outcome { timed_out: self.timed_out, ..self.end(code) });
            }
            let mut heard = self.signals.wait(self.channel.as_ref(), self.pause().as_ref())?;
            self.look_at_the_clock();
            if heard && !self.started {
                self.prepare()?;
                heard = false;
            }
            for signal in self.come() {
                if !self.started {
                    if ENDING.contains(&signal) {
                        return Ok(self.give_up(signal));
                    }
                    self.held.push(signal);
                } else if signal == SIGCONT {
                    self.go_on();
                } else {
                    self.say(Message::Signal(signal as u8));
                }
            }
            if heard {
                match self.channel.as_mut().and_then(Channel::hear) {
                    Some(Message::Stopped(signal)) => self.stopped(i32::from(signal)),
                    Some(_) => {}
                    // The builder is about to end.
                    None => self.channel = None,
                }
            }
            if self.wanted && self.is_in_foreground() {
                self.give_terminal();
            }
        }
    }

    /// Returns how long to wait for events before the clock or the terminal has to be checked.
    fn pause(&self) -> Option<Timespec> {
        let left = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match left {
            Some(left) if !self.wanted || (left.tv_sec, left.tv_nsec) < (LOOK.tv_sec, LOOK.tv_nsec) => {
                Some(left)
            }
            _ => self.wanted.then_some(LOOK),
        }
    }

    /// Ends a command whose time is up: first by SIGTERM, which it may handle, then by SIGKILL.
    fn look_at_the_clock(&mut self) {
        if self.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            return;
        }
        if self.timed_out || !self.started {
            let _ = kill_process(self.builder, Signal::KILL);
            self.deadline = None;
        } else {
            self.say(Message::Signal(SIGTERM as u8));
            self.say(Message::Continue);
            self.deadline = Some(Instant::now() + LAST_WORDS);
        }
        self.timed_out = true;
    }

    /// Does what the builder needs from outside, until init reports that the command has started.
    fn prepare(&mut self) -> Result<()> {
        match self.channel.as_mut().and_then(Channel::hear) {
            Some(Message::Left) => {
                namespaces::map_users(self.builder)?;
                self.say(Message::Mapped);
                // Moving a process takes the kernel some time. The builder makes the view during it.
                let free = self.groups.as_ref().is_some_and(|groups| groups.take_in(self.builder));
                self.say(Message::Grouped(free));
            }
            Some(Message::Started) => {
                self.started = true;
                for signal in std::mem::take(&mut self.held) {
                    if signal != SIGCONT {
                        self.say(Message::Signal(signal as u8));
                    }
                }
            }
            Some(_) => {}
            // The builder has failed and printed the reason, or is about to.
            None => self.channel = None,
        }
        Ok(())
    }

    /// Ends by a signal before the command has started. Does not wait for the builder, which may be waiting for a disk or a daemon
    /// that does not answer.
    fn give_up(&mut self, signal: i32) -> Outcome {
        let _ = kill_process(self.builder, Signal::KILL);
        self.groups = None;
        Outcome { ending: Some(signal), ..Outcome::of(128 + signal as u8) }
    }

    /// Returns the signals that came. Signals of one number that come together count as one, as the kernel treats pending ones:
    /// timeout(1) sends a signal both to a process and to its group.
    fn come(&mut self) -> Vec<i32> {
        let mut signals = self.signals.pending();
        if !signals.is_empty() {
            thread::sleep(TOGETHER);
            signals.extend(self.signals.pending());
            signals.sort_unstable();
            signals.dedup();
        }
        signals
    }

    fn say(&mut self, message: Message) {
        if self.channel.as_mut().is_some_and(|channel| !channel.say(message)) {
            self.channel = None;
        }
    }

    fn is_in_foreground(&self) -> bool {
        let terminal = self.terminal.as_ref();
        terminal.is_some_and(|terminal| tcgetpgrp(terminal).is_ok_and(|foreground| foreground == getpgrp()))
    }

    fn give_terminal(&mut self) {
        (self.wanted, self.given) = (false, true);
        self.say(Message::Foreground);
    }

    /// Acts on a stop of the command.
    fn stopped(&mut self, signal: i32) {
        if matches!(signal, SIGTTIN | SIGTTOU) && self.terminal.is_some() {
            // The command used a terminal that it does not have. Other processes of the caller's group are not stopped for this.
            self.wanted = true;
            return;
        }
        if signal == SIGTSTP && self.given {
            // The terminal sent the signal only to the command's group, so this sends it to the caller's group. This process
            // takes its own copy from the queue, and stops below.
            let _ = kill_current_process_group(Signal::TSTP);
            for signal in self.signals.pending() {
                if signal != SIGTSTP && signal != SIGCONT {
                    self.say(Message::Signal(signal as u8));
                }
            }
        }
        let _ = kill_process(getpid(), Signal::STOP);
        // A shell that stops a job takes the terminal, and continues the job with or without it.
        self.go_on();
    }

    fn go_on(&mut self) {
        if self.given && self.is_in_foreground() {
            self.give_terminal();
        } else {
            self.say(Message::Continue);
        }
    }

    /// Returns the outcome of a command that ended with this code.
    fn end(&mut self, code: u8) -> Outcome {
        if self.given
            && let Some(terminal) = &self.terminal
        {
            // A process in the background would be stopped by SIGTTOU for this call.
            let _ = sys::ignoring(libc::SIGTTOU, || tcsetpgrp(terminal, getpgrp()));
        }
        self.groups = None;
        if code != INTERRUPTED {
            return Outcome::of(code);
        }
        // A shell ends its loops and scripts only if SIGINT itself ended the process that it waited for, not for an exit code.
        Outcome { ending: Some(SIGINT), tells_group: self.given, ..Outcome::of(code) }
    }
}
