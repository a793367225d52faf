//! Reads git's settings files as git does, and edits them without changing other lines.

use std::ops::Range;

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Section, subsection and key with dots between; section and key in lower case, as `git config --list` shows them.
    pub(super) name: Vec<u8>,
    /// The value; nothing for a key without `=`, which counts as true.
    pub(super) value: Option<Vec<u8>>,
    /// From the key to the end of its line, without the newline.
    span: Range<usize>,
}

impl Setting {
    /// Whether the value is true, by git's rules.
    pub(super) fn is_true(&self) -> bool {
        let Some(value) = &self.value else { return true };
        [&b"true"[..], b"yes", b"on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
            || std::str::from_utf8(value).is_ok_and(|text| text.parse::<i64>().is_ok_and(|n| n != 0))
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next byte; the end of a line for CR LF, and for the end of the file.
    fn next(&mut self) -> u8 {
        match self.text[self.at.min(self.text.len())..] {
            [b'\r', b'\n', ..] => {
                self.at += 2;
                b'\n'
            }
            [byte, ..] => {
                self.at += 1;
                byte
            }
            [] => b'\n',
        }
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    /// Reads the section's name after the `[`, and appends a dot.
    fn section(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        loop {
            match self.next() {
                b']' => break,
                c if c.is_ascii_alphanumeric() || c == b'-' || c == b'.' => name.push(c.to_ascii_lowercase()),
                b' ' | b'\t' => {
                    name.push(b'.');
                    self.subsection(&mut name)?;
                    break;
                }
                _ => return None,
            }
        }
        name.push(b'.');
        Some(name)
    }

    fn subsection(&mut self, name: &mut Vec<u8>) -> Option<()> {
        let mut byte = self.next();
        while byte == b' ' || byte == b'\t' {
            byte = self.next();
        }
        if byte != b'"' {
            return None;
        }
        loop {
            match self.next() {
                b'\n' => return None,
                b'"' => break,
                b'\\' => match self.next() {
                    b'\n' => return None,
                    byte => name.push(byte),
                },
                byte => name.push(byte),
            }
        }
        (self.next() == b']').then_some(())
    }

    /// Reads a value after the `=`.
    fn value(&mut self) -> Option<Vec<u8>> {
        let (mut value, mut quoted, mut comment) = (Vec::new(), false, false);
        // Blanks at the end do not count, unless they are quoted.
        let mut kept = 0;
        loop {
            let byte = self.next();
            match byte {
                b'\n' if quoted => return None,
                b'\n' => break,
                _ if comment => {}
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c if !quoted => {
                    if !value.is_empty() {
                        value.push(byte);
                    }
                }
                b';' | b'#' if !quoted => comment = true,
                b'\\' => {
                    match self.next() {
                        // The value continues in the next line.
                        b'\n' if self.is_at_end() => return None,
                        b'\n' => continue,
                        b't' => value.push(b'\t'),
                        b'b' => value.push(8),
                        b'n' => value.push(b'\n'),
                        byte @ (b'\\' | b'"') => value.push(byte),
                        _ => return None,
                    }
                    kept = value.len();
                }
                b'"' => {
                    quoted = !quoted;
                    kept = value.len();
                }
                byte => {
                    value.push(byte);
                    kept = value.len();
                }
            }
        }
        value.truncate(kept);
        Some(value)
    }
}

/// Returns the settings of a file in order. Returns none if git would not read the file either.
pub(super) fn parse(text: &[u8]) -> Option<Vec<Setting>> {
    let mark = b"\xef\xbb\xbf";
    let mut reader = Reader { text, at: if text.starts_with(mark) { mark.len() } else { 0 } };
    let (mut settings, mut section) = (Vec::new(), None);
    while !reader.is_at_end() {
        let start = reader.at;
        match reader.next() {
            b'#' | b';' => while reader.next() != b'\n' {},
            byte if byte.is_ascii_whitespace() || byte == 0x0b => {}
            b'[' => section = Some(reader.section()?),
            byte if byte.is_ascii_alphabetic() => {
                let mut name: Vec<u8> = section.clone()?;
                name.push(byte.to_ascii_lowercase());
                let mut byte = reader.next();
                while byte.is_ascii_alphanumeric() || byte == b'-' {
                    name.push(byte.to_ascii_lowercase());
                    byte = reader.next();
                }
                while byte == b' ' || byte == b'\t' {
                    byte = reader.next();
                }
                let value = match byte {
                    b'\n' => None,
                    b'=' => Some(reader.value()?),
                    _ => return None,
                };
                let mut end = reader.at;
                if text[..end].ends_with(b"\n") {
                    end -= 1;
                }
                if text[..end].ends_with(b"\r") && reader.at > end {
                    end -= 1;
                }
                settings.push(Setting { name, value, span: start..end });
            }
            _ => return None,
        }
    }
    Some(settings)
}

/// An edit of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    Remove,
    Set(Vec<u8>),
}

/// Edits settings of a file, given in the order of the file. All other text stays the same.
pub(super) fn edit(text: &[u8], edits: &[(&Setting, Edit)]) -> Vec<u8> {
    let (mut out, mut done) = (Vec::with_capacity(text.len()), 0);
    for (setting, edit) in edits {
        let Range { mut start, mut end } = setting.span.clone();
        match edit {
            Edit::Set(value) => {
                out.extend_from_slice(&text[done..start]);
                let key = setting.name.rsplit(|b| *b == b'.').next().unwrap_or_default();
                out.extend_from_slice(key);
                out.extend_from_slice(b" = ");
                out.extend(quoted(value));
            }
            Edit::Remove => {
                let line = text[..start].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                if text[line..start].iter().all(u8::is_ascii_whitespace) {
                    start = line;
                    end += text[end..].iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
                }
                out.extend_from_slice(&text[done..start]);
            }
        }
        done = end;
    }
    out.extend_from_slice(&text[done..]);
    out
}

/// Quotes a value, so that reading it gives the same bytes.
fn quoted(value: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            b'\n' => out.extend(b"\\n"),
            byte => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<Vec<(String, Option<String>)>> {
        let shown = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let settings = parse(text.as_bytes())?;
        Some(settings.into_iter().map(|s| (shown(s.name), s.value.map(shown))).collect())
    }

    fn value(text: &str) -> Option<String> {
        read(&format!("[core]\nworktree ={text}\n")).unwrap().pop().unwrap().1
    }

    #[test]
    fn settings_are_read_as_git_reads_them() {
        let text = "\u{feff}# note [x]\n[Core] Bare ; no\n";
        assert_eq!(read(text), None, "a comment behind a key without a value is an error to git");
        let text =
            "\u{feff}# note [x]\n[Core] Bare\n\tworkTree = a\r\n\r\n[remote \"o\\\"r.G\"]url=b;c\n[a.B]\nx=";
        let want = [
            ("core.bare", None),
            ("core.worktree", Some("a")),
            ("remote.o\"r.G.url", Some("b")),
            ("a.b.x", Some("")),
        ];
        let want: Vec<_> = want.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        assert_eq!(read(text), Some(want));
        for (written, meant) in [
            ("  /a b  ; note", "/a b"),
            ("\"/a \\\"b\\\"# \" # x", "/a \"b\"# "),
            ("a\\\n  b \\t", "a  b \t"),
            ("a\"  \"", "a  "),
            ("\"\"", ""),
        ] {
            assert_eq!(value(written).as_deref(), Some(meant), "{written:?}");
        }
        for broken in [
            "x = 1\n",
            "[core\n",
            "[core]\n1 = 2\n",
            "[core]\nx = \"a\n",
            "[core]\nx = a\\q\n",
            "[a \"b\n\"]\n",
            "[a b]\n",
        ] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
        let truth = |text: &str| parse(text.as_bytes()).unwrap()[0].is_true();
        assert!(truth("[a]\nb\n") && truth("[a]\nb=Yes\n") && truth("[a]\nb=2\n"));
        assert!(!truth("[a]\nb=\n") && !truth("[a]\nb=off\n") && !truth("[a]\nb=0\n"));
    }

    #[test]
    fn an_edit_leaves_the_other_lines_as_they_are() {
        let text = b"[core] bare = true\r\n\tworktree = \"../a\\\n b\" ; x\r\n# end\n[x]\n  y = 1";
        let settings = parse(text).unwrap();
        let edits = |of: &[(usize, Edit)]| {
            let edits: Vec<_> = of.iter().map(|(n, edit)| (&settings[*n], edit.clone())).collect();
            String::from_utf8(edit(text, &edits)).unwrap()
        };
        let set = |value: &str| Edit::Set(value.as_bytes().to_vec());
        assert_eq!(
            edits(&[(0, set("false")), (1, Edit::Remove), (2, Edit::Remove)]),
            "[core] bare = \"false\"\r\n# end\n[x]\n"
        );
        assert_eq!(
            edits(&[(0, Edit::Remove), (1, set("a\"b\\"))]),
            "[core] \r\n\tworktree = \"a\\\"b\\\\\"\r\n# end\n[x]\n  y = 1"
        );
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(prop_oneof![Just(b'['), Just(b']'), Just(b'='), Just(b'"'), Just(b'\\'), Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b' '), Just(b'#'), any::<u8>()], 0..40)) {
            if let Some(settings) = parse(&text) {
                let edits: Vec<_> = settings.iter().map(|setting| (setting, Edit::Remove)).collect();
                prop_assert_eq!(parse(&edit(&text, &edits)), Some(Vec::new()));
            }
        }

        #[test]
        fn a_value_that_was_set_comes_back(value in proptest::collection::vec(any::<u8>(), 0..20)) {
            // A value with a carriage return before a newline cannot be written, and no path ends like this.
            prop_assume!(!value.contains(&b'\r'));
            let text = b"[core]\n\tworktree = x\n";
            let settings = parse(text).unwrap();
            let edited = edit(text, &[(&settings[0], Edit::Set(value.clone()))]);
            let read = parse(&edited).unwrap();
            prop_assert_eq!(read[0].value.as_ref(), Some(&value));
        }
    }
}
