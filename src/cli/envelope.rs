//! `--json`: what a command came to, as one object.
//!
//! ```text
//! {"pfimg":1,"command":"run","result":{…}}
//! {"pfimg":1,"command":"run","error":{"kind":"not-found","message":"…","path":null,"hint":"…"}}
//! ```

use serde::Serialize;
use serde_json::json;

use crate::error::Error;

/// The version of the object. It changes only if a program that reads this one would misread the next.
const VERSION: u32 = 1;

/// The object of a result in one line, for commands that print several.
pub(crate) fn result_line(command: &str, result: &impl Serialize) -> String {
    let object = json!({"pfimg": VERSION, "command": command, "result": result});
    format!("{object}\n")
}

/// The object of an error in one line.
pub(crate) fn error_line(command: &str, error: &Error) -> String {
    // `NotFound` is `not-found`.
    let mut kind = String::new();
    for c in format!("{:?}", error.kind()).chars().take_while(|c| c.is_alphanumeric()) {
        if c.is_uppercase() && !kind.is_empty() {
            kind.push('-');
        }
        kind.extend(c.to_lowercase());
    }
    let error = json!({"kind": kind, "message": error.to_string(), "path": null, "hint": error.hint()});
    let object = json!({"pfimg": VERSION, "command": command, "error": error});
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_result_and_an_error_are_one_line_each() {
        assert_eq!(
            result_line("run", &json!({"a": 1})),
            "{\"command\":\"run\",\"pfimg\":1,\"result\":{\"a\":1}}\n"
        );
        let error = Error::new(ErrorKind::NotFound, "no\nfork").with_hint("try");
        let value: serde_json::Value = serde_json::from_str(&error_line("run", &error)).unwrap();
        assert_eq!(value["error"]["kind"], "not-found");
        assert_eq!(value["error"]["hint"], "try");
        assert_eq!(error_line("run", &error).lines().count(), 1);
    }
}
