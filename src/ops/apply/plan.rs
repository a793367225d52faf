//! What an apply changes, path by path: pure, from what three sides hold.
//!
//! The sides are the base (the image that a fork was made of), the fork, and the directory as it is here. Only paths that differ
//! between base and fork concern it. Each of them
//! - is left alone where the directory already holds what the fork holds,
//! - becomes what the fork holds where the directory still holds what the base holds,
//! - is merged where both sides changed a file's lines,
//! - is a conflict otherwise. [`Decide`] says what happens to those.

use std::collections::BTreeSet;

use super::entry::{Entry, GIT, Step, Steps};
use super::held::{Content, Held, Here, Node, file, same, same_entry};
use super::names::{Group, link};
use super::words::{noun, words, words_of_new};
use crate::error::Result;

/// What happens to conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decide {
    /// Files whose lines conflict get markers.
    pub markers: bool,
    /// What happens to the others.
    pub others: Others,
    /// What the fork's side is called: "the fork".
    pub them: &'static str,
}

/// How conflicts are decided that get no markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They end the apply.
    Refuse,
    /// The directory's side holds. Of a file's lines only those that conflict are decided so.
    Ours,
    /// The fork's side holds. Of a file's lines only those that conflict are decided so.
    Theirs,
    /// The path is left alone.
    Skip,
}

/// The result of merging a file's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Both sides' changes are in it.
    Clean(Content),
    /// Both sides changed the same lines, or it cannot be merged by lines.
    Conflict {
        /// Whether it is lines that conflict.
        by_lines: bool,
        /// Why, in words: "line 5 changed on both sides".
        why: String,
        /// The content after the decision that was asked for, with what to tell of it.
        decided: Option<(Content, String)>,
    },
}

/// Merges the lines of a file.
pub trait Lines {
    /// Merges both sides' changes; without a base both sides added the file.
    fn merge(
        &mut self,
        path: &[u8],
        base: Option<&Content>,
        fork: &Content,
        here: &Content,
    ) -> Result<Merged>;
}

/// A path with a remark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// Relative to the directory.
    pub path: Vec<u8>,
    /// The remark, in words.
    pub why: String,
}

/// A path that both sides changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// Whether something else than lines of a text conflicts. Conflicts in lines sort first.
    pub is_whole: bool,
    /// Relative to the directory.
    pub path: Vec<u8>,
    /// What both sides did, in words.
    pub why: String,
    /// Whether markers resolve it.
    pub by_markers: bool,
}

impl Conflict {
    /// Returns a conflict that markers do not resolve.
    pub fn whole(path: &[u8], why: String) -> Self {
        Self { is_whole: true, path: path.to_owned(), why, by_markers: false }
    }
}

/// What an apply changes, and what stands in its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What changes: deletions first, what lies in a directory before it; then the others, a directory before what lies in it.
    pub steps: Vec<Step>,
    /// The paths of steps whose lines were merged, without a conflict.
    pub merged: BTreeSet<Vec<u8>>,
    /// The conflicts that nothing decides. With any of them the plan must not be carried out.
    pub conflicts: Vec<Conflict>,
    /// The conflicts that were decided, each with how.
    pub decided: Vec<About>,
    /// What else the user should know of.
    pub notes: Vec<About>,
    /// How many paths differ between base and fork.
    pub concerned: u64,
}

/// Makes the plan of an apply. `groups` are files of the fork with several names.
pub fn plan(
    root: &Node,
    groups: &[Group],
    here: &Here,
    decide: Decide,
    lines: &mut dyn Lines,
) -> Result<Plan> {
    let mut planner = Planner { here, decide, lines, above: Vec::new(), found: Found::default() };
    for (name, node) in &root.below {
        planner.visit(name, node, false)?;
    }
    let mut found = planner.found;
    for group in groups {
        link(group, here, &mut found.steps);
    }
    let (gone, others): (Vec<_>, Vec<_>) =
        found.steps.into_iter().partition(|(_, (_, becomes))| becomes.is_none());
    let step = |(path, (was, becomes))| Step { path, was, becomes };
    found.conflicts.sort();
    found.decided.sort();
    found.notes.sort();
    Ok(Plan {
        steps: gone.into_iter().rev().chain(others).map(step).collect(),
        merged: found.merged,
        conflicts: found.conflicts,
        decided: found.decided,
        notes: found.notes,
        concerned: differing(root),
    })
}

