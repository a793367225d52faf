//! `run.conf`: options that a user gives to every `pfimg run`.
//!
//! A line is an option without its dashes, and its value: `env NAME`, `read PATH`. Empty lines, and lines that
//! begin with `#`, are ignored.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The content of a settings file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conf {
    pub(super) env: Vec<OsString>,
    pub(super) write: Vec<PathBuf>,
    pub(super) read: Vec<PathBuf>,
    pub(super) hide: Vec<PathBuf>,
    pub(super) quiet: bool,
}

/// Returns the path of the file, if this user can have one.
pub(super) fn path() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let config = config.or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(config.join("pfimg/run.conf"))
}

impl Conf {
    /// Reads the user's file, if there is one.
    pub(super) fn load() -> Result<Self> {
        let Some(path) = path() else { return Ok(Self::default()) };
        let failed = |error| Error::io(error, format!("cannot read {}", path.display()));
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        check_owner(&path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text, &path, std::env::home_dir().as_deref())
    }

    fn parse(text: &[u8], path: &Path, home: Option<&Path>) -> Result<Self> {
        let mut conf = Self::default();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            conf.line(line, home).map_err(|what| {
                let message = format!("{}, line {number}: {what}", path.display());
                Error::new(ErrorKind::InvalidInput, message).with_hint(
                    "write `env NAME`, `env NAME=VALUE`, `read PATH`, `write PATH`, `hide PATH` or `quiet`",
                )
            })?;
        }
        Ok(conf)
    }

    fn line(&mut self, line: &[u8], home: Option<&Path>) -> Result<(), String> {
        let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
        let (word, value) = (&line[..end], line[end..].trim_ascii());
        let value = OsStr::from_bytes(value);
        let list = match word {
            b"quiet" if value.is_empty() => {
                self.quiet = true;
                return Ok(());
            }
            b"quiet" => return Err("`quiet` takes no value".into()),
            b"env" => {
                self.env.push(variable(value)?);
                return Ok(());
            }
            b"read" => &mut self.read,
            b"write" => &mut self.write,
            b"hide" => &mut self.hide,
            _ => return Err(format!("{:?} is unknown", String::from_utf8_lossy(word))),
        };
        list.push(absolute(value, home)?);
        Ok(())
    }
}

/// Refuses settings that another user could have written: sudo(8) may keep its caller's home directory.
fn check_owner(path: &Path, owner: u32, mode: u32, user: u32) -> Result<()> {
    let refused = |what: &str, hint: String| {
        Err(Error::new(ErrorKind::PermissionDenied, format!("{} {what}", path.display())).with_hint(hint))
    };
    if owner != user && owner != 0 {
        return refused(
            &format!("belongs to user {owner}, and this is user {user}"),
            "name a directory of your own in XDG_CONFIG_HOME".to_owned(),
        );
    }
    if mode & 0o002 != 0 {
        return refused("can be written by every user", format!("type `chmod o-w {}`", path.display()));
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    // A home directory that is a file, or that this user may not read, holds no settings of this user.
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::EISDIR))
}

/// Checks `NAME` or `NAME=VALUE`.
pub(super) fn variable(text: &OsStr) -> Result<OsString, String> {
    let name = text.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err("a variable needs a name".into());
    }
    if name == crate::sandbox::secrets::LEDGER_SECRET.as_bytes() {
        return Err("PF_SESSION_SECRET signs ledgers: no command gets it".into());
    }
    Ok(text.to_owned())
}

fn absolute(path: &OsStr, home: Option<&Path>) -> Result<PathBuf, String> {
    let path = Path::new(path);
    let path = match (path.strip_prefix("~"), home) {
        (Ok(below), Some(home)) => home.join(below),
        (Ok(_), None) => return Err("there is no home directory for ~".into()),
        (Err(_), _) => path.to_owned(),
    };
    if !path.is_absolute() {
        return Err(format!("{:?} is not an absolute path", path.display()));
    }
    match fs::symlink_metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("cannot find {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conf> {
        Conf::parse(text.as_bytes(), Path::new("/c/run.conf"), Some(Path::new("/usr")))
    }

    #[test]
    fn a_line_is_an_option_and_its_value() {
        let conf = parse(
            "# what my agent needs\n\nenv ANTHROPIC_API_KEY\nenv\tMODE=a b=c \r\n read /etc\nwrite ~/lib\nhide ~\nquiet\n",
        );
        let expected = Conf {
            env: vec!["ANTHROPIC_API_KEY".into(), "MODE=a b=c".into()],
            read: vec!["/etc".into()],
            write: vec!["/usr/lib".into()],
            hide: vec!["/usr/".into()],
            quiet: true,
        };
        assert_eq!(conf.unwrap(), expected);
        assert_eq!(parse("").unwrap(), Conf::default());
    }

    #[test]
    fn settings_of_another_user_are_refused() {
        let check =
            |owner, mode, user| check_owner(Path::new("/c"), owner, mode, user).map_err(|e| e.to_string());
        for (owner, mode, user) in [(1000, 0o664, 1000), (0, 0o644, 1000), (0, 0o600, 0)] {
            assert_eq!(check(owner, mode, user), Ok(()));
        }
        assert!(check(1000, 0o600, 0).unwrap_err().contains("belongs to user 1000"));
        assert!(check(1000, 0o646, 1000).unwrap_err().contains("chmod o-w /c"));
    }

    #[test]
    fn a_fault_is_named_with_its_line() {
        for (text, words) in [
            ("env A\nfoo bar\n", "line 2: \"foo\" is unknown"),
            ("env\n", "line 1: a variable needs a name"),
            ("env =x", "line 1: a variable needs a name"),
            ("\n\nenv PF_SESSION_SECRET=1", "line 3: PF_SESSION_SECRET"),
            ("read usr", "line 1: \"usr\" is not an absolute path"),
            ("read", "line 1: \"\" is not an absolute path"),
            ("write /no/such", "line 1: cannot find /no/such"),
            ("quiet yes", "line 1: `quiet` takes no value"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("/c/run.conf, {words}")), "{error}");
        }
    }
}
