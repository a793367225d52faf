//! The one public error: what failed, on what, and what to do about it.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Result of everything public in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error. It alone decides errno and exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such image, tag, fork, path or store.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// An invalid name, digest, option or file, or a prefix that matches several images.
    InvalidInput,
    /// The operation would change something that never changes.
    ReadOnly,
    /// The directory is not a `ProcessFork` store.
    NotAStore,
    /// A schema that is newer than this program.
    UnsupportedSchema,
    /// A blob with a reference to it is not in the store.
    Missing,
    /// Bytes that do not match their digest, declared size or format.
    Damaged,
    /// The operating system refused for lack of permission.
    PermissionDenied,
    /// Two sides changed one path, so that the operation would lose a change.
    Conflict,
    /// Held by another process.
    Busy,
    /// A daemon did not answer in time.
    NoAnswer,
    /// No space, or a budget is used up.
    NoSpace,
    /// This kernel, store or build does not support it.
    Unsupported,
    /// An event loop would have to wait for the disk. A worker then repeats the operation, so no caller ever gets this.
    Waits,
    /// A file operation that the rules of a filesystem refuse.
    Posix(Posix),
    /// Any other failure of the operating system.
    Io(Option<i32>),
}

/// The refusals of a filesystem that the other kinds do not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Posix {
    /// A directory is needed.
    NotADirectory,
    /// The operation does not work on a directory.
    IsADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// A name of more than 255 bytes, or a target of more than 4095.
    NameTooLong,
    /// The file already has the maximum number of links.
    TooManyLinks,
    /// Not allowed for any user.
    NotPermitted,
    /// The two names cannot be connected by a rename or a link.
    CrossesDevices,
    /// No such extended attribute.
    NoAttribute,
    /// The value does not fit.
    Range,
    /// The file would be too large.
    TooLarge,
    /// There is no data at or after that offset.
    NoSuchOffset,
    /// The file was removed completely.
    Stale,
}

/// The meaning of a command's exit code. docs/TROUBLESHOOTING.md has the same table; `pfimg run` has further codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked for.
    Success = 0,
    /// A comparison found a difference, a replay found its violation again, or some of several things failed.
    Differs = 1,
    /// The command line, or a value in it, is invalid.
    Usage = 2,
    /// Two sides changed the same thing.
    Conflict = 3,
    /// Something in the store is damaged or missing.
    Damage = 4,
    /// There is no such store, image, tag, fork or path.
    NotFound = 5,
    /// The name is taken.
    Exists = 6,
    /// Another process holds it, or a rule or missing permission forbids it.
    Refused = 7,
    /// The machine lacks something: FUSE, namespaces, disk space.
    Environment = 8,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(u8::from(exit))
    }
}

/// Every kind, with the name that programs know it by. A name never changes its meaning.
const NAMES: [(ErrorKind, &str); 28] = [
    (ErrorKind::NotFound, "not-found"),
    (ErrorKind::AlreadyExists, "exists"),
    (ErrorKind::InvalidInput, "invalid-input"),
    (ErrorKind::ReadOnly, "read-only"),
    (ErrorKind::NotAStore, "not-a-store"),
    (ErrorKind::UnsupportedSchema, "unsupported-schema"),
    (ErrorKind::Missing, "missing"),
    (ErrorKind::Damaged, "damaged"),
    (ErrorKind::PermissionDenied, "permission-denied"),
    (ErrorKind::Conflict, "conflict"),
    (ErrorKind::Busy, "busy"),
    (ErrorKind::NoAnswer, "no-answer"),
    (ErrorKind::NoSpace, "no-space"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Io(None), "io"),
    (ErrorKind::Posix(Posix::NotADirectory), "not-a-directory"),
    (ErrorKind::Posix(Posix::IsADirectory), "is-a-directory"),
    (ErrorKind::Posix(Posix::NotEmpty), "not-empty"),
    (ErrorKind::Posix(Posix::NameTooLong), "name-too-long"),
    (ErrorKind::Posix(Posix::TooManyLinks), "too-many-links"),
    (ErrorKind::Posix(Posix::NotPermitted), "not-permitted"),
    (ErrorKind::Posix(Posix::CrossesDevices), "crosses-devices"),
    (ErrorKind::Posix(Posix::NoAttribute), "no-attribute"),
    (ErrorKind::Posix(Posix::Range), "range"),
    (ErrorKind::Posix(Posix::TooLarge), "too-large"),
    (ErrorKind::Posix(Posix::NoSuchOffset), "no-such-offset"),
    (ErrorKind::Posix(Posix::Stale), "stale"),
    // Errors of the command line's parser share this kind; see `cli::envelope`.
    (ErrorKind::InvalidInput, "usage"),
];

