//! The world's processes: what is read comes out the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::procs::Procs;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = Procs::parse(bytes) {
        assert_eq!(Procs::parse(&value.to_bytes()).as_ref(), Ok(&value));
    }
});
