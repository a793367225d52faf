//! `pfimg diff`: what an image or fork has other than another.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::StoreArg;
use super::envelope::print_json;
use super::images::short;
use super::place;
use super::text::{count, plain, plain_bytes, print};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::fork::{self, Compare, Difference, How, Registry, View, compare};
use crate::layers::world::Kind;
use crate::ops::line;
use crate::store::Store;

/// Longer paths are cut, in characters.
const WIDEST: usize = 4096;

/// How often it is begun anew because another program seals or discards what is compared.
const ATTEMPTS: usize = 3;

/// List the paths that differ between two forks or images. A added, D deleted, M other content, T another kind of file,
/// P other permissions, owner or attributes. Times and manifests are not compared.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A fork or an image (tag, prefix, sha256:…, latest, FORK@SEAL), or its path under a mount; without TO, what it differs in from the
    /// image that the fork was made of, or from the image's first parent
    #[arg(value_name = "FROM")]
    from: String,
    /// The fork or image to compare it with
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// List all that is in folders which only one of them has
    #[arg(short, long)]
    recursive: bool,
    /// Exit with 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
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

/// A path that differs, as JSON. Bytes that are not UTF-8 are U+FFFD in `path`; `path_b64` has the exact name.
#[derive(Debug, Serialize)]
struct Row {
    change: &'static str,
    path: String,
    /// The path's bytes in base64, where they are no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
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
struct Shown<'a> {
    from: &'a Name,
    to: &'a Name,
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
        print_json(&Shown { from: &from, to: &to, changes: found.iter().map(Row::of).collect() })?;
    } else {
        let mut text = String::new();
        for difference in &found {
            text.push_str(&line(difference));
        }
        print(&text)?;
        eprintln!("pfimg: from {from} to {to}: {}", summary(&found));
    }
    let differ = args.exit_code && !found.is_empty();
    Ok(if differ { Exit::Differs.into() } else { ExitCode::SUCCESS })
}

fn differences(store: &Arc<Store>, args: &DiffArgs) -> Result<(Name, Name, Vec<Difference>)> {
    // Who may read the images need not be allowed to read the forks.
    let forks = match place::registry(store, true) {
        Ok(registry) => Some(registry),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
        Err(error) => return Err(error),
    };
    let side = Side { store, forks: forks.as_ref() };
    let (from, to) = if let Some(to) = &args.to {
        // Most of it is reading and parsing two trees.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| side.find(to));
            let from = side.find(&args.from)?;
            let to = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<_, Error>((from, to))
        })?
    } else {
        let (name, view) = side.find(&args.from)?;
        (side.origin(&name)?, (name, view))
    };
    let mut found = Vec::new();
    let options = Compare { all: args.recursive, read: true };
    compare(&from.1, &to.1, options, &mut |difference| {
        found.push(difference);
        Ok(())
    })?;
    Ok((from.0, to.0, found))
}

/// Where the two sides come from.
struct Side<'a> {
    store: &'a Arc<Store>,
    forks: Option<&'a Registry>,
}

impl Side<'_> {
    /// A fork, or else an image, of that name. A path under a mount says which.
    fn find(&self, name: &str) -> Result<(Name, View)> {
        let (folder, name) = split(name);
        let is_fork =
            |forks: &&Registry| folder != Some("tags") && folder != Some("images") && forks.contains(name);
        if let Some(forks) = self.forks.filter(is_fork) {
            if folder.is_none() && self.store.resolve(name).is_ok() {
                eprintln!(
                    "pfimg: {name:?} is a fork and an image; this is the fork. tags/{name} is the image"
                );
            }
            place::take_in(self.store, name)?;
            return Ok((Name::Fork(name.to_owned()), forks.get(name)?.view()));
        }
        let image = line::image(self.store, name).map_err(|e| match e.kind() {
            ErrorKind::NotFound => e.context("no fork has that name (`pfimg forks` lists them)"),
            _ => e,
        })?;
        Ok((Name::Image(image), self.image(Some(image))?))
    }

    /// What something comes from: a fork from the image it was made of, an image from its first parent.
    fn origin(&self, name: &Name) -> Result<(Name, View)> {
        let image = match name {
            Name::Fork(name) => match self.forks {
                Some(forks) => place::origin(self.store, &*forks.get(name)?)?,
                None => None,
            },
            Name::Image(image) => self.store.image(image)?.manifest.parents.first().copied(),
            Name::Nothing => None,
        };
        let view = self.image(image).map_err(|e| {
            e.context("what it comes from cannot be read").with_hint("name what to compare it with")
        })?;
        Ok((image.map_or(Name::Nothing, Name::Image), view))
    }

    fn image(&self, image: Option<Digest>) -> Result<View> {
        match self.forks {
            Some(forks) => forks.view(image),
            None => View::of_image(place::reader(self.store), image),
        }
    }
}

/// The last part of a name, and the folder under a mount that it is in, if the name is such a path.
fn split(name: &str) -> (Option<&str>, &str) {
    let path = name.trim_end_matches('/');
    let Some((above, last)) = path.rsplit_once('/') else { return (None, path) };
    let folder = above.rsplit('/').next().unwrap_or_default();
    if matches!(folder, "forks" | "work" | "tags" | "images") { (Some(folder), last) } else { (None, name) }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fork(name) => write!(f, "fork {}", plain(name, WIDEST)),
            Self::Image(image) => write!(f, "image {}", short(image)),
            Self::Nothing => f.write_str("nothing"),
        }
    }
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
    let path = plain_bytes(&difference.path, WIDEST);
    let side = difference.after.or(difference.before);
    let slash = if side.is_some_and(|side| side.kind == Kind::Dir) { "/" } else { "" };
    let below = |side: Option<fork::Side>| side.map_or(0, |side| side.below);
    let below = match (below(difference.before), below(difference.after)) {
        (0, 0) => String::new(),
        (was, 0) if difference.how == How::Kind => format!("  ({was} were in it)"),
        (was, is) => format!("  ({} in it)", was + is),
    };
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
        let odd = path.as_bytes() != difference.path;
        Self {
            change,
            path,
            path_b64: odd.then(|| data_encoding::BASE64.encode(&difference.path)),
            before: difference.before.map(RowSide::of),
            after: difference.after.map(RowSide::of),
        }
    }
}

impl RowSide {
    fn of(side: fork::Side) -> Self {
        let below = (side.below > 0).then_some(side.below);
        Self { kind: side.kind, mode: format!("{:04o}", side.mode), size: side.size, below }
    }
}