impl ErrorKind {
    /// The name that programs know it by: in `--json`, and between a daemon and its commands.
    pub fn name(self) -> &'static str {
        // `Waits` never reaches a caller, so it needs no name.
        let named = match self {
            Self::Io(_) => Self::Io(None),
            other => other,
        };
        NAMES.iter().find(|(kind, _)| *kind == named).map_or("io", |(_, name)| name)
    }

    /// Returns the kind with a name, or none if this version does not know the name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }

    /// Returns the exit code of a command that fails with this kind. No other place decides exit codes.
    pub fn exit(self) -> Exit {
        match self {
            Self::InvalidInput => Exit::Usage,
            Self::Missing | Self::Damaged => Exit::Damage,
            Self::NotFound | Self::NotAStore => Exit::NotFound,
            Self::AlreadyExists => Exit::Exists,
            Self::Conflict => Exit::Conflict,
            Self::ReadOnly | Self::PermissionDenied | Self::Busy | Self::NoAnswer => Exit::Refused,
            Self::NoSpace | Self::Unsupported | Self::UnsupportedSchema | Self::Io(_) | Self::Waits => {
                Exit::Environment
            }
            Self::Posix(rule) => match rule {
                Posix::NotADirectory | Posix::IsADirectory | Posix::NameTooLong | Posix::Range => Exit::Usage,
                Posix::NotEmpty | Posix::TooManyLinks | Posix::NotPermitted | Posix::CrossesDevices => {
                    Exit::Refused
                }
                Posix::NoAttribute | Posix::NoSuchOffset | Posix::Stale => Exit::NotFound,
                Posix::TooLarge => Exit::Environment,
            },
        }
    }

    /// Returns the errno of a file operation that fails with this kind. No other place decides an errno.
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::AlreadyExists => libc::EEXIST,
            Self::InvalidInput => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            // For the reader of a listed file a missing blob is an I/O error. ENOENT would make tools believe that the name no
            // longer exists.
            Self::Missing | Self::Damaged | Self::NotAStore | Self::UnsupportedSchema => libc::EIO,
            Self::PermissionDenied => libc::EACCES,
            Self::Busy | Self::Conflict => libc::EBUSY,
            Self::NoAnswer => libc::ETIMEDOUT,
            Self::NoSpace => libc::ENOSPC,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Waits => libc::EAGAIN,
            Self::Posix(rule) => match rule {
                Posix::NotADirectory => libc::ENOTDIR,
                Posix::IsADirectory => libc::EISDIR,
                Posix::NotEmpty => libc::ENOTEMPTY,
                Posix::NameTooLong => libc::ENAMETOOLONG,
                Posix::TooManyLinks => libc::EMLINK,
                // EPERM instead of EACCES, since even root is refused.
                Posix::NotPermitted => libc::EPERM,
                Posix::CrossesDevices => libc::EXDEV,
                Posix::NoAttribute => libc::ENODATA,
                Posix::Range => libc::ERANGE,
                Posix::TooLarge => libc::EFBIG,
                Posix::NoSuchOffset => libc::ENXIO,
                Posix::Stale => libc::ESTALE,
            },
            Self::Io(code) => code.unwrap_or(libc::EIO),
        }
    }
}