/// How many paths differ between the two sides.
fn differing(node: &Node) -> u64 {
    let below = node.below.values().map(|child| u64::from(child.differs()) + differing(child));
    below.sum()
}

/// What is found while the tree is walked.
#[derive(Default)]
struct Found {
    steps: Steps,
    merged: BTreeSet<Vec<u8>>,
    conflicts: Vec<Conflict>,
    decided: Vec<About>,
    notes: Vec<About>,
}

struct Planner<'a> {
    here: &'a Here,
    decide: Decide,
    lines: &'a mut dyn Lines,
    /// The directories above the path that is looked at, with their paths.
    above: Vec<(Vec<u8>, &'a Node)>,
    found: Found,
}

impl<'a> Planner<'a> {
    /// Plans a path and all that lies below it. `gone` says that the directory above, which both other sides have, is none here.
    /// Returns whether the path holds anything here afterwards.
    fn visit(&mut self, path: &[u8], node: &'a Node, gone: bool) -> Result<bool> {
        let (base, fork, here) = (node.base.as_ref(), node.fork.as_ref(), self.here.at(path));
        match (fork, here) {
            (Some(fork), Some(here)) if fork.is_dir() && here.is_dir() => {
                self.folder_mode(path, node, fork, here);
                self.below(path, node, false)?;
                Ok(true)
            }
            (Some(fork), here) if fork.is_dir() => {
                if base.is_some_and(Held::is_dir) {
                    if node.differs() {
                        self.conflict(path, node, words(self.decide.them, base, Some(fork), here));
                    }
                    self.below(path, node, true)?;
                } else if same(base, here) && !gone {
                    if self.step(path, here, Some(fork)) {
                        self.below(path, node, false)?;
                    } else {
                        self.conflict(path, node, words(self.decide.them, base, Some(fork), here));
                    }
                } else {
                    let why = words_of_new(self.decide.them, base, fork, here);
                    self.conflict(path, node, why);
                }
                Ok(self.is_there(path))
            }
            (Some(fork), here) if same(Some(fork), here) => Ok(true),
            _ if !node.differs() => Ok(here.is_some()),
            (Some(Held::Other(what)), None) if base.is_none() => {
                self.found.notes.push(About {
                    path: path.to_owned(),
                    why: format!("{what} in {}: it is not brought over", self.decide.them),
                });
                Ok(false)
            }
            (Some(fork), Some(here)) if here.is_dir() => {
                if base.is_some_and(Held::is_dir) {
                    self.folder_to_file(path, node, fork, here)?;
                } else {
                    self.conflict(path, node, words(self.decide.them, base, Some(fork), Some(here)));
                }
                Ok(self.is_there(path))
            }
            (Some(fork), here) => {
                if same(base, here) && !gone && self.step(path, here, Some(fork)) {
                    return Ok(true);
                }
                match (fork, here) {
                    (
                        Held::Entry(fork @ Entry::File { .. }),
                        Some(Held::Entry(here @ Entry::File { .. })),
                    ) => self.both(path, node, fork, here)?,
                    _ if base.is_none() => {
                        let why = words_of_new(self.decide.them, base, fork, here);
                        self.conflict(path, node, why);
                    }
                    _ => {
                        self.conflict(path, node, words(self.decide.them, base, Some(fork), here));
                    }
                }
                Ok(self.is_there(path))
            }
            (None, None) => Ok(false),
            (None, Some(here)) if here.is_dir() && base.is_some_and(Held::is_dir) => {
                self.delete_folder(path, node, here)
            }
            (None, Some(here)) => {
                if !same(base, Some(here)) || !self.step(path, Some(here), None) {
                    self.conflict(path, node, words(self.decide.them, base, None, Some(here)));
                }
                Ok(self.is_there(path))
            }
        }
    }

