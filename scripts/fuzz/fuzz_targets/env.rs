//! The world's environment: what is read comes out the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::env::Env;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = Env::parse(bytes) {
        assert_eq!(Env::parse(&value.to_bytes()).as_ref(), Ok(&value));
    }
});
