//! `pfimg restore`: puts a fork back to one of its seals.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::StoreArg;
use super::audit;
use super::place::{self, Place};
use super::secret::SecretArg;
use super::text::{print, print_json};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::runs_in;
use crate::ops::recover;
use crate::ops::seal::Sealer;

/// Put a fork back to one of its seals. What is not sealed is sealed first, so that nothing is lost.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// The seal: its tag, or its id or the beginning of it
    #[arg(value_name = "SEAL")]
    seal: String,
    #[command(flatten)]
    secret: SecretArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &RestoreArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let RestoreArgs { name, seal, .. } = args;
    let done = match place::find(&store)? {
        Place::Mount(mountpoint) => {
            place::check_secret(&mountpoint, &args.secret)?;
            let doing = format!("cannot put fork {name:?} back to {seal:?}");
            let runs = runs_in(&mountpoint, name);
            let done = place::ask(&mountpoint, name, &doing, |number| format!(".restore-{number}={seal}"))?;
            if runs {
                place::warn_of_restore(name);
            }
            done
        }
        Place::Disk(registry) => {
            let log = audit::told(&store, "restore");
            let fork = recover::read_back(&store, &registry, name, &log)?;
            let image = store.resolve(seal)?;
            if !fork.seals()?.iter().any(|seal| seal.image == image) {
                return Err(Error::new(ErrorKind::NotFound, format!("{seal:?} is no seal of fork {name:?}")));
            }
            let reader = place::reader(&store);
            let sealer = Sealer::new(Arc::clone(&store), reader, args.secret.read()?).with_log(log);
            let sealed = sealer.seal_everything(&fork)?;
            sealer.restore(&registry, name, &fork, &image)?;
            registry.sync()?;
            place::Done { image, new: sealed.new, reports: sealed.reports }
        }
    };
    for report in &done.reports {
        eprintln!("pfimg: {report}");
    }
    if args.json {
        print_json(
            &json!({"fork": name, "image": done.image, "sealed_before": done.new, "reports": done.reports}),
        )?;
    } else {
        print(&format!("{}\n", done.image))?;
    }
    Ok(ExitCode::SUCCESS)
}
