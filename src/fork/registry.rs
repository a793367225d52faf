//! The registry of a store's forks.

mod info;
mod lifecycle;
mod references;
mod reload;
mod table;

pub use info::{ForkInfo, ForkStats, on_disk};
pub use lifecycle::Onto;
pub use references::{References, references};
pub use reload::Lengths;
pub use table::{Options, Registry};
