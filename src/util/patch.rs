//! Patches in git's format, as `git apply` takes them. Pure: bytes in, text out.

mod binary;
mod hunks;
pub(crate) mod name;
pub(crate) mod paint;
pub(crate) mod stat;

use self::hunks::Edits;
use self::name::Named;
use self::paint::{Colour, Paint};
use self::stat::Count;

/// To tell binary files from text, git looks for a zero byte in the first bytes, this many.
const LOOKED_AT: usize = 8000;

/// What git records of a file's kind and mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A file.
    File,
    /// A file that its owner may execute.
    Program,
    /// A symbolic link.
    Link,
}

impl Mode {
    /// The mode of a regular file with these permission bits.
    pub(crate) fn of_file(bits: u16) -> Self {
        if bits & 0o100 == 0 { Self::File } else { Self::Program }
    }

    fn digits(self) -> &'static str {
        match self {
            Self::File => "100644",
            Self::Program => "100755",
            Self::Link => "120000",
        }
    }
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Its bytes, or a link's target.
    Bytes(Vec<u8>),
    /// More bytes than are compared, and their number.
    Long(u64),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Long(_) => &[],
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Long(len) => *len,
        }
    }

    fn is_binary(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes[..bytes.len().min(LOOKED_AT)].contains(&0),
            Self::Long(_) => true,
        }
    }
}

/// A path on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// Its kind and mode.
    pub(crate) mode: Mode,
    /// What it holds.
    pub(crate) body: Body,
}

/// A path that differs.
#[derive(Clone, Debug)]
pub(crate) struct Change<'a> {
    /// Relative to the top folder.
    pub(crate) path: &'a [u8],
    /// The file before, if there was one.
    pub(crate) before: Option<Side>,
    /// The file after, if there is one.
    pub(crate) after: Option<Side>,
    /// Whether both hold the same, so that the mode alone differs.
    pub(crate) same: bool,
}

impl Change<'_> {
    /// How many lines or bytes differ, as `git diff --stat` counts them.
    pub(crate) fn count(&self) -> Count {
        let bodies = [&self.before, &self.after].map(|side| side.as_ref().map(|side| &side.body));
        let [before, after] = bodies.map(|body| body.map_or(0, Body::len));
        if bodies.iter().flatten().any(|body| body.is_binary()) {
            return if self.same {
                Count::Bytes { before: 0, after: 0 }
            } else {
                Count::Bytes { before, after }
            };
        }
        if self.same {
            return Count::default();
        }
        let [before, after] = bodies.map(|body| body.map_or(&[][..], Body::bytes));
        Edits::between(before, after).count()
    }

    /// Writes it as one part of a patch, or as two where a file became a link or the reverse. Returns how much differs.
    pub(crate) fn write(&self, paint: Paint, out: &mut Vec<u8>) -> Count {
        if let (Some(before), Some(after)) = (&self.before, &self.after)
            && (before.mode == Mode::Link) != (after.mode == Mode::Link)
        {
            let gone = Part { path: self.path, before: Some(before), after: None, same: false };
            let made = Part { path: self.path, before: None, after: Some(after), same: false };
            return gone.write(paint, out) + made.write(paint, out);
        }
        let (before, after) = (self.before.as_ref(), self.after.as_ref());
        Part { path: self.path, before, after, same: self.same }.write(paint, out)
    }
}

/// One part of a patch: what follows a `diff --git`.
struct Part<'a> {
    path: &'a [u8],
    before: Option<&'a Side>,
    after: Option<&'a Side>,
    same: bool,
}

impl Part<'_> {
    fn write(&self, paint: Paint, out: &mut Vec<u8>) -> Count {
        let (old, new) = (Named::new("a/", self.path), Named::new("b/", self.path));
        let mut header = |line: &str| paint.line(Colour::Header, line.as_bytes(), out);
        header(&format!("diff --git {old} {new}"));
        match (self.before, self.after) {
            (Some(before), Some(after)) if before.mode != after.mode => {
                header(&format!("old mode {}", before.mode.digits()));
                header(&format!("new mode {}", after.mode.digits()));
            }
            (Some(before), None) => header(&format!("deleted file mode {}", before.mode.digits())),
            (None, Some(after)) => header(&format!("new file mode {}", after.mode.digits())),
            _ => {}
        }
        let bodies = [self.before, self.after].map(|side| side.map(|side| &side.body));
        let [before, after] = bodies.map(|body| body.map_or(&[][..], Body::bytes));
        let [was, is] = bodies.map(|body| body.map_or(0, Body::len));
        let is_binary = bodies.iter().flatten().any(|body| body.is_binary());
        let count = if is_binary { Count::Bytes { before: was, after: is } } else { Count::default() };
        if self.same || (was == 0 && is == 0) {
            return count;
        }
        let nothing = || "/dev/null".to_owned();
        let old = self.before.map_or_else(nothing, |_| old.to_string());
        let new = self.after.map_or_else(nothing, |_| new.to_string());
        if bodies.iter().flatten().any(|body| matches!(body, Body::Long(_))) {
            out.extend_from_slice(format!("Binary files {old} and {new} differ\n").as_bytes());
            return count;
        }
        if is_binary {
            let ids = bodies.map(|body| body.map_or_else(binary::no_id, |body| binary::id(body.bytes())));
            // Where both have one mode, it is here.
            let mode = match (self.before, self.after) {
                (Some(before), Some(after)) if before.mode == after.mode => {
                    format!(" {}", after.mode.digits())
                }
                _ => String::new(),
            };
            header(&format!("index {}..{}{mode}", ids[0], ids[1]));
            binary::write(before, after, out);
            return count;
        }
        let edits = Edits::between(before, after);
        for (mark, name) in [("---", &old), ("+++", &new)] {
            // As git does it, so that programs see where a name with blanks ends.
            let end = if name.contains(' ') { "\t" } else { "" };
            paint.line_with(Colour::Header, format!("{mark} {name}").as_bytes(), end.as_bytes(), out);
        }
        edits.write(paint, out);
        edits.count()
    }
}

