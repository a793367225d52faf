//! `pfimg diff`: what an image or fork has other than another.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::StoreArg;
use super::place;
use super::text::{count, plain, print, print_json};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{Compare, Difference, How, Registry, Side, View, compare};
use crate::layers::world::Kind;
use crate::store::{Digest, Store};

/// Longer paths are cut, in characters.
const WIDEST: usize = 4096;

/// How often it is begun anew because another program seals or discards what is compared.
const ATTEMPTS: usize = 3;

/// List the paths in which an image or fork differs from another: A added, D deleted, M other content, T another kind of file,
/// P other permissions, owner or attributes. Times and manifests are not compared.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A fork or an image (tag, prefix, sha256:…, latest); without TO, what it differs in from the image it comes from
    #[arg(value_name = "FROM")]
    from: String,
    /// The fork or image to compare it with
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// List all that is in folders which only one of them has
    #[arg(short, long)]
    recursive: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is compared.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Fork(String),
    Image(Digest),
    /// What comes from no image.
    Nothing,
}

/// A path that differs, as JSON. Bytes that are no UTF-8 are shown as U+FFFD.
#[derive(Debug, Serialize)]
struct Row {
    change: &'static str,
    path: String,
    before: Option<RowSide>,
    after: Option<RowSide>,
}

#[derive(Debug, Serialize)]
struct RowSide {
    kind: Kind,
    /// Octal.
    mode: String,
    /// In bytes, of a file.
    size: Option<u64>,
    /// How many things are in it, of a folder that only one side has and that is not listed.
    below: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Shown {
    from: Name,
    to: Name,
    changes: Vec<Row>,
}

pub(crate) fn run(store: &StoreArg, args: &DiffArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let mut attempt = 1;
    let (from, to, found) = loop {
        match differences(&store, args) {
            Err(e) if attempt < ATTEMPTS && matches!(e.kind(), ErrorKind::Missing | ErrorKind::Damaged) => {
                attempt += 1;
            }
            found => break found?,
        }
    };
    if args.json {
        print_json(&Shown { from, to, changes: found.iter().map(Row::of).collect() })?;
    } else {
        let mut text = String::new();
        for difference in &found {
            text.push_str(&line(difference));
        }
        print(&text)?;
        eprintln!("pfimg: {}", summary(&found));
    }
    Ok(ExitCode::SUCCESS)
}

fn differences(store: &Arc<Store>, args: &DiffArgs) -> Result<(Name, Name, Vec<Difference>)> {
    let registry = place::registry(store, true)?;
    let (from, to) = if let Some(to) = &args.to {
        // Most of it is reading and parsing two trees.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| find(store, &registry, to));
            let from = find(store, &registry, &args.from)?;
            let to = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<_, Error>((from, to))
        })?
    } else {
        let (name, view) = find(store, &registry, &args.from)?;
        (origin(store, &registry, &name)?, (name, view))
    };
    let mut found = Vec::new();
    let options = Compare { all: args.recursive, read: true };
    compare(&from.1, &to.1, options, &mut |difference| {
        found.push(difference);
        Ok(())
    })?;
    Ok((from.0, to.0, found))
}

/// A fork, or else an image, of that name.
fn find(store: &Store, registry: &Registry, name: &str) -> Result<(Name, View)> {
    if registry.contains(name) {
        return Ok((Name::Fork(name.to_owned()), registry.get(name)?.view()));
    }
    let image = store.resolve(name).map_err(|e| match e.kind() {
        ErrorKind::NotFound => e.context("no fork has that name"),
        _ => e,
    })?;
    Ok((Name::Image(image), registry.view(Some(image))?))
}

/// What something comes from: a fork from the image it rests on, an image from its first parent.
fn origin(store: &Store, registry: &Registry, name: &Name) -> Result<(Name, View)> {
    let image = match name {
        Name::Fork(name) => registry.get(name)?.lineage()?,
        Name::Image(image) => store.image(image)?.manifest.parents.first().copied(),
        Name::Nothing => None,
    };
    let view = registry.view(image).map_err(|e| {
        e.context("what it comes from cannot be read").with_hint("name what to compare it with")
    })?;
    Ok((image.map_or(Name::Nothing, Name::Image), view))
}

fn letter(how: How) -> char {
    match how {
        How::Added => 'A',
        How::Removed => 'D',
        How::Content => 'M',
        How::Kind => 'T',
        How::Attributes => 'P',
    }
}

fn line(difference: &Difference) -> String {
    let path = plain(&String::from_utf8_lossy(&difference.path), WIDEST);
    let side = difference.after.or(difference.before);
    let folder = side.filter(|side| side.kind == Kind::Dir);
    let slash = if folder.is_some() { "/" } else { "" };
    let below = folder.map(|side| side.below).filter(|below| *below > 0);
    let below = below.map_or_else(String::new, |below| format!("  ({below} in it)"));
    format!("{} {path}{slash}{below}\n", letter(difference.how))
}

fn summary(found: &[Difference]) -> String {
    let words = [
        (How::Added, "added"),
        (How::Removed, "deleted"),
        (How::Content, "changed"),
        (How::Kind, "of another kind"),
        (How::Attributes, "with other attributes"),
    ];
    let of = |how: How| found.iter().filter(|difference| difference.how == how).count();
    let parts: Vec<String> = words
        .iter()
        .filter(|(how, _)| of(*how) > 0)
        .map(|(how, word)| format!("{} {word}", of(*how)))
        .collect();
    if parts.is_empty() {
        "no difference".into()
    } else {
        format!("{}: {}", count(found.len() as u64, "path"), parts.join(", "))
    }
}

impl Row {
    fn of(difference: &Difference) -> Self {
        let change = match difference.how {
            How::Added => "added",
            How::Removed => "deleted",
            How::Content => "content",
            How::Kind => "kind",
            How::Attributes => "attributes",
        };
        let path = String::from_utf8_lossy(&difference.path).into_owned();
        Self {
            change,
            path,
            before: difference.before.map(RowSide::of),
            after: difference.after.map(RowSide::of),
        }
    }
}

impl RowSide {
    fn of(side: Side) -> Self {
        let below = (side.below > 0).then_some(side.below);
        Self { kind: side.kind, mode: format!("{:04o}", side.mode), size: side.size, below }
    }
}
