//! The thin adapter between the kernel and the [`Vfs`](crate::vfs::Vfs): it decodes, calls and replies. It decides nothing
//! about the meaning of a request, and no type of the FUSE library leaves this module.

mod adapter;
mod announce;
mod barrier;
mod changes;
mod commands;
mod convert;
mod features;
mod guard;
mod invalidate;
mod kernel;
mod open_root;
mod pool;
mod reply;
mod requests;
mod session;
mod spin;
mod tell;
mod wanted;

pub use commands::Commands;
pub use kernel::Kernel;
pub use open_root::OpenRoot;
pub use session::{Prepared, Session, SessionConfig};