#[cfg(test)]
#[allow(clippy::unnecessary_wraps, reason = "a side may be missing")]
mod tests {
    use super::*;

    fn file(bits: u16, bytes: &[u8]) -> Option<Side> {
        Some(Side { mode: Mode::of_file(bits), body: Body::Bytes(bytes.to_vec()) })
    }

    fn link(target: &[u8]) -> Option<Side> {
        Some(Side { mode: Mode::Link, body: Body::Bytes(target.to_vec()) })
    }

    fn patch(path: &[u8], before: Option<Side>, after: Option<Side>) -> String {
        let same = before.as_ref().map(|side| &side.body) == after.as_ref().map(|side| &side.body);
        let mut out = Vec::new();
        let _ = Change { path, before, after, same }.write(Paint::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn added_deleted_and_changed_files_are_told_as_git_tells_them() {
        assert_eq!(
            patch(b"CHANGES.md", None, file(0o644, b"# fixed total\n")),
            "diff --git a/CHANGES.md b/CHANGES.md\nnew file mode 100644\n--- /dev/null\n+++ b/CHANGES.md\n\
             @@ -0,0 +1 @@\n+# fixed total\n"
        );
        assert_eq!(
            patch(b"x", file(0o755, b"a\n"), None),
            "diff --git a/x b/x\ndeleted file mode 100755\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
        );
        assert_eq!(
            patch(b"x", file(0o600, b"a\n"), file(0o700, b"b\n")),
            "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
        );
        assert_eq!(
            patch(b"x", file(0o644, b"a"), file(0o755, b"a")),
            "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n"
        );
        assert_eq!(patch(b"x", None, file(0o644, b"")), "diff --git a/x b/x\nnew file mode 100644\n");
    }

    #[test]
    fn a_file_that_becomes_a_link_is_deleted_and_made() {
        assert_eq!(
            patch(b"x", file(0o644, b"a\n"), link(b"to")),
            "diff --git a/x b/x\ndeleted file mode 100644\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n\
             diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+to\n\
             \\ No newline at end of file\n"
        );
    }

    #[test]
    fn a_name_with_a_blank_ends_with_a_tab_and_an_odd_one_is_quoted() {
        let text = patch(b"a b", file(0o644, b"1\n"), file(0o644, b"2\n"));
        assert!(text.starts_with("diff --git a/a b b/a b\n--- a/a b\t\n+++ b/a b\t\n@@"), "{text}");
        let text = patch(b"t\tab\xff", None, file(0o644, b"1\n"));
        assert!(text.contains("diff --git \"a/t\\tab\\377\" \"b/t\\tab\\377\"\n"), "{text}");
        assert!(text.contains("+++ \"b/t\\tab\\377\"\n"), "{text}");
    }

    #[test]
    fn binary_content_becomes_a_binary_patch_or_one_line_if_it_is_long() {
        let text = patch(b"x", None, file(0o644, b"\0abc\n"));
        let header = "diff --git a/x b/x\nnew file mode 100644\n\
             index 0000000000000000000000000000000000000000..f56bf3b5cb3fbb0e823bb439241f34add2852338\n\
             GIT binary patch\nliteral 5\n";
        assert!(text.starts_with(header) && text.contains("\n\nliteral 0\nH"), "{text}");
        let long = Some(Side { mode: Mode::File, body: Body::Long(1 << 30) });
        assert_eq!(
            patch(b"x", file(0o644, b"a"), long),
            "diff --git a/x b/x\nBinary files a/x and b/x differ\n"
        );
    }

    #[test]
    fn the_counted_lines_are_the_written_lines() {
        let count = |before: Option<Side>, after: Option<Side>, same| {
            let change = Change { path: b"x", before, after, same };
            let written = change.write(Paint::default(), &mut Vec::new());
            (change.count(), written)
        };
        let lines = |added, deleted| Count::Lines { added, deleted };
        assert_eq!(count(file(0o644, b"a\nb\n"), file(0o644, b"a\nc\nd"), false), (lines(2, 1), lines(2, 1)));
        // Git counts the lines that differ, though it writes all of both.
        assert_eq!(count(file(0o644, b"a"), link(b"a"), true), (lines(0, 0), lines(1, 1)));
        let bytes = Count::Bytes { before: 2, after: 0 };
        assert_eq!(count(file(0o644, b"\0a"), None, false), (bytes, bytes));
    }
}
