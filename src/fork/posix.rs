//! POSIX operations on a fork's files.

mod caller;
mod content;
mod copy;
mod files;
mod making;
mod names;
mod path;
mod policy;
mod records;
mod reserve;
mod store;

pub use caller::Caller;
pub use content::Allocate;
pub use copy::CopySource;
pub use files::{Files, SetAttr, SetTime, XattrMode, is_bare_prefix};
pub use names::{MAX_LINKS, NewFile, RenameMode};
pub use policy::can_be_there;
pub use store::{INLINE, MAX_SIZE};
