//! The findings of `verify`, with codes that scripts may rely on.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::digest::Digest;
use crate::store::BlobError;

/// Whether a finding is damage, or only information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Bytes are missing, changed, or not what they claim to be.
    Damage,
    /// Nothing is lost.
    Note,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $severity:ident;)*) => {
        /// The kind of a finding. The text is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its stable text: lowercase words with hyphens.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// Whether it is damage.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)*
                }
            }
        }
    };
}

codes! {
    /// A marker cannot be read, or is not a regular file.
    MarkerUnreadable = "marker-unreadable", Damage;
    /// A marker's bytes do not hash to its name.
    MarkerDigestMismatch = "marker-digest-mismatch", Damage;
    /// A JSON file among the markers is not named by a digest, so no program finds the image.
    MarkerUnknownName = "marker-unknown-name", Damage;
    /// A manifest has a schema version that this program does not know: nothing of the image was checked.
    ManifestNewerSchema = "manifest-newer-schema", Damage;
    /// The bytes are whole, but not a manifest.
    ManifestMalformed = "manifest-malformed", Damage;
    /// The manifest's blob is missing.
    ManifestBlobMissing = "manifest-blob-missing", Damage;
    /// The manifest's blob cannot be read or decoded, or holds other bytes.
    ManifestBlobDamaged = "manifest-blob-damaged", Damage;
    /// A blob that an image needs is missing.
    BlobMissing = "blob-missing", Damage;
    /// A blob decodes, but to other bytes.
    BlobDigestMismatch = "blob-digest-mismatch", Damage;
    /// A blob is not a zstd stream, or not a regular file.
    BlobUndecodable = "blob-undecodable", Damage;
    /// A file's blob has another size than its tree declares.
    BlobSizeMismatch = "blob-size-mismatch", Damage;
    /// A layer is larger than the limit for layers that are parsed as a whole.
    BlobTooLarge = "blob-too-large", Damage;
    /// The operating system cannot read a blob.
    BlobUnreadable = "blob-unreadable", Damage;
    /// The file tree is not an `fs.tree.v1`.
    TreeMalformed = "tree-malformed", Damage;
    /// A path in the tree cannot be shown: absolute, `..`, too long, NUL.
    TreePathRefused = "tree-path-refused", Damage;
    /// An entry of the tree contradicts another, or lacks what its kind needs.
    TreeEntryRefused = "tree-entry-refused", Damage;
    /// The page manifest is malformed.
    PageManifestMalformed = "page-manifest-malformed", Damage;
    /// A page has another size than the page manifest's geometry gives.
    PageSizeMismatch = "page-size-mismatch", Damage;
    /// The environment is malformed.
    EnvMalformed = "env-malformed", Damage;
    /// The processes are malformed.
    ProcsMalformed = "procs-malformed", Damage;
    /// The model's diff is malformed.
    ModelDiffMalformed = "model-diff-malformed", Damage;
    /// The ledger is malformed.
    LedgerMalformed = "ledger-malformed", Damage;
    /// An entry of the ledger differs from the signed one.
    LedgerChainBroken = "ledger-chain-broken", Damage;
    /// The count in the ledger's header is wrong: entries were cut off or added.
    LedgerCountMismatch = "ledger-count-mismatch", Damage;
    /// Lines of the trace are not JSON objects.
    TraceMalformedLine = "trace-malformed-line", Damage;
    /// A tag's file holds no digest.
    TagMalformed = "tag-malformed", Damage;
    /// A tag names an image that does not exist.
    TagDangling = "tag-dangling", Damage;
    /// The ledger is chained with a secret that was not given.
    LedgerUnverifiable = "ledger-unverifiable", Note;
    /// A parent is not in this store, as after `pf gc --retain-recent`.
    ParentMissing = "parent-missing", Note;
    /// An image has more than two parents.
    ParentsTooMany = "parents-too-many", Note;
    /// The ledger does not continue that of the image's first parent.
    LedgerNotContinued = "ledger-not-continued", Note;
    /// The trace does not continue that of the image's first parent.
    TraceNotContinued = "trace-not-continued", Note;
    /// The dump of processes is missing: `pf gc` does not keep it.
    CriuDumpMissing = "criu-dump-missing", Note;
    /// A ledger that a merge points to is missing: `pf gc` does not keep it.
    MergedLedgerMissing = "merged-ledger-missing", Note;
    /// An oracle found a violation, and kept its crash pack.
    CrashPack = "crash-pack", Note;
    /// A crash pack was changed, or is not whole.
    CrashPackChanged = "crash-pack-changed", Note;
    /// A file that is not part of the store, for instance one that a killed writer left.
    OddFile = "odd-file", Note;
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One finding. Sorts by severity, then code, then subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Whether it is damage.
    pub severity: Severity,
    /// The kind.
    pub code: Code,
    /// The subject: a blob's digest, or a file relative to the store.
    pub subject: String,
    /// The image; the first one if several have the finding.
    pub image: Option<Digest>,
    /// The path in the image, as under a mount.
    pub path: Option<String>,
    /// Image and path again, and the fault, in words.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(code: Code, subject: impl fmt::Display, detail: impl fmt::Display) -> Self {
        Self {
            severity: code.severity(),
            code,
            subject: subject.to_string(),
            image: None,
            path: None,
            detail: detail.to_string(),
        }
    }

    /// Adds the image and path. `others` counts further images known to have the same finding.
    pub(super) fn found_in(mut self, image: Digest, path: Option<String>, others: u32) -> Self {
        let at = path.as_ref().map(|path| format!(", {path}")).unwrap_or_default();
        let more = if others > 0 { format!(" (and in {others} more images)") } else { String::new() };
        self.detail = format!("image {}{at}{more}: {}", image.hex(), self.detail);
        (self.image, self.path) = (Some(image), path);
        self
    }
}

