//! `pfimg tags`: lists the tags and their images.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::envelope::print_json;
use super::images::short;
use super::store_arg::StoreArg;
use super::text::{plain, print, table};
use crate::digest::Digest;
use crate::error::{ErrorKind, Exit, Result};
use crate::store::Store;

/// List the tags and their images. PROBLEM names the reason why a tag leads to no image.
#[derive(Debug, Args)]
pub(crate) struct TagsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A tag in the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// `None` if the tag's file holds no digest.
    image: Option<Digest>,
    /// Why the tag has no usable image, if so.
    problem: Option<String>,
}

pub(crate) fn run(store: &StoreArg, args: &TagsArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let rows = rows(&store)?;
    if args.json {
        print_json(&json!({"tags": rows}))?;
    } else {
        let cells: Vec<[String; 3]> = rows
            .iter()
            .map(|row| {
                [
                    plain(&row.name, 80),
                    row.image.as_ref().map(short).unwrap_or_default(),
                    row.problem.as_deref().map(|problem| plain(problem, 160)).unwrap_or_default(),
                ]
            })
            .collect();
        if !cells.is_empty() {
            print(&table(["TAG", "IMAGE", "PROBLEM"], &cells))?;
        }
    }
    let whole = rows.iter().all(|row| row.problem.is_none());
    Ok(if whole { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

fn rows(store: &Store) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in store.tags().names()? {
        let (image, problem) = match store.tags().get(&name) {
            Ok(image) if store.images().contains(&image) => (Some(image), None),
            Ok(image) => (Some(image), Some("its image is not in the store".to_owned())),
            // Another program has just removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => (None, Some(error.to_string())),
        };
        rows.push(Row { name, image, problem });
    }
    Ok(rows)
}
