//! Paths as git quotes them, so that each line is one line and each name comes back byte for byte.

use std::fmt;

/// A path with what stands before it, as in `a/src/main.rs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    prefix: &'a str,
    path: &'a [u8],
}

impl<'a> Named<'a> {
    /// A path behind a prefix.
    pub(crate) fn new(prefix: &'a str, path: &'a [u8]) -> Self {
        Self { prefix, path }
    }

    /// Whether `git apply` may misread the name unquoted in the header of a patch. Git 2.39 takes a space before a slash for the end
    /// of the first name; git 2.47 does not.
    fn confuses_git(&self) -> bool {
        !self.prefix.is_empty() && self.path.windows(2).any(|pair| pair == b" /")
    }
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.path) {
            Ok(path) if !path.chars().any(needs_escape) && !self.confuses_git() => {
                write!(f, "{}{path}", self.prefix)
            }
            _ => {
                write!(f, "\"{}", self.prefix)?;
                for chunk in self.path.utf8_chunks() {
                    chunk.valid().chars().try_for_each(|c| write_char(f, c))?;
                    chunk.invalid().iter().try_for_each(|byte| write!(f, "\\{byte:03o}"))?;
                }
                f.write_str("\"")
            }
        }
    }
}

/// A path for people and programs: as it is, or quoted as in C.
pub(crate) fn quoted(path: &[u8]) -> String {
    Named::new("", path).to_string()
}

/// Whether a character would end the line or the quotes, or change the direction of its neighbours.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '"' | '\\')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn write_char(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    let letter = match c {
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        '"' | '\\' => c,
        _ if needs_escape(c) => {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).bytes();
            return bytes.into_iter().try_for_each(|byte| write!(f, "\\{byte:03o}"));
        }
        _ => return write!(f, "{c}"),
    };
    write!(f, "\\{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_misreadable_names_are_quoted() {
        for (path, shown) in [
            (&b"src/main.rs"[..], "src/main.rs"),
            (b"a b", "a b"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
            (b"caf\xe9", "\"caf\\351\""),
            ("\u{e9}\n".as_bytes(), "\"\u{e9}\\n\""),
            (b"q\"\\", "\"q\\\"\\\\\""),
            (b"\x01\x7f\x1b", "\"\\001\\177\\033\""),
            ("a\u{202e}b".as_bytes(), "\"a\\342\\200\\256b\""),
        ] {
            assert_eq!(quoted(path), shown);
        }
        assert_eq!(Named::new("a/", b"x\ty").to_string(), "\"a/x\\ty\"");
        assert_eq!(Named::new("a/", b"x /y").to_string(), "\"a/x /y\"");
        assert_eq!(Named::new("a/", b"x y/z").to_string(), "a/x y/z");
    }
}
