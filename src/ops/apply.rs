//! Brings what a fork changed into a directory, and takes it back.
//!
//! An apply is a list of [`Step`]s: a path, what the directory holds there, and what it shall hold. Nothing in the directory changes
//! before the whole list is known, has no conflict, and is in the store with the bytes of both sides.

mod below;
mod branch;
mod carry;
mod change;
mod entry;
mod held;
mod judge;
mod keep;
mod merge;
mod names;
pub mod plan;
mod prepare;
mod read;
mod session;
mod sides;
mod subject;
mod swap;
mod within;
mod words;

#[cfg(test)]
mod tests;

pub use below::Hooks;
pub use carry::{How, Left, Why};
pub use entry::{Entry, Step};
pub use held::{Content, Held, Here, Node};
pub use names::Group;
pub use prepare::{MAX_MERGE, Options, Prepared, prepare};
pub use session::{
    Applying, Outcome, REMEMBERED, carry_out, find_dir, finish, forget_finished, note_commit, of_dir,
    refuse_interrupted, undo,
};
pub use sides::Sides;
pub use subject::{base_of_fork, base_of_image};
