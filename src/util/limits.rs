//! The limits that a shell sets for its commands (getrlimit(2)): raised as far as possible, and named if they
//! hinder a daemon.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, ErrorKind, Result};

/// A smaller stack is raised to the usual size, as far as possible; with less than the second figure the
/// command line cannot be read.
const STACK: u64 = 8 << 20;
const LEAST_STACK: u64 = 1 << 20;

/// The margin, in seconds, by which a daemon ends itself before the kernel kills it for its CPU time.
const CPU_MARGIN: u64 = 5;

/// A limit that a daemon may meet.
#[derive(Debug)]
struct Limit {
    resource: Resource,
    /// The letter of ulimit(1) for it, and the word of prlimit(1).
    letter: char,
    word: &'static str,
    what: &'static str,
    unit: Unit,
    /// From here on a daemon is not hindered.
    enough: u64,
    /// Below this a daemon cannot start.
    least: u64,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Count,
    Bytes,
    Seconds,
}

const LIMITS: [Limit; 6] = [
    Limit {
        resource: Resource::As,
        letter: 'v',
        word: "as",
        what: "memory",
        unit: Unit::Bytes,
        enough: 4 << 30,
        least: LEAST_MEMORY,
    },
    Limit {
        resource: Resource::Data,
        letter: 'd',
        word: "data",
        what: "memory for data",
        unit: Unit::Bytes,
        enough: 2 << 30,
        least: LEAST_MEMORY / 2,
    },
    Limit {
        resource: Resource::Fsize,
        letter: 'f',
        word: "fsize",
        what: "the size of a file",
        unit: Unit::Bytes,
        enough: 1 << 40,
        least: 0,
    },
    Limit {
        resource: Resource::Nofile,
        letter: 'n',
        word: "nofile",
        what: "open files",
        unit: Unit::Count,
        enough: 1024,
        least: 64,
    },
    Limit {
        resource: Resource::Nproc,
        letter: 'u',
        word: "nproc",
        what: "processes and threads",
        unit: Unit::Count,
        enough: 256,
        least: 0,
    },
    Limit {
        resource: Resource::Cpu,
        letter: 't',
        word: "cpu",
        what: "CPU time",
        unit: Unit::Seconds,
        enough: u64::MAX,
        least: 2 * CPU_MARGIN,
    },
];

/// Address space that a daemon takes at its start, in bytes, with room for its smallest caches.
const LEAST_MEMORY: u64 = 256 << 20;

impl Limit {
    /// The hard limit, which this process cannot raise.
    fn hard(&self) -> Option<u64> {
        getrlimit(self.resource).maximum
    }

    fn shown(&self, value: u64) -> String {
        match self.unit {
            Unit::Count => value.to_string(),
            Unit::Bytes => format!("{} KiB", value >> 10),
            Unit::Seconds => format!("{value} s"),
        }
    }
}

/// The soft limits that this program was started with and has raised.
static ORIGINAL: OnceLock<Vec<(Resource, Rlimit)>> = OnceLock::new();

/// Raises the limits that every command needs: descriptors and a stack. Called at the start, before there is
/// another thread.
///
/// # Errors
/// If the stack is too small to read a command line.
pub(crate) fn raise() -> Result<()> {
    let mut original = Vec::new();
    let files = getrlimit(Resource::Nofile);
    if files.current != files.maximum {
        original.push((Resource::Nofile, files));
        let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    }
    let stack = getrlimit(Resource::Stack);
    if stack.current.is_some_and(|soft| soft < STACK) {
        let wanted = stack.maximum.map_or(STACK, |hard| hard.min(STACK));
        original.push((Resource::Stack, stack));
        let raised = setrlimit(Resource::Stack, Rlimit { current: Some(wanted), ..stack });
        let least = if raised.is_ok() { wanted } else { stack.current.unwrap_or(0) };
        if least < LEAST_STACK {
            let what = format!("the stack is limited to {} KiB (ulimit -s)", least >> 10);
            return Err(Error::new(ErrorKind::NoSpace, what).with_hint(
                "run `ulimit -s 8192` in a new shell, or as root `prlimit --pid $$ --stack=8388608` for this one",
            ));
        }
    }
    let _ = ORIGINAL.set(original);
    Ok(())
}

/// Starts a program under the original limits of this one.
pub(crate) fn with_original<T>(start: impl FnOnce() -> T) -> T {
    let original = ORIGINAL.get().map_or(&[][..], Vec::as_slice);
    let raised: Vec<_> = original.iter().map(|(resource, _)| (*resource, getrlimit(*resource))).collect();
    let set = |limits: &[(Resource, Rlimit)]| {
        for (resource, limit) in limits {
            let _ = setrlimit(*resource, *limit);
        }
    };
    set(original);
    let started = start();
    set(&raised);
    started
}