    fn below(&mut self, path: &[u8], node: &'a Node, gone: bool) -> Result<bool> {
        self.above.push((path.to_owned(), node));
        let mut left = false;
        for (name, child) in &node.below {
            left |= self.visit(&join(path, name), child, gone)?;
        }
        self.above.pop();
        Ok(left)
    }

    /// Whether a path holds anything here after the steps so far.
    fn is_there(&self, path: &[u8]) -> bool {
        match self.found.steps.get(path) {
            Some((_, becomes)) => becomes.is_some(),
            None => self.here.at(path).is_some(),
        }
    }

    /// Adds a step; false where a side holds what no step can change.
    fn step(&mut self, path: &[u8], here: Option<&Held>, becomes: Option<&Held>) -> bool {
        let (was, becomes) = match (here, becomes) {
            (Some(Held::Other(_)), _) | (_, Some(Held::Other(_))) => return false,
            (was, becomes) => (was.and_then(Held::entry).cloned(), becomes.and_then(Held::entry).cloned()),
        };
        let becomes = becomes.map(|entry| match entry {
            // Names of one file are found afterwards.
            Entry::File { mode, content, size, .. } => Entry::File { mode, content, size, links: None },
            other => other,
        });
        if was != becomes {
            self.found.steps.insert(path.to_owned(), (was, becomes));
        }
        true
    }

    fn folder_mode(&mut self, path: &[u8], node: &Node, fork: &Held, here: &Held) {
        let base = node.base.as_ref();
        if !node.differs() || fork.same(here) {
            return;
        }
        if base.is_some_and(|base| base.same(here)) {
            self.step(path, Some(here), Some(fork));
            return;
        }
        let why = words(self.decide.them, base, Some(fork), Some(here));
        match self.decide.others {
            Others::Refuse => self.found.conflicts.push(Conflict::whole(path, why)),
            Others::Ours | Others::Skip => self.decided(path, &why),
            Others::Theirs => {
                self.step(path, Some(here), Some(fork));
                self.decided(path, &why);
            }
        }
    }

    /// A directory that the fork does not have. What is in it and not in the fork's base stays, and so does the directory then.
    fn delete_folder(&mut self, path: &[u8], node: &'a Node, here: &Held) -> Result<bool> {
        let conflicts = self.found.conflicts.len() + self.found.decided.len();
        let own = self.own_names(path, node);
        let left = self.below(path, node, false)?;
        if own > 0 || left {
            if conflicts == self.found.conflicts.len() + self.found.decided.len() && own > 0 {
                let them = self.decide.them;
                let why = format!("stays with what {them} does not know: {own} in it");
                self.found.notes.push(About { path: path.to_owned(), why });
            }
            return Ok(true);
        }
        if !same(node.base.as_ref(), Some(here)) {
            self.conflict(path, node, words(self.decide.them, node.base.as_ref(), None, Some(here)));
        } else if !self.step(path, Some(here), None) {
            return Ok(true);
        }
        Ok(self.is_there(path))
    }

    /// How many names a directory holds here that neither base nor fork has.
    fn own_names(&self, path: &[u8], node: &Node) -> usize {
        let names = self.here.names.get(path);
        names.map_or(0, |names| names.iter().filter(|name| !node.below.contains_key(*name)).count())
    }

    /// A directory that the fork made a file or a link. All that is in it must go by itself, or it is a conflict.
    fn folder_to_file(&mut self, path: &[u8], node: &'a Node, fork: &Held, here: &Held) -> Result<()> {
        let own = self.own_names(path, node);
        let kept = std::mem::take(&mut self.found);
        let decide = self.decide;
        self.decide = Decide { markers: false, others: Others::Refuse, ..decide };
        let left = self.below(path, node, false);
        let tried = std::mem::replace(&mut self.found, kept);
        self.decide = decide;
        let goes = !left? && own == 0 && tried.conflicts.is_empty();
        let is_same = same(node.base.as_ref(), Some(here));
        if goes && is_same && !matches!(fork, Held::Other(_)) {
            self.found.steps.extend(tried.steps);
            self.step(path, Some(here), Some(fork));
            return Ok(());
        }
        let inner = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let (them, it) = (self.decide.them, noun(fork));
        let why = match tried.conflicts.first() {
            Some(first) => format!("{them} made it {it}, you changed {} in it", inner(&first.path)),
            None if own > 0 || !is_same && goes => {
                let yours = if own > 0 { "it holds files of yours" } else { "you changed its permissions" };
                format!("{them} made it {it}, {yours}")
            }
            None => words(self.decide.them, node.base.as_ref(), Some(fork), Some(here)),
        };
        self.conflict(path, node, why);
        Ok(())
    }

