//! Starts a program as execvp(3) does, and explains why one cannot be started.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::Access;

use crate::util::limits;

/// The program that runs scripts without an interpreter's name.
const SHELL: &str = "/bin/sh";

/// Bytes at a file's start to search for its interpreter. The kernel reads 256 bytes of a script's first line.
const HEAD: u64 = 4096;

/// The longest chain of interpreters that the kernel follows.
const MAX_INTERPRETERS: usize = 5;

/// Starts a program in a new process group, since the program must be able to send signals to its group.
///
/// # Errors
/// Those of execve(2). A script that names no interpreter is not an error: the shell runs it.
pub(super) fn spawn(program: &OsStr, args: &[OsString]) -> io::Result<Child> {
    let start = |command: &mut Command| limits::with_original(|| command.process_group(0).spawn());
    match start(Command::new(program).args(args)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
            let file = find(program).filter(|file| is_script(file));
            let Some(file) = file else { return Err(error) };
            start(Command::new(SHELL).arg(file).args(args))
        }
        other => other,
    }
}

/// Explains to the caller why a program could not be started.
pub(super) fn explain(program: &OsStr, error: &io::Error) -> String {
    let name = Path::new(program).display();
    let file = find(program);
    let reason = match (error.raw_os_error(), &file) {
        (Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP), Some(file)) => {
            lost_interpreter(file)
        }
        (Some(libc::ENOEXEC), Some(_)) => Some(
            "it is neither a script nor a program of this machine's kind; look at it with `file`".to_owned(),
        ),
        _ => None,
    };
    match reason {
        Some(reason) => format!("cannot run {name}: {reason}"),
        None => format!("cannot run {name}: {error}"),
    }
}

/// Finds the file that execvp(3) runs for this name.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    let is_program = |file: &PathBuf| file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok();
    std::env::split_paths(&path).map(|folder| Path::new(".").join(folder).join(program)).find(is_program)
}

fn head(file: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    if file.is_file()
        && let Ok(file) = File::open(file)
    {
        let _ = file.take(HEAD).read_to_end(&mut head);
    }
    head
}

/// Whether a shell would take a file for a script: its first line has no NUL.
fn is_script(file: &Path) -> bool {
    let head = head(file);
    !head.iter().take_while(|byte| **byte != b'\n').any(|byte| *byte == 0)
}

/// Describes a missing interpreter without which a file cannot run, if there is one.
fn lost_interpreter(file: &Path) -> Option<String> {
    let mut file = file.to_owned();
    for _ in 0..MAX_INTERPRETERS {
        let head = head(&file);
        let (interpreter, source) = match script_interpreter(&head) {
            Some(interpreter) => (interpreter, "the first line (#!) of"),
            None => (program_interpreter(&head)?, "the program"),
        };
        let path = Path::new(OsStr::from_bytes(interpreter));
        let named = format!("{source} {} names the interpreter {}", file.display(), shown(interpreter));
        match fs::metadata(path) {
            Err(_) if interpreter.ends_with(b"\r") => {
                return Some(format!(
                    "{named}: the line ends in CR LF, as on Windows; remove the CR with `sed -i 's/\\r$//' {}`",
                    file.display()
                ));
            }
            Err(error) => return Some(format!("{named}: {error}; install it, or change the name")),
            Ok(metadata) if !metadata.is_file() => return Some(format!("{named}, which is not a file")),
            Ok(_) if rustix::fs::access(path, Access::EXEC_OK).is_err() => {
                return Some(format!("{named}, which is not executable; try `chmod +x`"));
            }
            Ok(_) => path.clone_into(&mut file),
        }
    }
    None
}

/// A path with its control characters made visible.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// The interpreter that a script's first line names. It includes a carriage return, as for the kernel.
fn script_interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line.trim_ascii_start();
    // For the kernel a carriage return is a part of the word.
    let start = line.len() - word.len();
    let word = line[start..].split(|byte| matches!(byte, b' ' | b'\t' | 0)).next()?;
    (!word.is_empty()).then_some(word)
}

/// The loader that a program in the format ELF names (`PT_INTERP`), elf(5).
fn program_interpreter(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // Numbers are little-endian on all supported machines.
    let wide = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', 1, 1] => false,
        [0x7f, b'E', b'L', b'F', 2, 1] => true,
        _ => return None,
    };
    let word = if wide { 8 } else { 4 };
    let (headers, size, count) = if wide { (32, 54, 56) } else { (28, 42, 44) };
    let (headers, size, count) = (number(headers, word)?, number(size, 2)?, number(count, 2)?);
    for index in 0..count {
        let at = usize::try_from(headers.checked_add(index.checked_mul(size)?)?).ok()?;
        if number(at, 4)? != PT_INTERP {
            continue;
        }
        let (offset, len) = if wide {
            (at.checked_add(8)?, at.checked_add(32)?)
        } else {
            (at.checked_add(4)?, at.checked_add(16)?)
        };
        let (offset, len) =
            (usize::try_from(number(offset, word)?).ok()?, usize::try_from(number(len, word)?).ok()?);
        let name = head.get(offset..offset.checked_add(len)?)?;
        return name.split(|byte| *byte == 0).next();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripts_interpreter_is_read_as_the_kernel_reads_it() {
        for (head, interpreter) in [
            (&b"#!/bin/sh\necho"[..], Some(&b"/bin/sh"[..])),
            (b"#! \t/usr/bin/env python3\n", Some(b"/usr/bin/env")),
            (b"#!/bin/sh\r\n", Some(b"/bin/sh\r")),
            (b"#!/bin/sh -e\r\n", Some(b"/bin/sh")),
            (b"#!/bin/sh", Some(b"/bin/sh")),
            (b"#!\n", None),
            (b"#! \n/bin/sh", None),
            (b"echo\n", None),
            (b"", None),
        ] {
            assert_eq!(script_interpreter(head), interpreter, "{}", shown(head));
        }
    }

    #[test]
    fn a_programs_loader_is_read_and_nonsense_is_ignored() {
        let own = head(Path::new("/proc/self/exe"));
        let loader = program_interpreter(&own).unwrap();
        assert!(loader.starts_with(b"/") && Path::new(OsStr::from_bytes(loader)).exists());
        for len in 0..own.len().min(600) {
            let _ = program_interpreter(&own[..len]);
        }
        for at in 0..64 {
            let mut odd = own.clone();
            odd[at] = 0xff;
            let _ = program_interpreter(&odd);
        }
        assert_eq!(program_interpreter(b"#!/bin/sh"), None);
    }

    #[test]
    fn a_file_with_a_zero_in_its_first_line_is_not_a_script() {
        let dir = tempfile::tempdir().unwrap();
        for (text, is) in [(&b"echo\n\0"[..], true), (b"", true), (b"\x7fELF\0", false), (b"text", true)] {
            let file = dir.path().join("file");
            fs::write(&file, text).unwrap();
            assert_eq!(is_script(&file), is);
        }
    }
}
