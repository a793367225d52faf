//! Quotes text in the files of a crash pack: it stays on its line, and whole in a shell.

/// A word of a shell's command line that means exactly `raw`.
pub(super) fn shell_arg(raw: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+=,".contains(&byte);
    if !raw.is_empty() && raw.bytes().all(safe) {
        return raw.to_owned();
    }
    format!("'{}'", raw.replace('\'', "'\"'\"'"))
}

/// The end of an environment variable's name for a seed's.
pub(super) fn seed_env_suffix(name: &str) -> String {
    let suffix: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    match suffix.trim_matches('_') {
        "" => "SEED".to_owned(),
        suffix => suffix.to_owned(),
    }
}

/// The environment variable for the seed of that name.
pub fn seed_variable(name: &str) -> String {
    format!("PFIMG_SEED_{}", seed_env_suffix(name))
}

/// Text that stays on its line and cannot be mistaken for another line.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || c == '\\' { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_shell_reads_back_the_quoted_text() {
        for raw in [
            "seal",
            "",
            "it's",
            "'",
            "''\"",
            "a b",
            "$(touch /tmp/x)",
            "`id`",
            "a;b&c|d",
            "new\nline",
            "*?[a]",
            "~",
            "\\",
            "ünïcode",
            "-n",
            "!x",
        ] {
            let script = format!("printf %s {}", shell_arg(raw));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), raw, "{script}");
        }
        assert_eq!(shell_arg("a-b_c.d/e:f@g%h+i=j,k"), "a-b_c.d/e:f@g%h+i=j,k");
    }

    #[test]
    fn any_name_of_a_seed_makes_a_variables_name() {
        for (name, suffix) in
            [("plain", "PLAIN"), ("with-dash 2", "WITH_DASH_2"), ("", "SEED"), ("--", "SEED"), ("ä=x;", "X")]
        {
            assert_eq!(seed_env_suffix(name), suffix, "{name}");
        }
    }

    #[test]
    fn text_stays_on_its_line() {
        assert_eq!(line("a\nb\\n\u{1b}ä"), r"a\nb\\n\u{1b}ä");
    }
}