/// An error with its kind, a message naming the path, image or fork, and a hint what to do.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    subject: Option<Box<Subject>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The subject of an error, for programs.
#[derive(Debug)]
enum Subject {
    Path(PathBuf),
    /// The name of a fork, tag or image that was looked for.
    Name(String),
}

impl Error {
    /// Makes an error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), hint: None, subject: None, source: None }
    }

    /// Makes an error from one of the operating system; `doing` names the operation.
    pub fn io(source: io::Error, doing: impl Into<Cow<'static, str>>) -> Self {
        let kind = match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => ErrorKind::NotFound,
            (io::ErrorKind::AlreadyExists, _) => ErrorKind::AlreadyExists,
            (io::ErrorKind::PermissionDenied, _) => ErrorKind::PermissionDenied,
            (io::ErrorKind::ReadOnlyFilesystem, _) => ErrorKind::ReadOnly,
            (io::ErrorKind::ResourceBusy, _) => ErrorKind::Busy,
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => ErrorKind::NoSpace,
            (_, code) => ErrorKind::Io(code),
        };
        Self { kind, message: doing.into(), hint: None, subject: None, source: Some(Box::new(source)) }
    }

    /// Adds a hint: what the reader can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the path that the error is about.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.subject = Some(Box::new(Subject::Path(path.as_ref().to_owned())));
        self
    }

    /// Adds the name that was not found.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.subject = Some(Box::new(Subject::Name(name.to_owned())));
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Prefixes the message with its subject, for instance an image's id.
    #[must_use]
    pub fn context(mut self, about: impl fmt::Display) -> Self {
        self.message = format!("{about}: {}", self.message).into();
        self
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The hint.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The path that the error is about, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self.subject.as_deref() {
            Some(Subject::Path(path)) => Some(path),
            _ => None,
        }
    }

    /// The name that was not found, if the error has one.
    pub fn missing_name(&self) -> Option<&str> {
        match self.subject.as_deref() {
            Some(Subject::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// What failed, on what and why, without the hint.
    pub fn message(&self) -> String {
        let mut message = self.message.clone().into_owned();
        let mut source = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = source {
            message.push_str(": ");
            message.push_str(&error.to_string());
            source = error.source();
        }
        message
    }

    /// The errno of a file operation that fails with this.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// The exit code of a command that fails with this.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit().into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_cause_and_the_way_out() {
        let error = Error::io(io::Error::from_raw_os_error(libc::ENOSPC), "cannot write blob")
            .with_hint("free some space");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.errno(), libc::ENOSPC);
        let text = error.context("image abcd").to_string();
        assert!(
            text.starts_with("image abcd: cannot write blob: ") && text.ends_with("(free some space)"),
            "{text}"
        );
    }

    #[test]
    fn every_kind_has_a_unique_name_that_leads_back_to_it() {
        for (kind, name) in NAMES.iter().filter(|(_, name)| *name != "usage") {
            assert_eq!((kind.name(), ErrorKind::named(name)), (*name, Some(*kind)));
        }
        let mut names: Vec<_> = NAMES.iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
        assert_eq!(ErrorKind::Io(Some(libc::EIO)).name(), "io");
        assert_eq!(ErrorKind::named("no such kind"), None);
    }

    #[test]
    fn the_documents_table_of_kinds_says_each_name_with_its_exit_code() {
        let page = include_str!("../docs/TROUBLESHOOTING.md");
        for (kind, name) in NAMES {
            let row = page.lines().find(|line| line.contains(&format!("`{name}`")) && line.starts_with("| "));
            let code = row.and_then(|row| row.trim_start_matches("| ").split(' ').next());
            assert_eq!(code, Some(&*u8::from(kind.exit()).to_string()), "{name}: {row:?}");
        }
    }

    #[test]
    fn damage_is_an_io_error_to_readers_and_exit_code_four() {
        for kind in [ErrorKind::Missing, ErrorKind::Damaged] {
            let error = Error::new(kind, "x");
            assert_eq!((error.errno(), error.exit_code()), (libc::EIO, 4));
        }
    }
}
