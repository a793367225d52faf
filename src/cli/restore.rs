//! `pfimg restore`: puts a fork back to one of its seals.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::StoreArg;
use super::audit;
use super::envelope::print_json;
use super::place::{self, Place};
use super::secret::SecretArg;
use super::text::print;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::mountinfo::runs_in;
use crate::ops::line::{self, Line};
use crate::ops::recover;
use crate::ops::seal::Sealer;

/// Put a fork back to one of its seals. Unsealed changes are sealed first, so that nothing is lost.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The fork and its seal: a number as `pfimg log FORK` shows it, a tag, or an id or the beginning of it
    #[arg(value_name = "FORK@SEAL")]
    what: String,
    /// The seal, as it was given before
    #[arg(value_name = "SEAL", hide = true)]
    seal: Option<String>,
    #[command(flatten)]
    secret: SecretArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl RestoreArgs {
    /// `FORK@SEAL`, or both apart.
    fn fork_and_seal(&self) -> Result<(&str, &str)> {
        let what = &*self.what;
        let both = match &self.seal {
            Some(seal) => Some((what, &**seal)),
            None => what.split_once('@').filter(|(name, seal)| !name.is_empty() && !seal.is_empty()),
        };
        match both {
            // A path would lead out of the folder that asks for it in a mount.
            Some((name, seal)) if seal.contains('/') => Err(line::no_seal(name, seal)),
            Some(both) => Ok(both),
            None => Err(Error::new(ErrorKind::InvalidInput, format!("{what:?} names no seal to go back to"))
                .with_hint(format!("write {what}@SEAL; `pfimg log {what}` lists the seals"))),
        }
    }
}

pub(crate) fn run(store: &StoreArg, args: &RestoreArgs) -> Result<ExitCode> {
    let (name, seal) = args.fork_and_seal()?;
    let store = Arc::new(store.open()?);
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
            let image = line::find(&store, name, &Line::of_fork(&store, &fork)?, seal)?;
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