    /// A file that both sides have and that differs.
    fn both(&mut self, path: &[u8], node: &'a Node, fork: &Entry, here: &Entry) -> Result<()> {
        let base = node.base.as_ref().and_then(Held::entry);
        let (Some((fork_mode, theirs)), Some((here_mode, ours))) = (file(fork), file(here)) else {
            return Ok(());
        };
        let before = base.and_then(file);
        let mode = match before {
            _ if fork_mode == here_mode => Some(here_mode),
            Some((mode, _)) if mode == here_mode => Some(fork_mode),
            Some((mode, _)) if mode == fork_mode => Some(here_mode),
            _ => None,
        };
        let content = match before.as_ref().map(|(_, content)| content.digest) {
            _ if theirs.digest == ours.digest => Merged::Clean(ours),
            Some(base) if base == ours.digest => Merged::Clean(theirs),
            Some(base) if base == theirs.digest => Merged::Clean(ours),
            _ => self.lines.merge(path, before.as_ref().map(|(_, content)| content), &theirs, &ours)?,
        };
        let mut why = Vec::new();
        let (mut told, mut merged) = (None, None);
        let mut is_whole = before.is_none();
        let mut has_lines = false;
        match &content {
            Merged::Clean(content) => merged = Some(*content),
            Merged::Conflict { by_lines, why: reason, decided } => {
                is_whole |= !by_lines;
                has_lines = *by_lines;
                why.push(if before.is_some() {
                    reason.clone()
                } else {
                    words(self.decide.them, node.base.as_ref(), node.fork.as_ref(), self.here.at(path))
                });
                if let Some((content, how)) = decided {
                    merged = Some(*content);
                    told = Some(how.clone());
                }
            }
        }
        let lines_conflict = !why.is_empty();
        let mode_conflict = mode.is_none();
        if mode_conflict {
            why.push("permissions changed on both sides".to_owned());
        }
        if why.is_empty() {
            if let Some(content) = merged {
                let is_merged = content.digest != theirs.digest && content.digest != ours.digest;
                self.become_file(path, here, mode.unwrap_or(here_mode), content);
                if is_merged {
                    self.found.merged.insert(path.to_owned());
                }
            }
            return Ok(());
        }
        let why = why.join("; ");
        let others = self.decide.others;
        let by_markers = self.decide.markers && merged.is_some() && lines_conflict;
        let undecided = lines_conflict && !by_markers || mode_conflict;
        match others {
            Others::Refuse if undecided => {
                let is_whole = mode_conflict || is_whole;
                let by_markers = has_lines && !mode_conflict;
                self.found.conflicts.push(Conflict { is_whole, path: path.to_owned(), why, by_markers });
                return Ok(());
            }
            Others::Skip if undecided => {
                self.decided(path, &why);
                return Ok(());
            }
            _ => {}
        }
        let is_theirs = others == Others::Theirs;
        let content = merged.unwrap_or(if is_theirs { theirs } else { ours });
        let mode = mode.unwrap_or(if is_theirs { fork_mode } else { here_mode });
        self.become_file(path, here, mode, content);
        match told.filter(|_| lines_conflict) {
            Some(why) => self.found.decided.push(About { path: path.to_owned(), why }),
            None => self.decided(path, &why),
        }
        Ok(())
    }

    fn become_file(&mut self, path: &[u8], here: &Entry, mode: u16, content: Content) {
        let Content { digest, size } = content;
        let becomes = Entry::File { mode, content: digest, size, links: None };
        if !same_entry(here, &becomes) {
            self.found.steps.insert(path.to_owned(), (Some(here.clone()), Some(becomes)));
        }
    }

