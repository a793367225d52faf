//! The result of a comparison as JSON.

use serde::Serialize;

use super::limits::Limits;
use super::names::{has_other_mode, has_other_owner, letter};
use super::sides::Name;
use crate::fork::{self, Difference, How};
use crate::layers::world::Kind;
use crate::util::patch::stat::Count;

/// The result of a comparison.
#[derive(Debug, Serialize)]
pub(super) struct Shown<'a> {
    pub(super) from: &'a Name,
    pub(super) to: &'a Name,
    /// Commits that only TO has, as far as known.
    pub(super) commits: Option<u64>,
    /// The newest of them, newest first, where git keeps a log of HEAD.
    pub(super) commit_list: Option<Vec<CommitRow<'a>>>,
    pub(super) entries: Vec<Row>,
    /// With --stat and -p.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stat: Option<Stat>,
    /// With -p. Bytes that are not UTF-8 are U+FFFD; `patch_b64` has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch: Option<String>,
    /// The patch in base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch_b64: Option<String>,
}

/// A commit: its id in hex, and the first line of its message.
#[derive(Debug, Serialize)]
pub(super) struct CommitRow<'a> {
    pub(super) id: &'a str,
    pub(super) subject: &'a str,
}

/// The extent of all differences between files.
#[derive(Debug, Serialize)]
pub(super) struct Stat {
    pub(super) files: u64,
    pub(super) added_lines: u64,
    pub(super) deleted_lines: u64,
    /// Paths whose difference no patch can hold.
    pub(super) in_no_patch: u64,
    pub(super) rows: Vec<StatRow>,
}

/// The extent of one file's difference.
#[derive(Debug, Serialize)]
pub(super) struct StatRow {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    binary: bool,
    added_lines: u64,
    deleted_lines: u64,
}

impl StatRow {
    pub(super) fn of(path: &[u8], count: Count) -> Self {
        let (added_lines, deleted_lines) = count.lines();
        let (path, path_b64) = text(path);
        Self { path, path_b64, binary: matches!(count, Count::Bytes { .. }), added_lines, deleted_lines }
    }
}

/// A path that differs. Bytes that are not UTF-8 are U+FFFD in `path`; `path_b64` has the exact name.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    status: char,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    before: Option<RowSide>,
    after: Option<RowSide>,
    /// The changed properties, if both sides have the path.
    changed: Vec<&'static str>,
    /// The names of changed extended attributes.
    attributes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RowSide {
    kind: Kind,
    /// Octal.
    mode: String,
    uid: Option<u32>,
    gid: Option<u32>,
    /// In bytes, of a file.
    size: Option<u64>,
    /// The number of entries in a directory that only one side has and that is not listed.
    below: Option<u64>,
}

impl Row {
    pub(super) fn of(difference: &Difference, limits: &Limits) -> Self {
        let (path, path_b64) = text(limits.shown(&difference.path).unwrap_or(&difference.path));
        let mut changed = Vec::new();
        if let (Some(before), Some(after)) = (difference.before, difference.after) {
            let all = [
                (difference.how == How::Kind, "kind"),
                (difference.how == How::Content, "content"),
                (has_other_mode(before, after), "mode"),
                (has_other_owner(before, after), "owner"),
                (!difference.attributes.is_empty(), "attributes"),
            ];
            changed.extend(all.iter().filter(|(is, _)| *is).map(|(_, what)| *what));
        }
        let attributes = difference.attributes.iter().map(|name| text(name).0).collect();
        Self {
            status: letter(difference.how),
            path,
            path_b64,
            before: difference.before.map(RowSide::of),
            after: difference.after.map(RowSide::of),
            changed,
            attributes,
        }
    }
}

impl RowSide {
    fn of(side: fork::Side) -> Self {
        let below = (side.below > 0).then_some(side.below);
        let mode = format!("{:04o}", side.mode);
        Self { kind: side.kind, mode, uid: side.uid, gid: side.gid, size: side.size, below }
    }
}

/// Bytes as text, and in base64 if the text loses some of them.
pub(super) fn text(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let is_other = text.as_bytes() != bytes;
    (text, is_other.then(|| data_encoding::BASE64.encode(bytes)))
}
