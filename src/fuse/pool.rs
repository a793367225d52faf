//! Threads for work that would hold up an event loop, such as decompressing a large blob or notifying the kernel.

use std::io;
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::guard::guarded;
use crate::vfs::Op;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads with an unbounded queue. The kernel limits the number of requests.
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

    /// Hands a job to the pool. A job that the pool cannot take is dropped, which answers its request with EIO.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let _ = self.jobs.send(Box::new(job));
    }
}
