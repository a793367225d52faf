//! The option that names the store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::OsStringValueParser;

use super::meant;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// The place of an option in a help that lists it after the options of the command.
const LAST: usize = 900;

/// The store that a command works on.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArg {
    /// The store's directory [default: ~/.processfork]
    // An empty value counts as unset.
    #[arg(long = "store", global = true, env = "PF_STORE", value_name = "DIR", value_parser = OsStringValueParser::new(), display_order = LAST)]
    path: Option<OsString>,
}

impl StoreArg {
    /// Returns the directory named by `--store`, `$PF_STORE`, or the default. A mountpoint stands for the store
    /// mounted there.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        if let Some(path) = self.path.as_ref().filter(|path| !path.is_empty()) {
            return meant::store_meant(path.into());
        }
        std::env::home_dir().map(|home| home.join(".processfork")).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "no store is named, and there is no home directory with a default store",
            )
            .with_hint("name the store with --store or PF_STORE")
        })
    }

    /// Opens the store for reading.
    pub(crate) fn open(&self) -> Result<Store> {
        let opened = Store::open(self.path()?);
        match std::env::var_os("PFIMG_SNAP").filter(|snap| Path::new(snap).is_dir()) {
            Some(snap) => opened.map_err(|error| {
                let snap = Path::new(&snap).display();
                error.with_hint(format!(
                    "`mkdir {snap}/NAME` seals this fork; run other pfimg commands outside, since `pfimg run` hides the store"
                ))
            }),
            None => opened,
        }
    }
}
