//! Lists the names to announce after a fork was replaced or discarded, or paths of it were restored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::announcement::{Announcement, What};
use super::invalidation::Invalidation;
use super::key::Ino;
use super::moved_paths::MovedPaths;
use super::node::BuiltinDir;
use super::nodes::Nodes;
use super::replaced::Replaced;
use crate::fork::{self, Fork, MovedName};
use crate::layers::world::Kind;

/// The most names of one fork that are announced. Further names are dropped without an event.
const MOST: usize = 8192;

/// Returns the announcements to make once the kernel has forgotten unused inodes, and what it has to drop in any case.
pub(super) fn departures(nodes: &Nodes, replaced: &Replaced) -> (Vec<Announcement>, Vec<Invalidation>) {
    let old = &replaced.old.fork;
    let left: HashMap<fork::Ino, Ino> =
        nodes.known_of(old).into_iter().map(|(number, ino)| (ino, number)).collect();
    let (mut gone, mut made, mut stale) = (Vec::new(), Vec::new(), Vec::new());
    let mut told = HashSet::new();
    if let Some(new) = &replaced.new {
        let mut compared = new.fork.compare_with(old, nodes.ledger_ends().is_some());
        for (number, folder) in nodes.known_of(&new.fork) {
            if !replaced.kept.contains(&folder) {
                continue;
            }
            stale.push(Invalidation::Inode(number));
            let (Some(path), Ok(changed)) = (
                new.fork.path(folder).and_then(|path| replaced.path_of(&path)),
                new.fork.changed_names(old, folder, &mut compared),
            ) else {
                continue;
            };
            for change in changed {
                told.insert((folder, change.name.clone()));
                let announcement = |what| Announcement {
                    folder: path.clone(),
                    name: change.name.clone(),
                    what,
                    of_fork: Some(folder),
                    paths: None,
                    instead: Some(Invalidation::Name(number, change.name.clone())),
                };
                gone.extend(change.before.map(|kind| announcement(What::Gone(kind))));
                made.extend(change.after.map(|kind| announcement(What::Made(kind))));
            }
        }
    }
    for (ino, number) in &left {
        let Ok(attr) = old.getattr(*ino) else { continue };
        if *ino == fork::Ino::TOP {
            continue;
        }
        stale.push(Invalidation::Inode(*number));
        for (folder, name) in old.links(*ino) {
            let path = old.path(folder).and_then(|path| replaced.path_of(&path));
            let instead = left.get(&folder).map(|parent| Invalidation::Name(*parent, name.to_vec()));
            let Some(path) = path.filter(|_| told.insert((folder, name.to_vec()))) else {
                stale.extend(instead);
                continue;
            };
            let what = What::Gone(attr.kind);
            let (name, of_fork, paths) = (name.to_vec(), Some(folder), None);
            let announcement = Announcement { folder: path, name, what, of_fork, paths, instead };
            gone.push(announcement);
        }
    }
    if let (None, Some((folder, name))) = (&replaced.new, &replaced.place) {
        // The fork's top folder comes last.
        gone.push(Announcement::of(*folder, name.clone(), What::Gone(Kind::Dir)));
    }
    let _ = replaced.known.set(left);
    let depth = |told: &Announcement| told.folder.split(|b| *b == b'/').count();
    // Files in a folder are removed before the folder.
    gone.sort_by_key(|told| std::cmp::Reverse(depth(told)));
    made.sort_by_key(depth);
    let mut all: Vec<_> = gone.into_iter().chain(made).collect();
    if all.len() > MOST {
        stale.extend(all.split_off(MOST).into_iter().filter_map(|told| told.instead));
    }
    (all, stale)
}

/// Returns the announcements for restored paths, and what the kernel has to drop.
pub(super) fn moved(nodes: &Nodes, changed: &Arc<MovedPaths>) -> (Vec<Announcement>, Vec<Invalidation>) {
    let MovedPaths { mounted, back, .. } = &**changed;
    let fork = &mounted.fork;
    let known = |ino: fork::Ino| nodes.in_kernel(mounted, ino);
    let top = [BuiltinDir::Forks.path(), fork.name().as_bytes()].join(&b'/');
    let (mut gone, mut made, mut stale) = (Vec::new(), Vec::new(), Vec::new());
    let mut told = HashSet::new();
    // The folders that are gone have the paths that they had.
    let mut paths: HashMap<fork::Ino, Vec<u8>> = HashMap::new();
    let parents: HashMap<fork::Ino, (fork::Ino, Vec<u8>)> = changed
        .before
        .iter()
        .filter(|(_, (_, kind))| *kind == Kind::Dir)
        .map(|((folder, name), (ino, _))| (*ino, (*folder, name.clone())))
        .collect();
    for MovedName { folder, name, .. } in &back.names {
        let Some(number) = known(*folder) else { continue };
        if !told.insert((*folder, name.clone())) {
            continue;
        }
        let path = paths.entry(*folder).or_insert_with(|| path_of(fork, *folder, &parents));
        let announcement = |what| Announcement {
            folder: [&top[..], path].join(&b'/'),
            name: name.to_vec(),
            what,
            of_fork: Some(*folder),
            paths: Some(Arc::clone(changed)),
            instead: Some(Invalidation::Name(number, name.to_vec())),
        };
        let before = changed.before.get(&(*folder, name.to_vec()));
        gone.extend(before.map(|(_, kind)| announcement(What::Gone(*kind))));
        let after = fork.lookup(*folder, name).ok();
        made.extend(after.map(|attr| announcement(What::Made(attr.kind))));
    }
    stale.extend(back.touched.iter().filter_map(|ino| known(*ino)).map(Invalidation::Inode));
    let depth = |told: &Announcement| told.folder.split(|b| *b == b'/').count();
    // What is in a folder goes before the folder.
    gone.sort_by_key(|told| std::cmp::Reverse(depth(told)));
    made.sort_by_key(depth);
    let mut all: Vec<_> = gone.into_iter().chain(made).collect();
    if all.len() > MOST {
        stale.extend(all.split_off(MOST).into_iter().filter_map(|told| told.instead));
    }
    (all, stale)
}

/// The path of a folder, also of one that is gone.
fn path_of(fork: &Fork, folder: fork::Ino, parents: &HashMap<fork::Ino, (fork::Ino, Vec<u8>)>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = folder;
    while let Some((above, name)) = parents.get(&at) {
        names.push(name.clone());
        at = *above;
    }
    names.push(fork.path(at).unwrap_or_default());
    names.reverse();
    names.join(&b'/')
}
