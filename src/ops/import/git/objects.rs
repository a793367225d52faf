//! Adds the objects of alternates, which a repository takes from another one.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use super::super::mended::MendedKind;
use super::super::source::read;
use super::super::ties::{TieKind, resolved, tie};
use super::super::walk::Found;
use super::mender::{MAX_FILE, Members, Mender, as_path, canonical, is_at_or_below};
use crate::error::Result;
use crate::mount::reach::Top;

/// The longest chain of alternates that is followed; git itself follows five.
const MAX_DEPTH: usize = 5;

/// Adds the objects that the repository takes from elsewhere. `objects` and `alternates` are places in the listing.
pub(super) fn alternates(
    mender: &mut Mender<'_>,
    members: &Members,
    objects: usize,
    alternates: usize,
) -> Result<()> {
    let (folder, origin) = {
        let found = &mender.listing.found[objects];
        (found.path.clone(), found.origin(mender.top()))
    };
    let found = &mender.listing.found[alternates];
    let (path, moved) = (found.path.clone(), found.source.is_some());
    let Some(text) = found.text(mender.top(), MAX_FILE) else {
        mender.ties.push(tie(TieKind::GitUnread, &path, Path::new("more than 16 MiB, or no permission")));
        return Ok(());
    };
    let mut kept = Vec::new();
    let mut todo = VecDeque::new();
    for (line, written) in lines(&text) {
        let target = resolved(&origin, as_path(&written));
        match canonical(&origin.join(as_path(&written))) {
            Some(end) if !moved && is_in_image(mender, members, as_path(&written), &target, &end) => {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
            Some(end) if mender.may_take(&end) => todo.push_back((end, 1)),
            _ => mender.ties.push(tie(TieKind::GitAlternates, &path, &target)),
        }
    }
    let mut seen: HashSet<PathBuf> = canonical(&origin).into_iter().collect();
    let mut have: HashSet<Vec<u8>> = HashSet::new();
    let below = mender.listing.found.iter().filter(|found| is_at_or_below(&found.path, &folder));
    have.extend(below.map(|found| found.path.clone()));
    while let Some((end, depth)) = todo.pop_front() {
        if !seen.insert(end.clone()) {
            continue;
        }
        let copied = mender.copy(&folder, &end, &is_object)?;
        let new: Vec<Found> = copied.into_iter().filter(|found| have.insert(found.path.clone())).collect();
        mender.listing.found.extend(new);
        mender.mended(MendedKind::Alternates, &folder, &end);
        let text = Top::open(&end).and_then(|top| read(&top, b"info/alternates", MAX_FILE));
        for (_, written) in lines(&text.ok().flatten().unwrap_or_default()) {
            match canonical(&end.join(as_path(&written))) {
                Some(next) if depth < MAX_DEPTH && mender.may_take(&next) => {
                    todo.push_back((next, depth + 1));
                }
                _ => {
                    let target = resolved(&end, as_path(&written));
                    mender.ties.push(tie(TieKind::GitAlternates, &path, &target));
                }
            }
        }
    }
    if kept.is_empty() {
        mender.dropped.push(path);
    } else if kept != text {
        mender.listing.found[alternates].make(kept);
    }
    Ok(())
}

/// Whether a relative path leads to a directory of objects inside the image.
fn is_in_image(mender: &Mender<'_>, members: &Members, written: &Path, target: &Path, end: &Path) -> bool {
    let inside = end.strip_prefix(mender.top().path()).ok();
    written.is_relative()
        && mender.place.holds(target)
        && inside.is_some_and(|path| members.0.contains_key(path.as_os_str().as_encoded_bytes()))
}
/// Whether a repository needs this path of the objects that it took from elsewhere. It needs objects, packs, and graphs that its
/// own graph may depend on. Other files describe the other repository.
fn is_object(path: &[u8]) -> bool {
    let mut names = path.split(|b| *b == b'/');
    let (first, second, third) = (names.next().unwrap_or_default(), names.next(), names.next());
    match (first, second) {
        (b"pack" | b"info", None) => true,
        (b"pack", Some(name)) => {
            let ends: [&[u8]; 6] = [b".pack", b".idx", b".rev", b".mtimes", b".promisor", b".keep"];
            third.is_none() && name.starts_with(b"pack-") && ends.iter().any(|end| name.ends_with(end))
        }
        (b"info", Some(b"commit-graphs")) => {
            third.is_none_or(|name| name.starts_with(b"graph-") && name.ends_with(b".graph"))
        }
        (first, second) => {
            let is_hex = |name: &[u8]| name.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            first.len() == 2 && is_hex(first) && third.is_none() && second.is_none_or(is_hex)
        }
    }
}

/// Returns the lines of `objects/info/alternates` that name directories, each with its path.
fn lines(text: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| (line, unquoted(line).unwrap_or_else(|| line.to_vec())))
}

/// Returns the path in a quoted C string. Returns none if the line is not quoted.
fn unquoted(line: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = line.strip_prefix(b"\"")?.iter();
    let mut out = Vec::new();
    loop {
        match bytes.next()? {
            b'"' => return bytes.next().is_none().then_some(out),
            b'\\' => {
                let byte = match bytes.next()? {
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    byte @ (b'"' | b'\\') => *byte,
                    first @ b'0'..=b'3' => {
                        let mut value = first - b'0';
                        for _ in 0..2 {
                            let digit = bytes.next().filter(|b| matches!(b, b'0'..=b'7'))?;
                            value = value << 3 | (digit - b'0');
                        }
                        value
                    }
                    _ => return None,
                };
                out.push(byte);
            }
            byte => out.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_alternates_are_read_as_git_reads_them() {
        let text = b"/a/objects\n\n# note\n../b\n\"/c\\\"\\303\\251 \"\n\"open\n\"/d\\9\"";
        let paths: Vec<_> = lines(text).map(|(_, path)| path).collect();
        let want: [&[u8]; 5] = [b"/a/objects", b"../b", "/c\"\u{e9} ".as_bytes(), b"\"open", b"\"/d\\9\""];
        assert_eq!(paths, want);
    }

    #[test]
    fn objects_come_along_and_what_describes_the_other_repository_does_not() {
        for path in [
            "00",
            "0a/bcdef0123456789abcdef0123456789abcdef01",
            "pack",
            "pack/pack-1.idx",
            "pack/pack-1.promisor",
            "info",
            "info/commit-graphs",
            "info/commit-graphs/graph-1.graph",
        ] {
            assert!(is_object(path.as_bytes()), "{path}");
        }
        for path in [
            "0a/tmp_obj_x",
            "xy",
            "pack/multi-pack-index",
            "pack/pack-1.bitmap",
            "pack/tmp_pack_1",
            "info/alternates",
            "info/packs",
            "info/commit-graph",
            "info/commit-graphs/commit-graph-chain",
        ] {
            assert!(!is_object(path.as_bytes()), "{path}");
        }
    }
}
