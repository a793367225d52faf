//! Reads a store without mounting it: lists the files of an image, and returns the content of one.
//!
//! `cargo run --example read STORE IMAGE world/fs/PATH`

use std::path::Path;

use pfimg::{Forks, Result, Store};

/// Files of more bytes than this are not read.
const LARGEST: u64 = 1 << 20;

pub(crate) fn read(store: &Path, image: &str, path: &str) -> Result<Option<Vec<u8>>> {
    let store = Store::open(store)?;
    let id = store.resolve(image)?;
    println!("{id}, made at {}", store.image(&id)?.manifest.created_at);
    let cache = std::env::temp_dir().join("pfimg-example-cache");
    let forks = Forks::open_read_only(store, cache)?;
    for path in forks.paths(image)? {
        println!("{}", String::from_utf8_lossy(&path));
    }
    forks.view(image)?.bytes(path.as_bytes(), LARGEST)
}

#[allow(dead_code, reason = "a test calls the function above")]
fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, image, path] = &args[..] else { panic!("usage: read STORE IMAGE world/fs/PATH") };
    match read(Path::new(store), image, path)? {
        Some(bytes) => println!("{}", String::from_utf8_lossy(&bytes)),
        None => println!("{image} has no file {path} of at most {LARGEST} bytes"),
    }
    Ok(())
}
