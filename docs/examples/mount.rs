//! Mounts a store, writes to two forks of an image, compares them and unmounts.
//!
//! `cargo run --example mount STORE IMAGE MOUNTPOINT`

use std::path::Path;

use pfimg::{Difference, MountedStore, Result, Store};

pub(crate) fn compare(store: &Path, image: &str, mountpoint: &Path) -> Result<Vec<Difference>> {
    let mounted = MountedStore::builder(Store::open(store)?, mountpoint).mount()?;
    for (name, text) in [("left", "one\n"), ("right", "two\n")] {
        let files = mounted.fork(name, image)?;
        std::fs::write(files.join("answer.txt"), text).expect("a fork takes new files");
        mounted.seal(name, None)?;
    }
    let differences = mounted.diff("left", "right")?;
    mounted.unmount()?;
    Ok(differences)
}

#[allow(dead_code, reason = "a test calls the function above")]
fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, image, mountpoint] = &args[..] else { panic!("usage: mount STORE IMAGE MOUNTPOINT") };
    for difference in compare(Path::new(store), image, Path::new(mountpoint))? {
        println!("{}", String::from_utf8_lossy(&difference.path));
    }
    Ok(())
}
