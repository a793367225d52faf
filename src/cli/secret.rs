//! The operator's secret, which chains and verifies ledgers.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Error, ErrorKind, Result};
use crate::layers::effects::Secret;

/// The source of the secret.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SecretArg {
    /// Sign ledgers (records of tool calls) with the hex secret in FILE [default: `$PF_SESSION_SECRET`, else
    /// a new secret that is written into the ledger]
    #[arg(long = "session-secret-file", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl SecretArg {
    pub(crate) fn read(&self) -> Result<Option<Secret>> {
        match &self.file {
            Some(path) => from_file(path).map(Some),
            None => operator_secret(),
        }
    }
}

/// Returns the secret in `$PF_SESSION_SECRET`. Checks it here, so that a typing error is not reported as a
/// damaged ledger.
pub(crate) fn operator_secret() -> Result<Option<Secret>> {
    let Some(text) = std::env::var_os("PF_SESSION_SECRET") else { return Ok(None) };
    parse(&text.to_string_lossy(), "PF_SESSION_SECRET")
}

fn from_file(path: &Path) -> Result<Secret> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(e, format!("cannot read --session-secret-file {shown}")))?;
    parse(&text, &shown)?.ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("{shown} is empty")))
}

fn parse(text: &str, source: &str) -> Result<Option<Secret>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    match data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()) {
        Ok(_) => Ok(Some(Secret::new(text))),
        // The decoder's message is left out: it might quote the secret.
        Err(_) => Err(Error::new(ErrorKind::InvalidInput, format!("{source} is not hex"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_must_hold_hex_and_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let says = |text: &str| {
            std::fs::write(&path, text).unwrap();
            SecretArg { file: Some(path.clone()) }
                .read()
                .map(|secret| secret.is_some())
                .map_err(|e| e.to_string())
        };
        assert_eq!(says("00ff\n"), Ok(true));
        assert!(says("tops3cret").unwrap_err().contains("not hex"));
        assert!(!says("tops3cret").unwrap_err().contains("tops3cret"));
        assert!(says("").unwrap_err().contains("empty"));
        assert!(SecretArg { file: Some(dir.path().join("none")) }.read().is_err());
    }
}
