//! Support for the mount tests: a mount that always ends, the command, and stores.
//!
//! Only the crash packs of failing tests and the tests of the library (`library.rs`) use the product's code. All other mounts are
//! the real binary on the real `/dev/fuse`. Without `/dev/fuse` the tests fail and say so.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "every test target uses its own part of this")]

pub mod cli;
mod digests;
pub mod disk;
pub mod failing;
pub mod fast;
pub mod forks;
mod machine;
pub mod mount;
pub mod real;
mod rng;
pub mod system;
pub mod tree;
mod wait;

pub use cli::{Output, pfimg};
pub use digests::{bare, hex, hex_digest, hex_digest_of_file};
pub use machine::{MIB, PFIMG, errno, is_root, names, temp_dir};
pub use mount::Mount;
pub use rng::Rng;
pub use wait::{PATIENCE, in_time, wait_at_most, wait_until};
