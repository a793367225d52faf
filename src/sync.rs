//! Locks, condition variables and atomics: their only source.
//!
//! A build takes them from `parking_lot` and `std`. In the unit tests each of them checks, when it is made,
//! whether a search for interleavings is under way (`sync/model.rs`), and then belongs to its scheduler.
//! `clippy.toml` refuses locks from other sources.

#[cfg(test)]
mod model;
pub(crate) mod wait;

#[cfg(test)]
pub(crate) use model::*;
#[cfg(not(test))]
pub(crate) use real::*;

/// Aliases, not re-exports: clippy would follow a re-export to the type that it refuses.
#[cfg(not(test))]
#[allow(clippy::disallowed_types)]
mod real {
    pub(crate) use std::sync::atomic;

    pub(crate) type Mutex<T> = parking_lot::Mutex<T>;
    pub(crate) type MutexGuard<'a, T> = parking_lot::MutexGuard<'a, T>;
    pub(crate) type RwLock<T> = parking_lot::RwLock<T>;
    pub(crate) type RwLockReadGuard<'a, T> = parking_lot::RwLockReadGuard<'a, T>;
    pub(crate) type Condvar = parking_lot::Condvar;
}
