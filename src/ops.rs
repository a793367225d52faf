//! Operations on stores: seals, imports, exports, and maintenance.

pub mod apply;
pub mod back;
pub mod changes;
pub mod export;
pub mod fixture;
pub mod gc;
pub mod git;
pub mod import;
pub mod line;
pub mod prune;
pub mod recover;
pub mod seal;
pub mod summary;
pub mod verify;
