//! Adapts settings of a repository that name other directories.

use std::path::{Path, PathBuf};

use super::super::mended::MendedKind;
use super::super::ties::{TieKind, resolved, split, tie};
use super::config::{self, Edit, Setting};
use super::mender::{MAX_FILE, Mender, as_path};

/// Adapts the settings file at `index` of the listing, which belongs to the repository in `folder`.
pub(super) fn settings(mender: &mut Mender<'_>, folder: &[u8], index: usize) {
    let found = &mender.listing.found[index];
    let path = found.path.clone();
    let Some(text) = found.text(mender.top(), MAX_FILE) else {
        mender.ties.push(tie(TieKind::GitUnread, &path, Path::new("more than 16 MiB, or no permission")));
        return;
    };
    let Some(settings) = config::parse(&text) else {
        mender.ties.push(tie(TieKind::GitUnread, &path, Path::new("not in git's format")));
        return;
    };
    // Relative paths start at the directory from which the file is read.
    let origin = split_path(found.origin(mender.top()));
    let moved = found.source.is_some();
    let mut edits = Vec::new();
    let names_worktree = |setting: &&Setting| setting.name == b"core.worktree" && setting.value.is_some();
    // The last setting counts, as in git.
    let last = settings.iter().rev().find(names_worktree).cloned();
    for setting in &settings {
        let edit = if setting.name == b"core.worktree" {
            let becomes = work_tree(mender, folder, &origin, moved, setting);
            if becomes != Becomes::Same && last.as_ref() == Some(setting) {
                let named = resolved(&origin, as_path(setting.value.as_deref().unwrap_or_default()));
                match becomes {
                    Becomes::Lost => mender.ties.push(tie(TieKind::GitWorktree, &path, &named)),
                    _ => mender.mended(MendedKind::CoreWorktree, &path, &named),
                }
            }
            match becomes {
                Becomes::Same => None,
                Becomes::Unset | Becomes::Lost => Some(Edit::Remove),
                Becomes::Path(path) => Some(Edit::Set(path)),
            }
        } else if setting.name == b"core.bare" && mender.whole.contains(folder) && setting.is_true() {
            // A worktree may belong to a bare repository.
            Some(Edit::Set(b"false".to_vec()))
        } else {
            name_settings(mender, &path, moved, setting);
            None
        };
        edits.extend(edit.map(|edit| (setting, edit)));
    }
    if !edits.is_empty() {
        let text = config::edit(&text, &edits);
        mender.listing.found[index].make(text);
    }
}

fn work_tree(mender: &Mender<'_>, folder: &[u8], origin: &Path, moved: bool, setting: &Setting) -> Becomes {
    let Some(value) = setting.value.as_deref().filter(|value| !value.is_empty()) else {
        return Becomes::Same;
    };
    // The repository of a submodule was added without the submodule's files. Git sets this when it creates them.
    if mender.whole.contains(folder) || moved {
        return Becomes::Unset;
    }
    let written = as_path(value);
    let named = resolved(origin, written);
    if !mender.place.holds(&named) {
        return Becomes::Lost;
    }
    if written.is_relative() {
        return Becomes::Same;
    }
    let own = resolved(Path::new("/"), &mender.top().shown(split(folder).0));
    if split(folder).1 == b".git" && named == own {
        return Becomes::Unset;
    }
    match named.strip_prefix(mender.top().path()) {
        Ok(inside) => {
            let up = folder.split(|b| *b == b'/').filter(|name| !name.is_empty()).map(|_| "..");
            let path: PathBuf = up.map(PathBuf::from).chain([inside.to_owned()]).collect();
            Becomes::Path(path.into_os_string().into_encoded_bytes())
        }
        // The setting uses another name of the directory.
        Err(_) => Becomes::Lost,
    }
}

/// Reports a setting that would make git in a fork use the original.
fn name_settings(mender: &mut Mender<'_>, path: &[u8], moved: bool, setting: &Setting) {
    let Some(value) = setting.value.as_deref() else { return };
    let written = as_path(value);
    let is_include = setting.name.ends_with(b".path")
        && (setting.name.starts_with(b"include.") || setting.name.starts_with(b"includeif."));
    let leads_back = written.is_absolute() && mender.place.holds(written);
    let elsewhere = moved && is_include && written.is_relative() && !value.starts_with(b"~");
    if leads_back || elsewhere {
        let said = [&setting.name[..], b" to ", value].concat();
        mender.ties.push(tie(TieKind::GitConfig, path, as_path(&said)));
    }
}
/// What happens to a `core.worktree` in the image.
#[derive(PartialEq, Eq)]
enum Becomes {
    /// It is right in the image too.
    Same,
    /// It is unset, since the work tree is the directory that contains the repository.
    Unset,
    /// It is unset, since its directory is not in the image.
    Lost,
    /// It gets another path.
    Path(Vec<u8>),
}

/// Returns the directory of a path.
fn split_path(path: PathBuf) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or(path)
}
