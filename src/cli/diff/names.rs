//! Name-status: one line for each path that differs.

use super::limits::Limits;
use crate::cli::text::{count, plain_bytes};
use crate::fork::{Difference, How, Side};
use crate::layers::world::Kind;
use crate::util::patch::name::quoted;

/// Replaces a directory that only one side has, and everything in it, by one difference with the number of
/// entries. The differences are listed in full, in the order of a walk.
pub(super) fn fold(found: Vec<Difference>) -> Vec<Difference> {
    let mut folded: Vec<Difference> = Vec::new();
    // Whether the last difference is such a directory.
    let mut is_whole = false;
    for difference in found {
        if is_whole
            && let Some(whole) = folded.last_mut()
            && is_below(&difference.path, &whole.path)
        {
            let side = if is_dir(whole.after) { &mut whole.after } else { &mut whole.before };
            if let Some(side) = side {
                side.below += 1;
            }
            continue;
        }
        is_whole = is_dir(difference.before) != is_dir(difference.after);
        folded.push(difference);
    }
    folded
}

/// Removes directories that only one side has and that have entries: the entries are listed.
pub(super) fn without_full_folders(found: Vec<Difference>) -> Vec<Difference> {
    let mut kept: Vec<Difference> = Vec::new();
    for difference in found {
        let is_full = |last: &Difference| {
            matches!(last.how, How::Added | How::Removed)
                && is_dir(last.before.or(last.after))
                && is_below(&difference.path, &last.path)
        };
        if kept.last().is_some_and(is_full) {
            kept.pop();
        }
        kept.push(difference);
    }
    kept
}

fn is_dir(side: Option<Side>) -> bool {
    side.is_some_and(|side| side.kind == Kind::Dir)
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

/// The letter of a difference.
pub(super) fn letter(how: How) -> char {
    match how {
        How::Added => 'A',
        How::Removed => 'D',
        How::Content => 'M',
        How::Kind => 'T',
        How::Attributes => 'P',
    }
}

/// The path of a difference, with a slash behind a directory.
pub(super) fn path(difference: &Difference, limits: &Limits) -> String {
    let path = limits.shown(&difference.path).unwrap_or(&difference.path);
    let is_folder = is_dir(difference.after.or(difference.before));
    if is_folder { quoted(&[path, b"/"].concat()) } else { quoted(path) }
}

/// One line.
pub(super) fn line(difference: &Difference, limits: &Limits) -> String {
    let below = |side: Option<Side>| side.map_or(0, |side| side.below);
    let more = match (difference.how, below(difference.before), below(difference.after)) {
        (How::Attributes, ..) => format!("  {}", attributes(difference).join(", ")),
        (_, 0, 0) => String::new(),
        (How::Kind, was, 0) => format!("  ({was} were in it)"),
        (_, was, is) => format!("  ({} in it)", was + is),
    };
    format!("{} {}{more}\n", letter(difference.how), path(difference, limits))
}

/// Describes differences other than content, in words.
fn attributes(difference: &Difference) -> Vec<String> {
    let mut words = Vec::new();
    if let (Some(before), Some(after)) = (difference.before, difference.after) {
        if has_other_mode(before, after) {
            words.push(format!("mode {:04o} → {:04o}", before.mode, after.mode));
        }
        if has_other_owner(before, after) {
            words.push(format!("owner {} → {}", owner(before), owner(after)));
        }
    }
    words.extend(difference.attributes.iter().map(|name| plain_bytes(name, usize::MAX)));
    words
}

fn owner(side: Side) -> String {
    let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("{}:{}", id(side.uid), id(side.gid))
}

/// Returns whether the mode changed. A link has none.
pub(super) fn has_other_mode(before: Side, after: Side) -> bool {
    before.mode != after.mode && before.kind != Kind::Symlink
}

/// Returns whether the owner changed. An unrecorded owner equals any.
pub(super) fn has_other_owner(before: Side, after: Side) -> bool {
    let other = |a: Option<u32>, b: Option<u32>| a.is_some() && b.is_some() && a != b;
    other(before.uid, after.uid) || other(before.gid, after.gid)
}

/// Counts the differing paths by kind, in words.
pub(super) fn summary(found: &[Difference]) -> String {
    let words = [
        (How::Added, "added"),
        (How::Removed, "deleted"),
        (How::Content, "changed"),
        (How::Kind, "of another kind"),
        (How::Attributes, "with other attributes"),
    ];
    let of = |how: How| found.iter().filter(|difference| difference.how == how).count();
    let parts: Vec<String> = words
        .iter()
        .filter(|(how, _)| of(*how) > 0)
        .map(|(how, word)| format!("{} {word}", of(*how)))
        .collect();
    format!("{}: {}", count(found.len() as u64, "path"), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(kind: Kind) -> Side {
        Side { kind, mode: 0o644, uid: Some(1), gid: None, size: None, below: 0 }
    }

    fn difference(path: &str, before: Option<Kind>, after: Option<Kind>) -> Difference {
        let how = match (before, after) {
            (None, _) => How::Added,
            (_, None) => How::Removed,
            (before, after) if before != after => How::Kind,
            _ => How::Content,
        };
        let path = format!("world/fs/{path}").into_bytes();
        Difference { path, how, before: before.map(side), after: after.map(side), attributes: Vec::new() }
    }

    fn some() -> Vec<Difference> {
        let (file, dir) = (Some(Kind::File), Some(Kind::Dir));
        vec![
            difference("a", None, dir),
            difference("a/b", None, dir),
            difference("a/b/c", None, file),
            difference("a/d", None, file),
            difference("a.x", file, file),
            difference("e", None, dir),
            difference("f", dir, file),
            difference("f/g", file, None),
            difference("h", file, dir),
            difference("h/i", None, file),
        ]
    }

    #[test]
    fn a_directory_of_one_side_is_one_line_with_the_number_of_its_entries() {
        let limits = Limits::default();
        let lines: String = fold(some()).iter().map(|difference| line(difference, &limits)).collect();
        assert_eq!(lines, "A a/  (3 in it)\nM a.x\nA e/\nT f  (1 were in it)\nT h/  (1 in it)\n");
        let names: Vec<_> =
            without_full_folders(some()).iter().map(|difference| path(difference, &limits)).collect();
        assert_eq!(names, ["a/b/c", "a/d", "a.x", "e/", "f", "f/g", "h/", "h/i"]);
        let words = "5 paths: 2 added, 1 changed, 2 of another kind";
        assert_eq!(summary(&fold(some())), words);
    }

    #[test]
    fn a_line_of_other_attributes_says_which() {
        let limits = Limits::default();
        let before = side(Kind::File);
        let after = Side { mode: 0o755, uid: Some(2), gid: Some(5), ..before };
        let mut difference = difference("x", Some(Kind::File), Some(Kind::File));
        difference.how = How::Attributes;
        difference.after = Some(after);
        assert_eq!(line(&difference, &limits), "P x  mode 0644 → 0755, owner 1:- → 2:5\n");
        difference.after = Some(before);
        difference.attributes = vec![b"user.note".to_vec(), b"user.\n".to_vec()];
        assert_eq!(line(&difference, &limits), "P x  user.note, user.\\n\n");
    }
}
