//! What an import did to make repositories complete.

use serde::Serialize;

/// How a repository was made complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MendedKind {
    /// The `.git` file of a worktree became a repository.
    Worktree,
    /// The `.git` file or link of a submodule, or of a repository that lies elsewhere, became that repository.
    GitFile,
    /// The entries of other worktrees are left out of a repository.
    Worktrees,
    /// `core.worktree` is unset, or leads to the same directory of the image.
    CoreWorktree,
    /// Objects that a repository took from another one were added to it.
    Alternates,
    /// A link out of a repository was replaced by its target.
    Link,
}

/// A repository that was made complete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mended {
    /// How it was made complete.
    pub kind: MendedKind,
    /// The path in the image.
    pub path: String,
    /// The path that it depended on.
    pub from: String,
}

impl Mended {
    /// Describes it.
    pub(super) fn words(&self) -> String {
        let Self { kind, path, from } = self;
        match kind {
            MendedKind::Worktree => {
                format!("{path} is a whole repository in the image: here, a worktree of {from}")
            }
            MendedKind::GitFile => format!("{path} is a whole repository in the image: here, it is {from}"),
            MendedKind::Worktrees => {
                format!("{path} is left out: it names other worktrees of the repository")
            }
            MendedKind::CoreWorktree => format!("{path} names no work tree in the image: here, {from}"),
            MendedKind::Alternates => format!("{path} has the objects of {from} in the image"),
            MendedKind::Link => format!("{path} is not a link in the image: here, it leads to {from}"),
        }
    }
}
