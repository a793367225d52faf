//! What both sides did to a path, in words.

use super::entry::Entry;
use super::held::{Held, file, same, same_entry};

/// What both sides did to a path, in words.
pub(super) fn words(them: &str, base: Option<&Held>, fork: Option<&Held>, here: Option<&Held>) -> String {
    if same(base, here) {
        return format!("{them} {}", deed(base, fork));
    }
    if base.is_none() && fork.is_some() && here.is_some() {
        return match (fork, here) {
            (Some(fork), Some(here)) if fork.is_dir() && here.is_dir() => {
                "both sides added it, with other permissions".to_owned()
            }
            (Some(fork), Some(here)) if noun(fork) != noun(here) => {
                format!("you added {}, {} added {}", noun(here), them, noun(fork))
            }
            _ => "both sides added it".to_owned(),
        };
    }
    if fork.is_some() && here.is_some() && deed(base, here) == deed(base, fork) {
        let thing = if matches!((fork, here), (Some(a), Some(b)) if a.is_dir() && b.is_dir()) {
            "its permissions"
        } else {
            "it"
        };
        return format!("both sides changed {thing}");
    }
    format!("you {}, {} {}", deed(base, here), them, deed(base, fork))
}

/// The same for what the fork added, perhaps where there is no directory for it.
pub(super) fn words_of_new(them: &str, base: Option<&Held>, fork: &Held, here: Option<&Held>) -> String {
    if base.is_none() && here.is_none() {
        return format!("you deleted the directory it is in, {them} added it");
    }
    words(them, base, Some(fork), here)
}

pub(super) fn noun(held: &Held) -> &'static str {
    match held {
        Held::Entry(Entry::Dir { .. }) => "a directory",
        Held::Entry(Entry::File { .. }) => "a file",
        Held::Entry(Entry::Link { .. }) => "a link",
        Held::Other(what) => what,
    }
}

/// What a side did to a path.
fn deed(base: Option<&Held>, side: Option<&Held>) -> String {
    match (base, side) {
        (None, _) => "added it".to_owned(),
        (Some(_), None) => "deleted it".to_owned(),
        (Some(base), Some(side)) if noun(base) != noun(side) => format!("made it {}", noun(side)),
        (Some(Held::Entry(Entry::Dir { .. })), _) => "changed its permissions".to_owned(),
        (Some(Held::Entry(Entry::Link { .. })), _) => "changed where it leads".to_owned(),
        (Some(Held::Entry(a)), Some(Held::Entry(b)))
            if file(a).map(|(_, content)| content.digest) == file(b).map(|(_, content)| content.digest)
                && !same_entry(a, b) =>
        {
            "changed its permissions".to_owned()
        }
        _ => "changed it".to_owned(),
    }
}
