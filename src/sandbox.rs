//! Runs a command in a sandbox, where it can change only a fork.
//!
//! The command sees the machine read-only. It may write to its fork, to temporary files that are removed when it ends, and to
//! paths that the caller names. The store, other forks, images, and the machine's processes and devices are hidden. The sandbox
//! consists of namespaces, which an ordinary user may create (Linux 5.12 and later). Root installs and starts nothing.
//!
//! Four processes start each other:
//!
//! - The *starter* is the process that the caller knows. It maps users into the new namespace, which is only possible from
//!   outside, and forwards signals.
//! - The *builder* enters new namespaces and makes the view.
//! - *Init* is the first process in the new process namespace. When it ends, the kernel ends all processes that the command
//!   left behind.
//! - The *command*.
//!
//! Each of them ends when the one before it is killed. The first three share a channel. The starter and the builder use it
//! first; then the starter and init report events to each other.

mod builder;
mod channel;
mod descriptors;
mod filter;
mod groups;
mod init;
mod mounts;
mod namespaces;
mod process;
mod program;
pub mod secrets;
mod signals;
mod ssh;
mod starter;
mod sys;
mod variables;
mod view;

pub use builder::build;
pub use groups::{ControlGroup, Hierarchy, control_groups};
pub use init::first_process;
pub use process::{CANNOT_RUN, NO_COMMAND, NOT_EXECUTABLE, tell};
pub(crate) use process::{end_by, say};
pub use starter::{Environment, Outcome, start};
pub use view::View;
