//! `pfimg seal`: makes an image of a fork.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::place::{self, Place};
use super::secret::SecretArg;
use super::store_arg::StoreArg;
use super::text::print;
use crate::control::protocol::Sealed;
use crate::daemon::{calls, forks};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::About;
use crate::ops::recover;
use crate::ops::seal::{Sealer, Tag};
use crate::store::tags::check_new_tag;

/// The longest message in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// Save the present state of a fork as an image. Prints the id of the image. The fork stays writable.
#[derive(Debug, Args)]
pub(crate) struct SealArgs {
    /// The fork's name
    #[arg(value_name = "FORK")]
    name: String,
    /// Give the image a name
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Move the name if another image has it
    #[arg(long, alias = "force-tag", requires = "tag")]
    force: bool,
    /// Describe the seal; `pfimg seals` and `pfimg log` show the text
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    secret: SecretArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(store: &StoreArg, args: &SealArgs) -> Result<ExitCode> {
    let tag = args.tag.as_deref().map(|name| Tag { name, force: args.force });
    if let Some(tag) = &tag {
        check_new_tag(tag.name)?;
    }
    let about = About { message: args.message.clone(), ..About::default() };
    if about.message.as_ref().is_some_and(|message| message.len() > MAX_MESSAGE) {
        let what = format!("the message is longer than {MAX_MESSAGE} bytes");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .with_hint("write the long text into a file of the fork"));
    }
    let store = Arc::new(store.open()?);
    let name = &args.name;
    let done = match place::find(&store)? {
        Place::Mount(served) => {
            place::check_secret(&served.mountpoint, &args.secret)?;
            calls::seal(&served.client, name, args.tag.as_deref(), args.force, about)?
        }
        Place::Disk(registry) => {
            let log = audit::told(&store, "seal");
            let fork = recover::read_back(&store, &registry, name, &log)?;
            let reader = forks::reader(&store);
            let sealer = Sealer::new(Arc::clone(&store), reader, args.secret.read()?);
            let sealed = sealer.with_log(log).seal_as(&fork, tag, false, &about)?;
            registry.sync()?;
            Sealed { image: sealed.image, new: sealed.new, reports: sealed.reports }
        }
    };
    for report in &done.reports {
        eprintln!("pfimg: {report}");
    }
    if args.json {
        print_json(&json!({
            "fork": name, "image": done.image, "new": done.new, "tag": args.tag, "message": args.message, "reports": done.reports,
        }))?;
    } else {
        print(&format!("{}\n", done.image))?;
    }
    Ok(ExitCode::SUCCESS)
}
