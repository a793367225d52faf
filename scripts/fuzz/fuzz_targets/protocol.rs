//! The protocol of commands: a request that is read comes out the same, and a reply is a value or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::control::protocol::{Sealed, first_line, reply, reply_line, request, request_line};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(line)) = first_line(bytes) {
        assert!(!line.contains(&b'\n'));
    }
    if let Ok(asked) = request(bytes) {
        let line = request_line(&asked).expect("a request that was read is short enough");
        assert_eq!(request(&line).expect("it is read again"), asked);
    }
    if let Err(error) = reply::<Sealed>(bytes) {
        let again = reply::<Sealed>(&reply_line::<()>(Err(&error))).expect_err("an error stays one");
        assert_eq!((again.kind().name(), again.message()), (error.kind().name(), error.message()));
    }
});
