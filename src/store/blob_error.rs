//! What is known of a blob before it is read, and why it cannot be read.

use std::io;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// What is known of a payload's length before it is decompressed, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Declared by the reference to the blob: any other length is damage.
    Exact(u64),
    /// Unknown, and refused above this.
    AtMost(u64),
}

impl Size {
    pub(super) fn limit(self) -> u64 {
        match self {
            Self::Exact(n) | Self::AtMost(n) => n,
        }
    }
}

/// Why a blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file is not there.
    #[error("blob {0} is missing from the store")]
    Missing(Digest),
    /// It decodes, but to other bytes.
    #[error("blob {digest} is damaged: its bytes hash to {measured}")]
    Mismatch {
        /// The blob's name.
        digest: Digest,
        /// What its bytes hash to.
        measured: Digest,
    },
    /// It is not a zstd stream.
    #[error("blob {digest} is damaged: {reason}")]
    Undecodable {
        /// The blob's name.
        digest: Digest,
        /// The decoder's words.
        reason: String,
    },
    /// It decodes to more or fewer bytes than declared.
    #[error("blob {digest} has another size than declared: {declared} bytes declared, {found}")]
    WrongSize {
        /// The blob's name.
        digest: Digest,
        /// Bytes declared.
        declared: u64,
        /// The length found, in words, since decoding stops at the first byte too many.
        found: String,
    },
    /// It is larger than the limit for a single read.
    #[error("blob {digest} is larger than {limit} bytes, more than such a layer may have")]
    TooLarge {
        /// The blob's name.
        digest: Digest,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file system failed.
    #[error("blob {digest}: {source}")]
    Io {
        /// The blob's name.
        digest: Digest,
        /// Its failure.
        source: io::Error,
    },
}

impl BlobError {
    pub(super) fn io(digest: &Digest, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            Self::Missing(*digest)
        } else {
            Self::Io { digest: *digest, source }
        }
    }

    pub(super) fn too_long(digest: &Digest, size: Size) -> Self {
        match size {
            Size::Exact(declared) => Self::WrongSize { digest: *digest, declared, found: "more".into() },
            Size::AtMost(limit) => Self::TooLarge { digest: *digest, limit },
        }
    }

    /// The stable code under which `verify` reports it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "blob-missing",
            Self::Mismatch { .. } => "blob-digest-mismatch",
            Self::Undecodable { .. } => "blob-undecodable",
            Self::WrongSize { .. } => "blob-size-mismatch",
            Self::TooLarge { .. } => "blob-too-large",
            Self::Io { .. } => "blob-unreadable",
        }
    }
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Self {
        let kind = match &error {
            BlobError::Missing(_) => ErrorKind::Missing,
            // Whatever error the disk gave for the blob (ELOOP, EACCES): the reader of a file asked for bytes
            // and gets none.
            BlobError::Io { .. } => ErrorKind::Io(Some(libc::EIO)),
            _ => ErrorKind::Damaged,
        };
        Error::new(kind, error.to_string())
    }
}
