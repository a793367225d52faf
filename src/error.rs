//! The one public error: what went wrong, with what, and what to do about it.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// Result of everything public in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of thing went wrong. Decides errno and exit code, nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such image, tag, fork, path or store.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// A name, digest, option or file that makes no sense; includes prefixes that match several images.
    InvalidInput,
    /// Something that can never be changed was to be changed.
    ReadOnly,
    /// The folder is no `ProcessFork` store.
    NotAStore,
    /// A schema newer than this program.
    UnsupportedSchema,
    /// A blob that something refers to is not in the store.
    Missing,
    /// Bytes that do not match their digest, declared size or format.
    Damaged,
    /// The operating system refused for lack of rights.
    PermissionDenied,
    /// Somebody else holds it.
    Busy,
    /// A daemon does not answer in time.
    NoAnswer,
    /// No space, or a budget is used up.
    NoSpace,
    /// This kernel, store or build cannot do it.
    Unsupported,
    /// An event loop would have to wait for the disk. A worker does it then, and no caller of a file operation gets this.
    Waits,
    /// A file operation that the rules of a filesystem refuse.
    Posix(Posix),
    /// Any other failure of the operating system.
    Io(Option<i32>),
}

/// What a filesystem refuses by its rules, beyond what the other kinds say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Posix {
    /// A folder is needed.
    NotADirectory,
    /// A folder will not do.
    IsADirectory,
    /// The folder still holds something.
    NotEmpty,
    /// A name of more than 255 bytes, or a target of more than 4095.
    NameTooLong,
    /// The file has as many links as it can.
    TooManyLinks,
    /// Not allowed to anyone.
    NotPermitted,
    /// The two names cannot be brought together by a rename or a link.
    CrossesDevices,
    /// No such extended attribute.
    NoAttribute,
    /// The value does not fit.
    Range,
    /// The file would be too large.
    TooLarge,
    /// Nothing lies at or behind that offset.
    NoSuchOffset,
    /// The file is gone and nothing of it is left.
    Stale,
}

impl ErrorKind {
    /// The errno a file operation answers with. The only place where one is decided.
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::AlreadyExists => libc::EEXIST,
            Self::InvalidInput => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            // A blob that is gone is an I/O error to the reader of a file that is still listed: ENOENT would make
            // tools believe that the name vanished.
            Self::Missing | Self::Damaged | Self::NotAStore | Self::UnsupportedSchema => libc::EIO,
            Self::PermissionDenied => libc::EACCES,
            Self::Busy => libc::EBUSY,
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
                // Not EACCES: rights do not matter here, even root is refused.
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
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// Makes an error from one of the operating system, saying what was being done.
    pub fn io(source: io::Error, doing: impl Into<Cow<'static, str>>) -> Self {
        let kind = match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => ErrorKind::NotFound,
            (io::ErrorKind::AlreadyExists, _) => ErrorKind::AlreadyExists,
            (io::ErrorKind::PermissionDenied, _) => ErrorKind::PermissionDenied,
            (io::ErrorKind::ReadOnlyFilesystem, _) => ErrorKind::ReadOnly,
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => ErrorKind::NoSpace,
            (_, code) => ErrorKind::Io(code),
        };
        Self { kind, message: doing.into(), hint: None, source: Some(Box::new(source)) }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error this one came from.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Prefixes the message with what it is about, for instance an image's id.
    #[must_use]
    pub fn context(mut self, about: impl fmt::Display) -> Self {
        self.message = format!("{about}: {}", self.message).into();
        self
    }

    /// What class of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the reader can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The errno a file operation answers with.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// The exit code of a command that fails with this, as `pf` has them: 1 general, 2 bad input, 4 integrity.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::InvalidInput
            | ErrorKind::NotAStore
            | ErrorKind::UnsupportedSchema => 2,
            ErrorKind::Missing | ErrorKind::Damaged => 4,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut source = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
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
    fn damage_is_an_io_error_to_readers_and_exit_code_four() {
        for kind in [ErrorKind::Missing, ErrorKind::Damaged] {
            let error = Error::new(kind, "x");
            assert_eq!((error.errno(), error.exit_code()), (libc::EIO, 4));
        }
    }
}
