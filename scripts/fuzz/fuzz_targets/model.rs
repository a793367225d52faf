//! The model's base and diff: what is read comes out the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::model::{Base, ModelDiff};

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(Base::parse(bytes).map(|base| base.to_bytes()).as_deref(), Ok(bytes));
    if let Ok(diff) = ModelDiff::parse(bytes) {
        assert!(diff.diff_json().starts_with('{') && diff.diff_json().ends_with('}'));
        assert_eq!(ModelDiff::parse(&diff.to_bytes()).as_ref(), Ok(&diff));
    }
});
