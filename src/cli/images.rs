//! `pfimg images`: lists the images of a store.

use std::collections::HashMap;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::envelope::print_json;
use super::store_arg::StoreArg;
use super::text::{plain, print, table};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Exit, Result};
use crate::store::{Manifest, MarkerError, Store};

/// Hex digits of an id in tables.
pub(crate) const SHORT: usize = 12;

/// List the images, the newest first.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An image in the list.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    id: Digest,
    created_at: DateTime<Utc>,
    agent: RowAgent,
    parents: Vec<Digest>,
    tags: Vec<String>,
    latest: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Listed<'a> {
    images: &'a [Row],
    problems: Problems,
}

#[derive(Debug, PartialEq, Serialize)]
struct RowAgent {
    kind: String,
    version: String,
}

pub(crate) fn run(store: &StoreArg, args: &ImagesArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let (manifests, problems) = read(&store)?;
    let (tags, tag_problems) = tags(&store)?;
    let rows = rows(manifests, tags);
    if args.json {
        let problems: Problems = problems.iter().chain(&tag_problems).cloned().collect();
        print_json(&Listed { images: &rows, problems })?;
    } else if !rows.is_empty() {
        print(&render(&rows))?;
    } else if problems.is_empty() {
        eprintln!("pfimg: there is no image in {} yet", store.root().display());
    }
    for problem in problems.iter().chain(&tag_problems) {
        eprintln!("pfimg: {}", plain(problem, usize::MAX));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

pub(crate) type Manifests = Vec<(Digest, Manifest)>;

/// The names of each tagged image.
pub(crate) type Names = HashMap<Digest, Vec<String>>;

/// The problems of the store, one per line.
pub(crate) type Problems = Vec<String>;

/// Returns every readable manifest, and a line for each damaged marker.
pub(crate) fn read(store: &Store) -> Result<(Manifests, Problems)> {
    let mut manifests = Vec::new();
    let mut problems = Vec::new();
    let ids = store.images().ids(&mut |odd| {
        // Readers ignore the temporary files of writers.
        if odd.extension().is_some_and(|extension| extension == "json") {
            problems.push(format!("{} is not a marker: its name is not a digest", odd.display()));
        }
    })?;
    for id in ids {
        let read = store.images().bytes(store.blobs(), &id).and_then(|(bytes, damaged)| {
            let manifest = Manifest::parse(&bytes).map_err(|source| MarkerError::Manifest { id, source })?;
            Ok((manifest, damaged))
        });
        match read {
            Ok((manifest, damaged)) => {
                if damaged.is_some() {
                    problems.push(format!(
                        "image {id}: its marker is damaged; the manifest's blob is used instead"
                    ));
                }
                manifests.push((id, manifest));
            }
            // Another program has just removed it.
            Err(MarkerError::Absent(_)) => {}
            Err(error) => problems.push(Error::from(error).to_string()),
        }
    }
    Ok((manifests, problems))
}

/// Returns the names of each tagged image, and a line for each tag without an image.
pub(crate) fn tags(store: &Store) -> Result<(Names, Problems)> {
    let mut tags = Names::new();
    let mut problems = Vec::new();
    for name in store.tags().names()? {
        match store.tags().get(&name) {
            Ok(id) if store.images().contains(&id) => tags.entry(id).or_default().push(name),
            Ok(id) => problems.push(format!("tag {name:?} names {id}, which is not in the store")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    Ok((tags, problems))
}

fn rows(manifests: Manifests, mut tags: Names) -> Vec<Row> {
    let counted = manifests.iter().filter(|(_, manifest)| manifest.may_be_latest());
    let latest = counted.map(|(id, manifest)| (manifest.created_at, *id)).max().map(|(_, id)| id);
    let mut rows: Vec<Row> = manifests
        .into_iter()
        .map(|(id, manifest)| Row {
            id,
            created_at: manifest.created_at,
            agent: RowAgent { kind: manifest.agent.kind, version: manifest.agent.version },
            parents: manifest.parents,
            tags: tags.remove(&id).unwrap_or_default(),
            latest: latest == Some(id),
        })
        .collect();
    // The same order as that of `latest`: at equal times the greater id is newer.
    rows.sort_unstable_by_key(|row| std::cmp::Reverse((row.created_at, row.id)));
    rows
}

fn render(rows: &[Row]) -> String {
    let cells: Vec<[String; 5]> = rows
        .iter()
        .map(|row| {
            let latest = row.latest.then_some("latest");
            let names: Vec<String> = latest
                .into_iter()
                .chain(row.tags.iter().map(String::as_str))
                .map(|tag| plain(tag, 60))
                .collect();
            [
                short(&row.id),
                row.created_at.format("%F %T").to_string(),
                plain(&format!("{} {}", row.agent.kind, row.agent.version), 40),
                row.parents.iter().map(short).collect::<Vec<_>>().join(" "),
                names.join(", "),
            ]
        })
        .collect();
    table(["IMAGE", "CREATED (UTC)", "AGENT", "PARENTS", "TAGS"], &cells)
}

/// Returns the first digits of an id.
pub(crate) fn short(id: &Digest) -> String {
    id.hex().chars().take(SHORT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    fn image(name: &str, seconds: i64) -> (Digest, Manifest) {
        let mut manifest = sample();
        manifest.created_at += chrono::Duration::seconds(seconds);
        (Digest::of(name.as_bytes()), manifest)
    }

    #[test]
    fn the_newest_image_is_first_and_latest_and_of_equals_the_greater_id() {
        let mut equals = [image("x", 5), image("y", 5)];
        equals.sort_unstable_by_key(|(id, _)| *id);
        let [smaller, greater] = equals;
        let (smaller_id, greater_id) = (smaller.0, greater.0);
        let old = image("old", 0);
        let tags = HashMap::from([(old.0, vec!["before".to_owned()])]);
        let rows = rows(vec![smaller, old.clone(), greater], tags);
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [greater_id, smaller_id, old.0]);
        assert_eq!(rows.iter().map(|row| row.latest).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(rows[2].tags, ["before"]);
    }

    #[test]
    fn a_table_shows_short_ids_and_no_control_characters() {
        let (id, mut manifest) = image("x", 0);
        manifest.agent.kind = "evil\u{1b}[2J\nagent".into();
        manifest.parents = vec![Digest::of(b"p"), Digest::of(b"q")];
        let text = render(&rows(vec![(id, manifest)], HashMap::from([(id, vec!["a".into(), "b".into()])])));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[1].starts_with(&id.hex()[..12]) && !lines[1].contains(&id.hex()[..13]), "{text}");
        assert!(lines[1].contains("2026-11-20 09:20:56") && lines[1].ends_with("latest, a, b"), "{text}");
        assert!(lines[1].contains(&format!("{} {}", short(&Digest::of(b"p")), short(&Digest::of(b"q")))));
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
