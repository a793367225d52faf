//! Work on many items at once.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::Result;
use crate::sync::Mutex;

/// Further threads would wait for the disk, and each takes memory.
const MAX_JOBS: usize = 16;

/// The default number of threads: one a core, up to a limit.
pub fn default_jobs() -> NonZeroUsize {
    let most = NonZeroUsize::new(MAX_JOBS).unwrap_or(NonZeroUsize::MIN);
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).min(most)
}

/// Does `work` for each item, on `jobs` threads.
pub fn parallel_for_each<T: Sync>(jobs: NonZeroUsize, items: &[T], work: &(dyn Fn(&T) + Sync)) {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    thread::scope(|scope| {
        for number in 1..jobs.get().min(items.len()) {
            // Fewer threads are slower, not wrong.
            let _ = thread::Builder::new().name(format!("pfimg-job-{number}")).spawn_scoped(scope, worker);
        }
        worker();
    });
}

/// Does `work` for each item, on `jobs` threads, until one of them fails: that error is returned.
pub fn try_each<T: Sync>(
    jobs: NonZeroUsize,
    items: &[T],
    work: &(dyn Fn(&T) -> Result<()> + Sync),
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None);
    parallel_for_each(jobs, items, &|item| {
        if !stop.load(Ordering::Relaxed)
            && let Err(error) = work(item)
        {
            stop.store(true, Ordering::Relaxed);
            failed.lock().get_or_insert(error);
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn every_item_is_worked_on_once_however_many_threads_there_are() {
        let items: Vec<usize> = (0..1000).collect();
        for jobs in [1, 3, 2000] {
            let sum = AtomicUsize::new(0);
            parallel_for_each(NonZeroUsize::new(jobs).unwrap(), &items, &|item| {
                sum.fetch_add(*item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 499_500);
        }
    }

    #[test]
    fn the_first_failure_ends_the_work_and_is_returned() {
        let items: Vec<usize> = (0..1000).collect();
        let done = AtomicUsize::new(0);
        let failed = try_each(NonZeroUsize::MIN, &items, &|item| {
            done.fetch_add(1, Ordering::Relaxed);
            if *item == 10 { Err(Error::new(ErrorKind::NoSpace, "full")) } else { Ok(()) }
        });
        assert_eq!((failed.unwrap_err().kind(), done.into_inner()), (ErrorKind::NoSpace, 11));
    }
}
