//! Long output: to stdout, or through a pager if stdout is a terminal. Also decides about colours.

use std::io::{self, IsTerminal as _, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::util::patch::paint::Paint;

/// The default pager: it ends if all fits on the screen, shows colours, and leaves the text there.
const PAGER: &str = "less -FRX";

/// The variables that name a pager, in order of precedence.
const VARIABLES: [&str; 3] = ["PFIMG_PAGER", "GIT_PAGER", "PAGER"];

/// Columns if there is no terminal.
const COLUMNS: usize = 80;

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

impl When {
    /// Decides for stdout. `NO_COLOR` turns colours off unless the user asks for them.
    pub(crate) fn paint(self) -> Paint {
        let off = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on = match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => io::stdout().is_terminal() && !off && !is_dumb,
        };
        Paint { on }
    }
}

/// Returns the maximum width of a table.
pub(crate) fn columns() -> usize {
    if !io::stdout().is_terminal() {
        return COLUMNS;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

/// Returns the pager that the environment names; `None` if it names none.
fn pager(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let named = VARIABLES.iter().find_map(|name| variable(name));
    let pager = named.unwrap_or_else(|| PAGER.to_owned());
    (!pager.trim().is_empty() && pager.trim() != "cat").then_some(pager)
}

/// Output that may be long.
pub(crate) struct Output {
    pager: Option<Child>,
    /// Whether there is still a reader.
    is_open: bool,
}

impl Output {
    /// Begins output to stdout, through a pager if that is a terminal and `paged`.
    pub(crate) fn begin(paged: bool) -> Self {
        let wanted = paged && io::stdout().is_terminal();
        let pager = if wanted { pager(|name| std::env::var(name).ok()) } else { None };
        let child = pager.and_then(|pager| {
            let mut command = Command::new("sh");
            command.args(["-c", &pager]).stdin(Stdio::piped());
            for (name, value) in [("LESS", "FRX"), ("LV", "-c")] {
                if std::env::var_os(name).is_none() {
                    command.env(name, value);
                }
            }
            command.spawn().ok()
        });
        if child.is_some() {
            // Only the pager gets an interrupt: it would lose the terminal if this program ended.
            let _ =
                signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::new(AtomicBool::new(false)));
        }
        Self { pager: child, is_open: true }
    }

    /// Writes. Succeeds also if the reader has closed the output.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.is_open {
            return Ok(());
        }
        let written = match self.pager.as_mut().and_then(|pager| pager.stdin.as_mut()) {
            Some(pager) => pager.write_all(bytes),
            None => io::stdout().lock().write_all(bytes),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_open = false;
                Ok(())
            }
            written => written.map_err(|e| Error::io(e, "cannot write to stdout")),
        }
    }

    /// Returns whether a reader still reads the output.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Ends the output, and waits until the user has left the pager.
    pub(crate) fn end(mut self) -> Result<()> {
        self.close();
        match io::stdout().lock().flush() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io(error, "cannot write to stdout"))
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self) {
        if let Some(mut pager) = self.pager.take() {
            drop(pager.stdin.take());
            let _ = pager.wait();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_names_the_pager_and_an_empty_one_names_none() {
        let with = |variables: &[(&str, &str)]| {
            pager(|name| variables.iter().find(|(its, _)| *its == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(with(&[]).as_deref(), Some(PAGER));
        assert_eq!(with(&[("PAGER", "more"), ("GIT_PAGER", "delta")]).as_deref(), Some("delta"));
        assert_eq!(with(&[("PAGER", "more"), ("PFIMG_PAGER", "most -s")]).as_deref(), Some("most -s"));
        assert_eq!(with(&[("PFIMG_PAGER", ""), ("PAGER", "more")]), None);
        assert_eq!(with(&[("GIT_PAGER", "cat")]), None);
    }
}