/// One line: `verify: CODE: SUBJECT: DETAIL`, whatever bytes the names have.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verify: {}: {}: {}", self.code, Plain(&self.subject), Plain(&self.detail))
    }
}

/// Text with escaped control characters, so that it stays on its line and does not affect the terminal.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

/// The fault of a blob, without its name: the name is the subject.
pub(super) fn reason(error: &BlobError) -> String {
    match error {
        BlobError::Missing(_) => "missing from the store".into(),
        BlobError::Mismatch { measured, .. } => format!("damaged: its bytes hash to {measured}"),
        BlobError::Undecodable { reason, .. } => format!("damaged: {reason}"),
        BlobError::WrongSize { declared, found, .. } => {
            format!("{declared} bytes declared, {found} found")
        }
        BlobError::TooLarge { limit, .. } => format!("larger than {limit} bytes"),
        BlobError::Io { source, .. } => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_its_names_are() {
        let finding = Finding::new(Code::OddFile, "images/a\nb\u{1b}[2J", "odd").found_in(
            Digest::of(b""),
            Some("world/fs/x\ry".into()),
            1,
        );
        let line = finding.to_string();
        assert!(line.starts_with(r"verify: odd-file: images/a\nb\u{1b}[2J: image e3b0"), "{line}");
        assert!(line.ends_with(r", world/fs/x\ry (and in 1 more images): odd"), "{line}");
        assert!(!line.contains(char::is_control));
    }

    #[test]
    fn codes_are_words_with_hyphens_and_each_is_there_once() {
        let mut all: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(all.iter().all(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), Code::ALL.len());
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/TROUBLESHOOTING.md");
        for code in Code::ALL {
            let severity = if code.severity() == Severity::Damage { "damage" } else { "note" };
            let row = format!("| `{code}` | {severity} |");
            assert!(page.contains(&row), "docs/TROUBLESHOOTING.md has no row {row}");
        }
    }
}
