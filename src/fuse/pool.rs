//! Threads for what would hold up the event loop: a large blob to decompress, a word to the kernel.

use std::io;
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::guarded;
use crate::vfs::Op;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads. The kernel bounds how many requests can be under way.
#[derive(Clone)]
pub(super) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    pub(super) fn start(name: &str, threads: usize) -> io::Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        for i in 0..threads {
            let queue = queue.clone();
            thread::Builder::new().name(format!("{name}-{i}")).spawn(move || {
                for job in queue {
                    guarded(Op::Read, job);
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Hands a job over. A job that cannot be taken is dropped, which answers its request with EIO.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let _ = self.jobs.send(Box::new(job));
    }
}
