//! Forks an image, writes to the fork and seals it, without FUSE.
//!
//! `cargo run --example fork STORE IMAGE`

use std::path::Path;

use pfimg::{Digest, Forks, Result, Store};

pub(crate) fn fork(store: &Path, image: &str) -> Result<Digest> {
    let cache = std::env::temp_dir().join("pfimg-example-cache");
    let forks = Forks::open(Store::open(store)?, cache)?;
    let fork = forks.fork("example", image)?;
    fork.write_file("world/fs/notes/today.txt", b"a fork is a copy that costs nothing\n")?;
    fork.fsync()?;
    let sealed = forks.seal("example", None)?;
    for difference in forks.diff(image, "example")? {
        println!("{}", String::from_utf8_lossy(&difference.path));
    }
    forks.discard("example")?;
    println!("sealed as {}", sealed.image);
    Ok(sealed.image)
}

#[allow(dead_code, reason = "a test calls the function above")]
fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, image] = &args[..] else { panic!("usage: fork STORE IMAGE") };
    fork(Path::new(store), image).map(drop)
}