/// Raises the limits of a daemon to the hard ones: the soft ones are meant for programs, and a daemon serves
/// others. Called before there is another thread.
pub(crate) fn raise_for_daemon() {
    for limit in &LIMITS {
        let Rlimit { current, maximum } = getrlimit(limit.resource);
        let wanted = match (limit.resource, maximum) {
            // The soft limit gives a signal, which ends the daemon; the hard limit kills it.
            (Resource::Cpu, Some(hard)) => Some(hard.saturating_sub(CPU_MARGIN).max(1)),
            _ => maximum,
        };
        if current != wanted {
            let _ = setrlimit(limit.resource, Rlimit { current: wanted, maximum });
        }
    }
    if getrlimit(Resource::As).maximum.is_some() {
        few_arenas();
    }
}

/// Makes the allocator of the C library take address space for few threads: otherwise it takes 64 MiB for
/// each thread.
#[allow(unsafe_code)]
fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain call on numbers, before other threads allocate.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes writes beyond the largest size of a file fail with an error (EFBIG) instead of ending this program.
/// Programs that it starts are not affected.
pub(crate) fn outlive_large_files() {
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

/// The share of this process's address space, which may be limited, that a cache may take: in memory, and in
/// mapped files.
pub(crate) fn cache_sizes(memory: u64, mapped: u64) -> (u64, u64) {
    let left = |resource| getrlimit(resource).maximum.map(|hard: u64| hard.saturating_sub(LEAST_MEMORY / 2));
    let (addresses, data) = (left(Resource::As), left(Resource::Data));
    let of_memory = [addresses, data].into_iter().flatten().map(|left| left / 4).min();
    let of_mapped = addresses.map(|left| left / 4);
    (memory.min(of_memory.unwrap_or(memory)), mapped.min(of_mapped.unwrap_or(mapped)))
}

/// Fails if a limit is too low for a daemon to start.
pub(crate) fn check() -> Result<()> {
    match told(&found(|limit| limit.least)) {
        None => Ok(()),
        Some((what, hint)) => {
            // The hint's text comes from `told`.
            Err(Error::new(ErrorKind::NoSpace, format!("a limit of this shell is too low: {what}"))
                .with_hint(hint))
        }
    }
}

/// Limits that may hinder a daemon, and the commands that raise them.
pub(crate) fn hindering() -> Option<(String, String)> {
    told(&found(|limit| limit.enough))
}

/// Adds the present limits to an error that a limit may have caused.
pub(crate) fn explain(error: Error) -> Error {
    let may_be =
        matches!(error.kind(), ErrorKind::Io(Some(libc::EMFILE | libc::EAGAIN | libc::ENOMEM | libc::EFBIG)));
    match hindering().filter(|_| may_be && error.hint().is_none()) {
        Some((what, hint)) => error.with_hint(format!("limits of this shell: {what}; {hint}")),
        None => error,
    }
}

/// Limits of this process that are below a mark.
fn found(mark: impl Fn(&Limit) -> u64) -> Vec<(&'static Limit, u64)> {
    // The kernel does not count the processes of root.
    let counts = |limit: &Limit| limit.word != "nproc" || !rustix::process::geteuid().is_root();
    let low = |limit: &'static Limit| {
        let hard = limit.hard().filter(|hard| *hard < mark(limit))?;
        counts(limit).then_some((limit, hard))
    };
    LIMITS.iter().filter_map(low).collect()
}

/// `memory 1024 KiB (ulimit -v), open files 20 (ulimit -n)`, and how to raise them.
fn told(limits: &[(&Limit, u64)]) -> Option<(String, String)> {
    limits.first()?;
    let mut text = String::new();
    for (at, (limit, hard)) in limits.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{} {} (ulimit -{})", limit.what, limit.shown(*hard), limit.letter);
    }
    let join = |each: &dyn Fn(&Limit) -> String, with: &str| {
        limits.iter().map(|(limit, _)| each(limit)).collect::<Vec<_>>().join(with)
    };
    // The kernel has no descriptors without limit.
    let most = |limit: &Limit| if limit.word == "nofile" { "4096" } else { "unlimited" };
    let letters = join(&|limit| format!("ulimit -{} {}", limit.letter, most(limit)), "; ");
    let words = join(&|limit| format!("--{}={}", limit.word, most(limit)), " ");
    let hint = format!("run `{letters}` in a new shell, or as root `prlimit --pid $$ {words}` for this one");
    Some((text, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_with_the_commands_that_raise_them() {
        let limit = |word| LIMITS.iter().find(|limit| limit.word == word).unwrap();
        assert_eq!(told(&[]), None);
        let (what, hint) = told(&[(limit("as"), 20 << 20), (limit("nofile"), 20)]).unwrap();
        assert_eq!(what, "memory 20480 KiB (ulimit -v), open files 20 (ulimit -n)");
        assert_eq!(
            hint,
            "run `ulimit -v unlimited; ulimit -n 4096` in a new shell, or as root \
             `prlimit --pid $$ --as=unlimited --nofile=4096` for this one"
        );
    }
}
