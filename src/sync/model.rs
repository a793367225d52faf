//! The locks of the unit tests: those of `parking_lot`, or, inside of [`search`], those of a scheduler that decides at
//! each of them which thread runs next.
//!
//! A lock made inside of a search belongs to it, and must not outlive it. Threads of a search are started by
//! [`shuttle::thread`].
#![allow(clippy::disallowed_types)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::time::Duration;

use shuttle::sync as searched;

/// Schedules of each test in a plain `cargo test`.
const SCHEDULES: usize = 300;

/// How often a lock with a time limit is tried before the time counts as over.
const TRIES: usize = 3;

/// Forced switches between threads at the most sensitive places of a schedule: a fault of four steps needs
/// three.
const DEPTH: usize = 3;

fn is_searching() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// Lets another thread of the search run here. Calls that change files do, so that the search orders them too.
pub(crate) fn step() {
    if is_searching() && !std::thread::panicking() {
        // A sleep, not a yield: a scheduler may starve a thread that yields.
        shuttle::thread::sleep(Duration::ZERO);
    }
}

/// Runs `test` under many interleavings of its threads: half of them random, half of them with few switches
/// at the most sensitive places. A panic names the schedule. `PFIMG_SCHEDULES` sets the number of schedules,
/// `SHUTTLE_RANDOM_SEED` the start of the random ones, and `PFIMG_SCHEDULE` a schedule to run again.
pub(crate) fn search(test: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};

    let test = std::sync::Arc::new(test);
    let mut config = shuttle::Config::new();
    // The engine needs this for reading and writing its files.
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    if let Ok(schedule) = std::env::var("PFIMG_SCHEDULE") {
        let runner = shuttle::Runner::new(ReplayScheduler::new_from_encoded(&schedule), config);
        runner.run(move || test());
        return;
    }
    let schedules = std::env::var("PFIMG_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(SCHEDULES);
    let (first, second) = (std::sync::Arc::clone(&test), test);
    let random = RandomScheduler::new(schedules.div_ceil(2));
    shuttle::Runner::new(random, config.clone()).run(move || first());
    let few = PctScheduler::new(DEPTH, schedules / 2);
    shuttle::Runner::new(few, config).run(move || second());
}

fn taken<G>(lock: Result<G, PoisonError<G>>) -> G {
    lock.unwrap_or_else(PoisonError::into_inner)
}

fn tried<G>(lock: Result<G, TryLockError<G>>) -> Option<G> {
    match lock {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A guard of either kind.
macro_rules! guard {
    ($name:ident, $real:ty, $searched:ty $(, $mutable:ident)?) => {
        pub(crate) struct $name<'a, T>(Option<Held<$real, $searched>>);

        impl<T> Deref for $name<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                match self.0.as_ref().unwrap() {
                    Held::Real(guard) => guard,
                    Held::Searched(guard) => guard,
                }
            }
        }

        $(
            impl<T> DerefMut for $name<'_, T> {
                fn deref_mut(&mut self) -> &mut T {
                    match self.0.as_mut().unwrap() {
                        Held::Real(guard) => guard.$mutable(),
                        Held::Searched(guard) => guard.$mutable(),
                    }
                }
            }
        )?
    };
}

enum Held<R, S> {
    Real(R),
    Searched(S),
}

guard!(MutexGuard, parking_lot::MutexGuard<'a, T>, searched::MutexGuard<'a, T>, deref_mut);
guard!(RwLockReadGuard, parking_lot::RwLockReadGuard<'a, T>, searched::RwLockReadGuard<'a, T>);
guard!(RwLockWriteGuard, parking_lot::RwLockWriteGuard<'a, T>, searched::RwLockWriteGuard<'a, T>, deref_mut);

