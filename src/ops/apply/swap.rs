//! One path at a time: new content gets the name, and what had it is looked at once more before it goes.
//!
//! After a crash the two temporary names of a path tell what is behind them. `….new` is content that was being written, never
//! anything else. The name without an end holds whole content of either side, or an edit that left its name in the moment of the crash.

use std::io;

use super::below::{At, cannot_exchange, split};
use super::carry::{Carry, Why, is_surely_same};
use super::entry::Entry;
use crate::error::Result;
use crate::layers::world::Kind;
use crate::ops::import::walk::Meta;

/// Permissions that a directory gets for the moment in which it is changed.
const OPEN: u16 = 0o700;

fn inode(meta: &Meta) -> (u64, u64) {
    (meta.stamp.dev, meta.stamp.ino)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

impl Carry<'_> {
    /// Whether what was seen at a place is an entry. A directory may be open for the moment.
    fn is(&self, at: &At, seen: &Meta, entry: Option<&Entry>) -> io::Result<bool> {
        match entry {
            None => Ok(false),
            Some(Entry::Dir { mode }) => {
                Ok(seen.kind == Kind::Dir && (seen.mode == *mode || seen.mode == *mode | OPEN))
            }
            Some(entry) => match self.top.is(at, seen, entry) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
                answer => answer,
            },
        }
    }

    /// Whether a place still holds what a path is to change from. A name that is to become one of a group of hard links may hold their
    /// content already.
    fn is_expected(&self, at: usize, place: &At, now: &Meta) -> io::Result<bool> {
        Ok(self.moves[at].seen.as_ref() == Some(now) || self.is_either(at, place, now)?)
    }

    /// Gives what was staged for a path its name.
    pub(super) fn put(&mut self, at: usize) -> Result<()> {
        let path = self.moves[at].path.clone();
        let Some(place) = self.place(&path)? else {
            self.conflict(at, Why::NoFolder);
            return Ok(());
        };
        let put = self.put_at(at, &place).map_err(|e| self.failed(&path, e));
        let Some(put) = self.unless_gone(at, put)? else { return Ok(()) };
        match (put, self.moves[at].staged) {
            (Some(why), _) => self.conflict(at, why),
            (None, Some(staged)) => self.finish(at, staged),
            (None, None) => {}
        }
        Ok(())
    }

    fn put_at(&mut self, at: usize, place: &At) -> io::Result<Option<Why>> {
        let (number, staged) = (self.moves[at].number(), self.moves[at].staged);
        let (temp, old) = (self.new_name(place, number)?, self.old_name(place, number)?);
        let mine = match (self.top.look(&temp)?, staged) {
            (Some(mine), Some(staged)) if inode(&mine) == inode(&staged) => mine,
            // It was written in a different directory, which had this path then.
            _ => return Ok(Some(Why::NoFolder)),
        };
        let now = self.top.look(place)?;
        let why = match (&self.moves[at].from, now) {
            (None, None) => match self.top.rename_new(&temp, place) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Why::Taken,
                renamed => return renamed.map(|()| None),
            },
            (None, Some(_)) => Why::Taken,
            (Some(_), None) => Why::Gone,
            (Some(_), Some(now)) if !self.is_expected(at, place, &now)? => Why::Edited,
            (Some(_), Some(now)) => return self.replace(at, (place, &temp, &old), &now, &mine),
        };
        self.discard(&temp, &mine)?;
        Ok(Some(why))
    }

    /// Replaces what has a name by what was staged, in one step, and looks at it again.
    fn replace(
        &mut self,
        at: usize,
        (place, temp, old): (&At, &At, &At),
        now: &Meta,
        mine: &Meta,
    ) -> io::Result<Option<Why>> {
        self.top.rename(temp, old)?;
        match self.top.exchange(old, place) {
            Err(e) if is_gone(&e) => {
                self.discard(old, mine)?;
                return Ok(Some(Why::Gone));
            }
            Err(e) if cannot_exchange(&e) => return self.replace_in_steps(at, (place, temp, old), now, mine),
            exchanged => exchanged?,
        }
        let Some(why) = self.let_go(at, old, now)? else { return Ok(None) };
        match self.top.exchange(old, place) {
            // The new content was deleted in this moment.
            Err(e) if is_gone(&e) => {
                self.give_back(at, place, old)?;
                return Ok(Some(why));
            }
            exchanged => exchanged?,
        }
        // The name has its edit again. What was staged may have been edited in between as well.
        if let Some(seen) = self.top.look(old)? {
            let is_mine = inode(&seen) == inode(mine) && self.is(old, &seen, self.moves[at].to.as_ref())?;
            if !is_mine || !self.discard(old, &seen)? {
                self.set_aside(at, old)?;
            }
        }
        Ok(Some(why))
    }

    /// Does the same on a filesystem that cannot exchange two names. A file is replaced by a plain rename: an edit between the look and
    /// the rename, which follow each other directly, is lost there.
    fn replace_in_steps(
        &mut self,
        at: usize,
        (place, temp, old): (&At, &At, &At),
        now: &Meta,
        mine: &Meta,
    ) -> io::Result<Option<Why>> {
        if now.kind != Kind::Dir && mine.kind != Kind::Dir {
            let Some(latest) = self.top.look(place)? else {
                self.discard(old, mine)?;
                return Ok(Some(Why::Gone));
            };
            if !self.is_expected(at, place, &latest)? {
                self.discard(old, mine)?;
                return Ok(Some(Why::Edited));
            }
            return self.top.rename(old, place).map(|()| None);
        }
        self.top.rename(old, temp)?;
        if now.kind == Kind::Dir {
            if !self.top.rmdir(place)? {
                self.discard(temp, mine)?;
                return Ok(Some(Why::HoldsOthers));
            }
        } else {
            self.top.rename_new(place, old)?;
            if let Some(why) = self.let_go(at, old, now)? {
                self.give_back(at, place, old)?;
                self.discard(temp, mine)?;
                return Ok(Some(why));
            }
        }
        match self.top.rename_new(temp, place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.discard(temp, mine)?;
                Ok(Some(Why::Taken))
            }
            renamed => renamed.map(|()| None),
        }
    }

    /// Removes a path.
    pub(super) fn delete(&mut self, at: usize) -> Result<()> {
        let path = self.moves[at].path.clone();
        let Some(place) = self.place(&path)? else {
            self.conflict(at, Why::NoFolder);
            return Ok(());
        };
        let Some(seen) = self.moves[at].seen else { return Ok(()) };
        let deleted = self.delete_at(at, &place).map_err(|e| self.failed(&path, e));
        let Some(deleted) = self.unless_gone(at, deleted)? else { return Ok(()) };
        match deleted {
            Deleted::Yes => self.finish(at, seen),
            Deleted::Stays => {
                self.carried.staying.push(path);
                self.pass(at);
            }
            Deleted::Gone => self.pass(at),
            Deleted::Left(why) => self.conflict(at, why),
        }
        Ok(())
    }

    fn delete_at(&mut self, at: usize, place: &At) -> io::Result<Deleted> {
        let Some(now) = self.top.look(place)? else { return Ok(Deleted::Gone) };
        if matches!(self.moves[at].from, Some(Entry::Dir { .. })) {
            if now.kind != Kind::Dir {
                return Ok(Deleted::Left(Why::Edited));
            }
            return Ok(match self.top.rmdir(place) {
                Err(e) if is_gone(&e) => Deleted::Gone,
                Err(e) if e.kind() == io::ErrorKind::NotADirectory => Deleted::Left(Why::Edited),
                removed => {
                    if removed? {
                        Deleted::Yes
                    } else {
                        Deleted::Stays
                    }
                }
            });
        }
        if !self.is_expected(at, place, &now)? {
            return Ok(Deleted::Left(Why::Edited));
        }
        let old = self.old_name(place, self.moves[at].number())?;
        match self.top.rename_new(place, &old) {
            Err(e) if is_gone(&e) => return Ok(Deleted::Gone),
            renamed => renamed?,
        }
        let Some(why) = self.let_go(at, &old, &now)? else { return Ok(Deleted::Yes) };
        self.give_back(at, place, &old)?;
        Ok(Deleted::Left(why))
    }

    /// Removes what left its name, if it is still what was expected there. Otherwise says why it must have its name again.
    fn let_go(&self, at: usize, old: &At, before: &Meta) -> io::Result<Option<Why>> {
        let Some(out) = self.top.look(old)? else { return Ok(None) };
        if !is_surely_same(before, &out) && !self.is_either(at, old, &out)? {
            return Ok(Some(Why::Edited));
        }
        let removed = self.discard(old, &out)?;
        Ok((!removed).then_some(Why::HoldsOthers))
    }

    /// Gives an edit its free name again. If the name is taken in this moment, the edit is set aside.
    fn give_back(&mut self, at: usize, place: &At, old: &At) -> io::Result<()> {
        match self.top.rename_new(old, place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.set_aside(at, old),
            renamed => renamed,
        }
    }

    /// Keeps an edit under a new name, where another edit has its name.
    fn set_aside(&mut self, at: usize, old: &At) -> io::Result<()> {
        let kept = self.prefix.replacen("apply", "kept", 1);
        for attempt in 0u32.. {
            let suffix = if attempt > 0 { format!("-{attempt}") } else { String::new() };
            let name = format!("{kept}{}{suffix}", self.moves[at].number()).into_bytes();
            match self.top.rename_new(old, &old.sibling(name.clone())?) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                renamed => {
                    renamed?;
                    let path = self.moves[at].path.clone();
                    let folder = split(&path).0;
                    let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
                    let kept = [folder, slash, &name].concat();
                    self.carried.aside.push((path, kept));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Removes something of a temporary name. A directory stays if it is not empty; says whether it is gone.
    fn discard(&self, at: &At, seen: &Meta) -> io::Result<bool> {
        if seen.kind == Kind::Dir {
            return self.top.rmdir(at);
        }
        self.top.unlink(at).map(|()| true)
    }

    /// Clears what a crash left under temporary names. An edit gets its name again, if that is free or holds nothing but content of
    /// pfimg; otherwise it is set aside.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.resumed = true;
        for at in 0..self.moves.len() {
            let path = self.moves[at].path.clone();
            if let Some(place) = self.place(&path)? {
                match self.clear_at(at, &place) {
                    // Removed in this moment, by someone else.
                    Err(e) if is_gone(&e) => {}
                    cleared => cleared.map_err(|e| self.failed(&path, e))?,
                }
            }
        }
        Ok(())
    }

    fn clear_at(&mut self, at: usize, place: &At) -> io::Result<()> {
        let number = self.moves[at].number();
        let (temp, old) = (self.new_name(place, number)?, self.old_name(place, number)?);
        let new = self.top.look(&temp)?;
        if let Some(seen) = &new
            && !self.discard(&temp, seen)?
        {
            self.set_aside(at, &temp)?;
        }
        let Some(seen) = self.top.look(&old)? else { return Ok(()) };
        let now = self.top.look(place)?;
        let Some(now) = now else {
            // Without an exchange of names, old content leaves its name before new content has it.
            if new.is_none() && self.is_either(at, &old, &seen)? && self.discard(&old, &seen)? {
                return Ok(());
            }
            return self.give_back(at, place, &old);
        };
        if self.is_either(at, &old, &seen)? && self.discard(&old, &seen)? {
            return Ok(());
        }
        if self.is_either(at, place, &now)? && now.kind != Kind::Dir {
            match self.top.exchange(&old, place) {
                Err(e) if is_gone(&e) => return self.give_back(at, place, &old),
                Err(e) if cannot_exchange(&e) => return self.set_aside(at, &old),
                exchanged => exchanged?,
            }
            let Some(seen) = self.top.look(&old)? else { return Ok(()) };
            if self.is_either(at, &old, &seen)? && self.discard(&old, &seen)? {
                return Ok(());
            }
        }
        self.set_aside(at, &old)
    }

    /// Whether something is what a path holds on either side.
    fn is_either(&self, at: usize, place: &At, seen: &Meta) -> io::Result<bool> {
        let one = &self.moves[at];
        Ok(self.is(place, seen, one.from.as_ref())? || self.is(place, seen, one.to.as_ref())?)
    }
}

/// How the removal of a path ended.
enum Deleted {
    Yes,
    /// The directory holds other files.
    Stays,
    /// It was gone.
    Gone,
    Left(Why),
}
