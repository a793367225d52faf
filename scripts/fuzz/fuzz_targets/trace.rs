//! The trace: any bytes are a trace, and come out unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::trace::{Message, Trace};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut trace) = Trace::parse(bytes) else { panic!("a trace cannot be refused") };
    assert_eq!(trace.to_bytes(), bytes);
    for line in trace.lines() {
        assert!(!trace.text(line).contains(&b'\n'));
    }
    trace.push(Message { content: "c".into(), role: "r".into(), extra: Default::default() });
    assert_eq!(Trace::parse(&trace.to_bytes()).as_ref(), Ok(&trace));
});
