//! The process of a run that its caller knows.
//!
//! The command is in a process group of its own: what it sends to its group must not reach the caller's. So the terminal, which
//! knows groups, is handed over when the command wants it, and what happens to this process (a signal, being stopped and continued) is
//! done to the command, and the other way round, as if they were one.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_current_process_group, kill_process};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};

use super::channel::{Channel, Message};
use super::groups::{ControlGroup, Groups};
use super::secrets::LEDGER_SECRET;
use super::signals::{Became, Taken, look_at};
use super::{namespaces, pid_of, sys, this_program};
use crate::error::{Error, Result};
use crate::util::limits;

/// What is handed on to the command.
const SIGNALS: [i32; 10] =
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGTSTP, SIGCONT];

/// Those of them that end a process which does nothing about them.
const ENDING: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];

/// How often is looked whether the terminal is free, while the command waits for it.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What comes within this time comes together.
const TOGETHER: Duration = Duration::from_millis(5);

/// The code of a command that SIGINT ended.
const INTERRUPTED: u8 = 128 + SIGINT as u8;

/// How the command's variables differ from the caller's.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Variables that stay outside.
    pub held: Vec<OsString>,
    /// Variables with new values.
    pub set: Vec<(OsString, OsString)>,
}

/// Starts the builder and waits. Gives the command's exit code, or 128 and the number of the signal that ended it.
///
/// `groups` are the control groups of this process. `arguments` are those with which this program is the builder, given the number of
/// its channel.
///
/// # Errors
/// If no process can be started, or no namespace made.
pub fn start(
    environment: Environment,
    groups: &[ControlGroup],
    arguments: impl FnOnce(i32) -> Vec<OsString>,
) -> Result<u8> {
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
        // What is sent to the caller's group gets to the command by this process, once.
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
    }
    .wait()
}

struct Starter {
    builder: Pid,
    /// Until the end, after which a group of the run is removed.
    groups: Option<Groups>,
    signals: Taken,
    /// To the builder, and then to init, while that is there.
    channel: Option<Channel>,
    /// Whether the command runs.
    started: bool,
    /// Signals for the command that came before it ran.
    held: Vec<i32>,
    terminal: Option<File>,
    /// Whether the command waits for the terminal, and whether it had it.
    wanted: bool,
    given: bool,
}

impl Starter {
    fn wait(mut self) -> Result<u8> {
        loop {
            if let Some(Became::Ended(code)) = look_at(self.builder)? {
                return Ok(self.end(code));
            }
            let mut heard = self.signals.wait(self.channel.as_ref(), self.wanted.then_some(&LOOK))?;
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

    /// Does what the builder needs from outside, until init says that the command runs.
    fn prepare(&mut self) -> Result<()> {
        match self.channel.as_mut().and_then(Channel::hear) {
            Some(Message::Left) => {
                namespaces::map_users(self.builder)?;
                self.say(Message::Mapped);
                // The kernel takes its time to move a process, in which the builder makes the view.
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
            // The builder has failed and said why, or is about to.
            None => self.channel = None,
        }
        Ok(())
    }

    /// Ends before the command runs, by the signal that asks for it. The builder may wait for a disk, or a daemon, that does not answer:
    /// it is not waited for.
    fn give_up(&mut self, signal: i32) -> u8 {
        let _ = kill_process(self.builder, Signal::KILL);
        self.groups = None;
        sys::die_of(signal);
        128 + signal as u8
    }

    /// The signals that came. Those of a number that come together are one, as they are for a process that was not asked yet:
    /// timeout(1) sends its own to a process and to its group.
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

    /// The command was stopped.
    fn stopped(&mut self, signal: i32) {
        if matches!(signal, SIGTTIN | SIGTTOU) && self.terminal.is_some() {
            // By using a terminal that it does not have. Who else is in the caller's group is not stopped for that.
            self.wanted = true;
            return;
        }
        if signal == SIGTSTP && self.given {
            // The terminal told the command's group alone. This process takes it like anybody else: it stops below.
            let _ = kill_current_process_group(Signal::TSTP);
            for signal in self.signals.pending() {
                if signal != SIGTSTP && signal != SIGCONT {
                    self.say(Message::Signal(signal as u8));
                }
            }
        }
        let _ = kill_process(getpid(), Signal::STOP);
        // Whoever stops a job takes the terminal, and continues it with or without.
        self.go_on();
    }

    fn go_on(&mut self) {
        if self.given && self.is_in_foreground() {
            self.give_terminal();
        } else {
            self.say(Message::Continue);
        }
    }

    /// Ends as the command did.
    fn end(&mut self, code: u8) -> u8 {
        if self.given
            && let Some(terminal) = &self.terminal
        {
            // Who is in the background would be stopped for it.
            let _ = sys::ignoring(libc::SIGTTOU, || tcsetpgrp(terminal, getpgrp()));
        }
        if code == INTERRUPTED {
            // A shell ends its loops and scripts if what it waited for was ended by SIGINT, and not where that is an exit code.
            if self.given {
                let _ = kill_current_process_group(Signal::INT);
            }
            self.groups = None;
            sys::die_of(SIGINT);
        }
        code
    }
}
