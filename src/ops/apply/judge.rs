//! What is to be done with each path, by a look at it.

use std::collections::{HashMap, HashSet};
use std::io;

use super::carry::{Carry, Doing, Move, Why, is_mode_of};
use super::change::plain;
use super::entry::Entry;
use super::keep::above;
use crate::error::{Error, Result};
use crate::layers::world::Kind;
use crate::ops::import::tree::order;
use crate::ops::import::walk::Meta;

impl Carry<'_> {
    /// Looks at every path. `known` is what was seen where a path held what it is to change from.
    pub(super) fn scan(&mut self, known: &HashMap<Vec<u8>, Meta>) -> Result<()> {
        for at in 0..self.moves.len() {
            let (doing, seen) = self.judge(at, known)?;
            self.moves[at].seen = seen;
            match doing {
                Ok(doing) => self.moves[at].doing = doing,
                Err(why) => self.conflict(at, why),
            }
        }
        self.judge_links();
        self.judge_folders()
    }

    /// What is to be done with a path, or why it is left, and what is there.
    fn judge(
        &mut self,
        at: usize,
        known: &HashMap<Vec<u8>, Meta>,
    ) -> Result<(Result<Doing, Why>, Option<Meta>)> {
        let (path, top) = (self.moves[at].path.clone(), self.top);
        let failed = |e: io::Error| Error::io(e, format!("cannot read {}", top.shown(&path).display()));
        let place = match top.at(&path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => self.place(&path)?,
            place => place.map_err(failed)?,
        };
        let Move { from, to, .. } = &self.moves[at];
        let seen = match &place {
            Some(place) => top.look(place).map_err(failed)?,
            None => None,
        };
        let (Some(place), Some(seen)) = (place, seen) else {
            let doing = match (from, to) {
                (Some(_), None) if top.leads_over_others(&path) && !self.is_below_own(&path) => {
                    Err(Why::NoFolder)
                }
                (_, None) => Ok(Doing::Done),
                (None, Some(_)) => Ok(Doing::Todo),
                (Some(_), Some(_)) => Err(Why::Gone),
            };
            return Ok((doing, None));
        };
        let answer = |doing| Ok((doing, Some(seen)));
        if seen.kind == Kind::Dir {
            return answer(match (from, to) {
                (_, Some(Entry::Dir { mode })) if seen.mode == *mode => Ok(Doing::Done),
                (_, Some(Entry::Dir { mode })) if is_mode_of(seen.mode, *mode) => Ok(Doing::Todo),
                (Some(Entry::Dir { mode }), _) if is_mode_of(seen.mode, *mode) => Ok(Doing::Todo),
                (None, _) => Err(Why::Taken),
                _ => Err(Why::Edited),
            });
        }
        if from.is_some() && known.get(&path) == Some(&seen) {
            return answer(Ok(Doing::Todo));
        }
        let size_fits = |entry: &Option<Entry>| match entry {
            Some(Entry::File { size, .. }) => seen.kind == Kind::File && *size == seen.stamp.size,
            Some(Entry::Link { .. }) => seen.kind == Kind::Symlink,
            _ => false,
        };
        if !size_fits(from) && !size_fits(to) {
            return answer(Err(if from.is_none() { Why::Taken } else { Why::Edited }));
        }
        let now = match top.entry(&place, &seen) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return answer(Err(Why::Unreadable)),
            now => now.map_err(failed)?,
        };
        answer(if now.is_some() && now == to.as_ref().map(plain) {
            Ok(Doing::Done)
        } else if now.is_some() && now == from.as_ref().map(plain) {
            Ok(Doing::Todo)
        } else if from.is_none() {
            Err(Why::Taken)
        } else {
            Err(Why::Edited)
        })
    }

    /// Whether a directory of a path is a link or a file on either side.
    fn is_below_own(&self, path: &[u8]) -> bool {
        above(path).any(|folder| {
            // Sorted as the difference is.
            let found = self.moves.binary_search_by(|one| order(&one.path, folder));
            let is_other =
                |entry: &Option<Entry>| matches!(entry, Some(Entry::Link { .. } | Entry::File { .. }));
            found.is_ok_and(|at| is_other(&self.moves[at].from) || is_other(&self.moves[at].to))
        })
    }

    /// Files that hold what they are to hold are not done yet while they share an inode with a path that they are to be told apart
    /// from, or do not share one with the other names that they are to have.
    fn judge_links(&mut self) {
        let group = |entry: &Option<Entry>| match entry {
            Some(Entry::File { links, .. }) => *links,
            _ => None,
        };
        let mut sharing: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
        for (at, one) in self.moves.iter().enumerate() {
            if let (Some(seen), Some(Entry::File { .. })) = (&one.seen, &one.to)
                && seen.kind == Kind::File
            {
                sharing.entry((seen.stamp.dev, seen.stamp.ino)).or_default().push(at);
            }
        }
        let mut leaders: HashMap<u64, (u64, u64)> = HashMap::new();
        for at in 0..self.moves.len() {
            let one = &self.moves[at];
            let (Doing::Done, Some(seen), Some(Entry::File { .. })) = (one.doing, &one.seen, &one.to) else {
                continue;
            };
            let inode = (seen.stamp.dev, seen.stamp.ino);
            let all = sharing.get(&inode).map(Vec::as_slice).unwrap_or_default();
            let own = group(&one.to);
            let is_done = match own {
                None => all.len() == 1,
                Some(number) => {
                    let apart = all.iter().all(|other| group(&self.moves[*other].to) == own);
                    apart && *leaders.entry(number).or_insert(inode) == inode
                }
            };
            if !is_done {
                self.moves[at].doing = Doing::Todo;
            }
        }
    }

    /// A directory that is to become something else must not hold anything that stays.
    fn judge_folders(&mut self) -> Result<()> {
        let going: HashSet<Vec<u8>> = self
            .moves
            .iter()
            .filter(|one| one.to.is_none() && one.doing != Doing::Conflict)
            .map(|one| one.path.clone())
            .collect();
        for at in 0..self.moves.len() {
            let one = &self.moves[at];
            let is_folder = one.seen.is_some_and(|seen| seen.kind == Kind::Dir);
            let is_to_be = matches!(one.to, Some(Entry::File { .. } | Entry::Link { .. }));
            if one.doing == Doing::Todo && is_folder && is_to_be && self.holds_others(&one.path, &going)? {
                self.conflict(at, Why::HoldsOthers);
            }
        }
        Ok(())
    }

    fn holds_others(&self, path: &[u8], going: &HashSet<Vec<u8>>) -> Result<bool> {
        let names = match self.top.names(path) {
            // It is opened later.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
            names => names.map_err(|e| self.failed(path, e))?,
        };
        for name in names {
            let below = [path, b"/", &name].concat();
            if name.starts_with(self.prefix.as_bytes()) {
                continue;
            }
            if !going.contains(&below) || self.holds_others(&below, going)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
