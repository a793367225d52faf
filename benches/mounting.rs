//! Mounting a store of many images, and listing them.

use std::time::Instant;

use crate::image;
use crate::measure::Bench;
use crate::mounted::Mount;
use crate::result::Result;
use crate::systems::{Memory, memory};

/// Mounts of the store.
const MOUNTS: usize = 20;

/// What it took, a value for each mount.
#[derive(Default)]
pub(crate) struct Mounting {
    pub(crate) images: usize,
    /// Seconds until `pfimg mount` returned.
    pub(crate) mount: Vec<f64>,
    /// Seconds of the first `ls images`, and of the next.
    pub(crate) list_first: Vec<f64>,
    pub(crate) list_again: Vec<f64>,
    /// After the mount, and after the listing.
    pub(crate) mounted: Vec<Memory>,
    pub(crate) listed: Vec<Memory>,
}

pub(crate) fn measure(bench: &Bench<'_>, images: usize) -> Result<Mounting> {
    bench.say(format!("making a store of {images} images"));
    let store = bench.scratch.fresh("many")?;
    image::write_many(&store, images, bench.scratch)?;
    let mountpoint = bench.scratch.fresh("many-mnt")?;
    let cache = bench.scratch.path().join("many-cache");
    let mut all = Mounting { images, ..Mounting::default() };
    bench.wait_for_quiet(&mut bench.patience.clone())?;
    for round in 1..=MOUNTS {
        bench.scratch.go_on()?;
        bench.say(format!("mounting {images} images: {round}/{MOUNTS}"));
        let mount = Mount::new(&store, &mountpoint, &cache, &[])?;
        all.mount.push(mount.took.as_secs_f64());
        all.mounted.push(memory(mount.pid));
        for times in [&mut all.list_first, &mut all.list_again] {
            let started = Instant::now();
            let listed = std::process::Command::new("ls").arg(mountpoint.join("images")).output()?;
            times.push(started.elapsed().as_secs_f64());
            let lines = listed.stdout.split(|byte| *byte == b'\n').count() - 1;
            if lines != images {
                return Err(format!("ls shows {lines} of {images} images").into());
            }
        }
        all.listed.push(memory(mount.pid));
        mount.unmount()?;
    }
    Ok(all)
}