    /// A conflict at a path, which stands for what lies below it too.
    fn conflict(&mut self, path: &[u8], node: &'a Node, why: String) {
        match self.decide.others {
            Others::Refuse => self.found.conflicts.push(Conflict::whole(path, why)),
            Others::Ours | Others::Skip => self.decided(path, &why),
            Others::Theirs => {
                let mut steps = Steps::new();
                match self.bring(path, node, &mut steps) {
                    Ok(()) => {
                        self.found.steps.extend(steps);
                        self.decided(path, &why);
                    }
                    Err(refused) => {
                        let why = format!("{why}; {refused}");
                        self.found.conflicts.push(Conflict::whole(path, why));
                    }
                }
            }
        }
    }

    fn decided(&mut self, path: &[u8], why: &str) {
        let them = self.decide.them;
        let why = match self.decide.others {
            Others::Ours => format!("{why}: yours is kept"),
            Others::Theirs => format!("{why}: taken from {them}"),
            _ => format!("{why}: left alone"),
        };
        self.found.decided.push(About { path: path.to_owned(), why });
    }

    /// Makes a path and what the fork has below it as in the fork, whatever is here.
    fn bring(&self, path: &[u8], node: &Node, steps: &mut Steps) -> Result<(), String> {
        for (above, of) in &self.above {
            let is_dir = match steps.get(above).or_else(|| self.found.steps.get(above)) {
                Some((_, becomes)) => matches!(becomes, Some(Entry::Dir { .. })),
                None => self.here.at(above).is_some_and(Held::is_dir),
            };
            if !is_dir && node.fork.is_some() {
                self.put(above, of.fork.as_ref(), steps)?;
            }
        }
        self.bring_one(path, node, steps)
    }

    fn bring_one(&self, path: &[u8], node: &Node, steps: &mut Steps) -> Result<(), String> {
        let fork = node.fork.as_ref();
        let is_dir = fork.is_some_and(Held::is_dir);
        if self.here.at(path).is_some_and(Held::is_dir) && !is_dir {
            self.remove_below(path, steps)?;
        }
        self.put(path, fork, steps)?;
        if is_dir {
            let both_dirs = node.base.as_ref().is_some_and(Held::is_dir);
            for (name, child) in node.below.iter().filter(|(_, child)| !both_dirs && child.fork.is_some()) {
                self.bring_one(&join(path, name), child, steps)?;
            }
        }
        Ok(())
    }

    fn put(&self, path: &[u8], becomes: Option<&Held>, steps: &mut Steps) -> Result<(), String> {
        let here = self.here.at(path);
        for held in [here, becomes].into_iter().flatten() {
            if let Held::Other(what) = held {
                return Err(format!("{what} cannot be brought over or replaced"));
            }
        }
        if same(here, becomes) {
            return Ok(());
        }
        let becomes = becomes.and_then(Held::entry).cloned().map(|entry| match entry {
            Entry::File { mode, content, size, .. } => Entry::File { mode, content, size, links: None },
            other => other,
        });
        steps.insert(path.to_owned(), (here.and_then(Held::entry).cloned(), becomes));
        Ok(())
    }

    /// Removes what is in a directory here.
    fn remove_below(&self, path: &[u8], steps: &mut Steps) -> Result<(), String> {
        let names = self.here.names.get(path).ok_or("what is in it is not known")?;
        for name in names {
            let inner = join(path, name);
            if name == GIT {
                return Err("it holds a repository".to_owned());
            }
            match self.here.at(&inner) {
                Some(Held::Entry(entry)) => {
                    if matches!(entry, Entry::Dir { .. }) {
                        self.remove_below(&inner, steps)?;
                    }
                    steps.insert(inner, (Some(entry.clone()), None));
                }
                Some(Held::Other(what)) => return Err(format!("it holds {what}")),
                None => return Err("what is in it is not known".to_owned()),
            }
        }
        Ok(())
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_owned() } else { [path, b"/", name].concat() }
}