/// As [`parking_lot::Mutex`].
pub(crate) struct Mutex<T>(Held<parking_lot::Mutex<T>, searched::Mutex<T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(if is_searching() {
            Held::Searched(searched::Mutex::new(value))
        } else {
            Held::Real(parking_lot::Mutex::new(value))
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(match &self.0 {
            Held::Real(lock) => Held::Real(lock.lock()),
            Held::Searched(lock) => Held::Searched(taken(lock.lock())),
        }))
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = match &self.0 {
            Held::Real(lock) => Held::Real(lock.try_lock()?),
            Held::Searched(lock) => Held::Searched(tried(lock.try_lock())?),
        };
        Some(MutexGuard(Some(held)))
    }

    pub(crate) fn into_inner(self) -> T {
        match self.0 {
            Held::Real(lock) => lock.into_inner(),
            Held::Searched(lock) => taken(lock.into_inner()),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Held::Real(lock) => lock.fmt(f),
            Held::Searched(lock) => lock.fmt(f),
        }
    }
}

/// As [`parking_lot::RwLock`].
pub(crate) struct RwLock<T>(Held<parking_lot::RwLock<T>, searched::RwLock<T>>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(if is_searching() {
            Held::Searched(searched::RwLock::new(value))
        } else {
            Held::Real(parking_lot::RwLock::new(value))
        })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        RwLockReadGuard(Some(match &self.0 {
            Held::Real(lock) => Held::Real(lock.read()),
            Held::Searched(lock) => Held::Searched(taken(lock.read())),
        }))
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        RwLockWriteGuard(Some(match &self.0 {
            Held::Real(lock) => Held::Real(lock.write()),
            Held::Searched(lock) => Held::Searched(taken(lock.write())),
        }))
    }

    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let held = match &self.0 {
            Held::Real(lock) => Held::Real(lock.try_read()?),
            Held::Searched(lock) => Held::Searched(tried(lock.try_read())?),
        };
        Some(RwLockReadGuard(Some(held)))
    }

    /// No time passes in a search: the time may be over whenever another thread holds the lock.
    pub(crate) fn try_write_for(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, T>> {
        let held = match &self.0 {
            Held::Real(lock) => Held::Real(lock.try_write_for(patience)?),
            Held::Searched(lock) => Held::Searched((0..TRIES).find_map(|_| {
                step();
                tried(lock.try_write())
            })?),
        };
        Some(RwLockWriteGuard(Some(held)))
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Held::Real(lock) => lock.fmt(f),
            Held::Searched(lock) => lock.fmt(f),
        }
    }
}

/// As [`parking_lot::Condvar`].
pub(crate) struct Condvar(Held<parking_lot::Condvar, searched::Condvar>);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(if is_searching() {
            Held::Searched(searched::Condvar::new())
        } else {
            Held::Real(parking_lot::Condvar::new())
        })
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.0 = match (&self.0, guard.0.take()) {
            (Held::Real(condition), Some(Held::Real(mut held))) => {
                condition.wait(&mut held);
                Some(Held::Real(held))
            }
            (Held::Searched(condition), Some(Held::Searched(held))) => {
                Some(Held::Searched(taken(condition.wait(held))))
            }
            _ => panic!("only one of a condition variable and its lock belongs to a search"),
        };
    }

    pub(crate) fn notify_all(&self) {
        match &self.0 {
            Held::Real(condition) => drop(condition.notify_all()),
            Held::Searched(condition) => condition.notify_all(),
        }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

/// Atomics at which the search may let another thread run. It orders all of them as if each were `SeqCst`.
pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::Ordering;

    use super::step;

    macro_rules! atomic {
        ($name:ident, $value:ty $(, $method:ident)*) => {
            #[derive(Debug, Default)]
            pub(crate) struct $name(std::sync::atomic::$name);

            #[allow(dead_code)] // not every kind of number needs all of them
            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    step();
                    self.0.load(order)
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    step();
                    self.0.store(value, order);
                }

                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.swap(value, order)
                }

                pub(crate) fn get_mut(&mut self) -> &mut $value {
                    self.0.get_mut()
                }

                $(
                    pub(crate) fn $method(&self, value: $value, order: Ordering) -> $value {
                        step();
                        self.0.$method(value, order)
                    }
                )*
            }
        };
    }

    atomic!(AtomicBool, bool);
    atomic!(AtomicU32, u32, fetch_add, fetch_sub);
    atomic!(AtomicU64, u64, fetch_add, fetch_max);
}
