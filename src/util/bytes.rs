//! Bytes that JSON carries without loss.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

/// Bytes, as base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        BASE64.encode(&bytes.0)
    }
}

impl TryFrom<String> for Bytes {
    type Error = data_encoding::DecodeError;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        BASE64.decode(text.as_bytes()).map(Self)
    }
}
