//! Names that a command line can tell from everything else that stands there.

/// Says why neither a fork nor a tag may be called so from now on, or nothing if both may. Those that are called so already can
/// still be used.
pub(crate) fn refuse_new_name(name: &str) -> Option<&'static str> {
    if name.contains('@') {
        Some("it contains an @, which stands between a fork and its source or seal")
    } else if name.contains('/') {
        Some("it contains a slash")
    } else if name.starts_with('-') {
        Some("it starts with a dash, as an option does")
    } else if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        Some("it is all digits, as the number of a seal is")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_options_numbers_or_paths_are_refused() {
        for name in ["a@b", "@", "a/b", "-a", "--force", "0", "2026"] {
            assert!(refuse_new_name(name).is_some(), "{name}");
        }
        for name in ["a", "a-b", "2b", "v1.0", "1.0", "\u{662}", "a b"] {
            assert_eq!(refuse_new_name(name), None, "{name}");
        }
    }
}
