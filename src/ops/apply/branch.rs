//! The branch that brings a fork's commits into the directory's own repository.

use std::path::Path;

use super::carry::Way;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::git::Git;
use crate::store::applies::Branch;

/// Moves the branch to one of its sides, if it is at the other one. A branch that is at neither was moved by someone else: an error of
/// kind [`ErrorKind::Conflict`].
pub(super) fn set(dir: &Path, branch: &Branch, way: Way) -> Result<()> {
    if !branch.is_sound() {
        let what = format!("an apply may not move branch {:?}", branch.name);
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let (old, new) = match way {
        Way::Forward => (branch.old.as_deref(), Some(branch.new.as_str())),
        Way::Back => (Some(branch.new.as_str()), branch.old.as_deref()),
    };
    if now(dir, &branch.name)?.as_deref() == new {
        return Ok(());
    }
    let done = match new {
        // An empty old value says that there must be no such branch yet.
        Some(new) => git(dir, &["update-ref", "--no-deref", &branch.name, new, old.unwrap_or_default()]),
        None => git(dir, &["update-ref", "--no-deref", "-d", &branch.name, old.unwrap_or_default()]),
    };
    done.map(drop).map_err(|error| {
        let short = branch.name.trim_start_matches("refs/heads/");
        let what = format!("branch {short} of {} was moved since, or git refuses it", dir.display());
        Error::new(ErrorKind::Conflict, what).with_source(error)
    })
}

/// The commit that a branch names, if it exists.
fn now(dir: &Path, name: &str) -> Result<Option<String>> {
    let printed = git(dir, &["for-each-ref", "--format=%(objectname)", name])?;
    Ok(printed.lines().next().map(str::to_owned).filter(|commit| !commit.is_empty()))
}

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&Git::new(dir).only_here().run(args)?).into_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_branch_is_moved_from_one_commit_to_the_other_and_never_over_a_third() {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q"]).unwrap();
        let tree = git(dir.path(), &["write-tree"]).unwrap();
        let commit = |text: &str| {
            let who = ["-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", text, tree.trim()];
            let mut command = Command::new("git");
            let output = command.arg("-C").arg(dir.path()).args(who).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let [one, two, three] = ["1", "2", "3"].map(commit);
        let at = || now(dir.path(), "refs/heads/pfimg/f").unwrap();
        let new = Branch { name: "refs/heads/pfimg/f".into(), old: None, new: one.clone() };
        let moved = Branch { old: Some(one.clone()), new: two.clone(), ..new.clone() };
        for _ in 0..2 {
            set(dir.path(), &new, Way::Forward).unwrap();
            assert_eq!(at().unwrap(), one);
        }
        set(dir.path(), &moved, Way::Forward).unwrap();
        assert_eq!(set(dir.path(), &new, Way::Back).unwrap_err().kind(), ErrorKind::Conflict);
        set(dir.path(), &moved, Way::Back).unwrap();
        assert_eq!(at().unwrap(), one);
        let other = Branch { old: Some(three.clone()), new: two, ..new.clone() };
        assert_eq!(set(dir.path(), &other, Way::Forward).unwrap_err().kind(), ErrorKind::Conflict);
        for _ in 0..2 {
            set(dir.path(), &new, Way::Back).unwrap();
            assert_eq!(at(), None);
        }
        let foreign = Branch { name: "refs/heads/main".into(), ..new };
        assert_eq!(set(dir.path(), &foreign, Way::Forward).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
