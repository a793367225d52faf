//! `pfimg log`: shows the ancestry of images.

mod graph;

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::envelope::print_json;
use super::images::{self, short};
use super::store_arg::StoreArg;
use super::text::{plain, print};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Exit, Result};
use crate::fork::Registry;
use crate::ops::line::Line;
use crate::store::{Manifest, Store};
use graph::Graph;

/// Show which image was made from which, and which forks are based on them. For a named fork, also numbers
/// its seals: FORK@2.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Forks and images to start from; an image is its tag, the first digits of its id, or latest [default:
    /// all images]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Draw the lines between images and their parents
    #[arg(long)]
    graph: bool,
    /// Show at most N images
    #[arg(short = 'n', long, value_name = "N")]
    max: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: Digest,
    created_at: DateTime<Utc>,
    agent: RowAgent,
    /// They need not be in the store.
    parents: Vec<Digest>,
    tags: Vec<String>,
    /// Forks that rest on it.
    forks: Vec<String>,
    /// Its places in the lines of the named forks, as `FORK@NUMBER`.
    seals: Vec<String>,
    /// The reason of each of these seals, in the same order; empty for the image that a fork was made of.
    reasons: Vec<String>,
    latest: bool,
}

#[derive(Debug, Serialize)]
struct RowAgent {
    kind: String,
    version: String,
    fingerprint: String,
}

/// The places of images in the lines of forks, and the reasons of these seals.
type Numbers = HashMap<Digest, Vec<(String, String)>>;

pub(crate) fn run(store: &StoreArg, args: &LogArgs) -> Result<ExitCode> {
    let store = Arc::new(store.open()?);
    let registry = forks::registry(&store, true)?;
    let (tips, mut seals) = begin(&store, &registry, &args.names)?;
    let (manifests, problems) = images::read(&store)?;
    let mut manifests: HashMap<Digest, Manifest> = manifests.into_iter().collect();
    let counted = manifests.iter().filter(|(_, manifest)| manifest.may_be_latest());
    let latest = counted.map(|(id, manifest)| (manifest.created_at, *id)).max().map(|(_, id)| id);
    if !args.names.is_empty() {
        let wanted = ancestors(&manifests, tips.into_iter());
        manifests.retain(|id, _| wanted.contains(id));
    }
    let (mut tags, tag_problems) = images::tags(&store)?;
    let mut forks: HashMap<Digest, Vec<String>> = HashMap::new();
    for name in registry.names() {
        if let Some(base) = registry.info(&name).ok().and_then(|info| info.base) {
            forks.entry(base).or_default().push(name);
        }
    }
    let order = children_first(&manifests);
    let rows = order.into_iter().take(args.max.unwrap_or(usize::MAX)).filter_map(|id| {
        let manifest = manifests.remove(&id)?;
        let (seals, reasons) = seals.remove(&id).unwrap_or_default().into_iter().unzip();
        Some(Row {
            id,
            created_at: manifest.created_at,
            agent: RowAgent {
                kind: manifest.agent.kind,
                version: manifest.agent.version,
                fingerprint: manifest.agent.fingerprint,
            },
            parents: manifest.parents,
            tags: tags.remove(&id).unwrap_or_default(),
            forks: forks.remove(&id).unwrap_or_default(),
            seals,
            reasons,
            latest: latest == Some(id),
        })
    });
    let rows: Vec<Row> = rows.collect();
    if args.json {
        let problems: Vec<&String> = problems.iter().chain(&tag_problems).collect();
        print_json(&json!({"images": rows, "problems": problems}))?;
    } else {
        print(&render(&rows, args.graph))?;
    }
    for problem in problems.iter().chain(&tag_problems) {
        eprintln!("pfimg: {}", plain(problem, usize::MAX));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { Exit::Damage.into() })
}

/// Returns the named images, and the places of images in the lines of the named forks: `FORK@NUMBER`, as `pfimg
/// restore` takes it. A fork means its first image and all its seals: after a restore some are on another
/// branch.
fn begin(store: &Store, registry: &Registry, names: &[String]) -> Result<(Vec<Digest>, Numbers)> {
    let mut tips = Vec::new();
    let mut numbers = Numbers::new();
    for name in names {
        if !registry.contains(name) {
            tips.push(forks::image(store, name)?);
            continue;
        }
        let fork = registry.get(name)?;
        tips.extend(fork.lineage()?);
        let line = Line::of_fork(store, &fork)?;
        for (number, image) in line.numbered() {
            tips.push(image);
            let step = number.checked_sub(1).and_then(|at| line.steps().get(at));
            let why = step.map_or_else(
                || line.said_of_origin().unwrap_or_default().to_owned(),
                |step| step.about.words(),
            );
            numbers.entry(image).or_default().push((format!("{name}@{number}"), why));
        }
    }
    Ok((tips, numbers))
}

/// Returns images and their ancestors, as far as they are in the store.
fn ancestors(manifests: &HashMap<Digest, Manifest>, tips: impl Iterator<Item = Digest>) -> HashSet<Digest> {
    let (mut found, mut todo) = (HashSet::new(), tips.collect::<Vec<_>>());
    while let Some(id) = todo.pop() {
        if let (Some(manifest), true) = (manifests.get(&id), found.insert(id)) {
            todo.extend(&manifest.parents);
        }
    }
    found
}

/// Returns all of them, each before its parents, else the newest first: a clock may have been set back.
fn children_first(manifests: &HashMap<Digest, Manifest>) -> Vec<Digest> {
    let parents = |manifest: &Manifest| -> HashSet<Digest> { manifest.parents.iter().copied().collect() };
    let mut children: HashMap<Digest, usize> = HashMap::new();
    for parent in manifests.values().flat_map(parents) {
        *children.entry(parent).or_default() += 1;
    }
    let key = |id: &Digest| manifests.get(id).map(|manifest| (manifest.created_at, *id));
    let mut ready: BinaryHeap<_> =
        manifests.keys().filter(|id| !children.contains_key(id)).filter_map(key).collect();
    let mut order = Vec::with_capacity(manifests.len());
    while let Some((_, id)) = ready.pop() {
        order.push(id);
        for parent in manifests.get(&id).map(parents).unwrap_or_default() {
            if let Some(left) = children.get_mut(&parent) {
                *left -= 1;
                if *left == 0 {
                    ready.extend(key(&parent));
                }
            }
        }
    }
    order
}

fn render(rows: &[Row], draw: bool) -> String {
    let shown: HashSet<Digest> = rows.iter().map(|row| row.id).collect();
    let (mut out, mut graph) = (String::new(), Graph::default());
    for row in rows {
        let text = line(row);
        if draw {
            // Lines lead only to shown images.
            let parents: Vec<Digest> = row.parents.iter().filter(|id| shown.contains(id)).copied().collect();
            let (node, below) = graph.node(row.id, &parents);
            let _ = writeln!(out, "{node}  {text}");
            for drawn in below {
                out.push_str(&drawn);
                out.push('\n');
            }
        } else {
            let _ = writeln!(out, "{text}");
        }
    }
    out
}

fn line(row: &Row) -> String {
    let RowAgent { kind, version, fingerprint } = &row.agent;
    let mut text = format!(
        "{}  {}  {}",
        short(&row.id),
        row.created_at.format("%F %T"),
        plain(&format!("{kind} {version} ({fingerprint})"), 60)
    );
    let names = row.latest.then_some("latest").into_iter().chain(row.tags.iter().map(String::as_str));
    let forks = row.forks.iter().map(|name| format!("fork {}", plain(name, 60)));
    let seals = row.seals.iter().zip(&row.reasons).map(|(seal, why)| {
        let why =
            if why.is_empty() || why == "seal" { String::new() } else { format!(" ({})", plain(why, 60)) };
        format!("{}{why}", plain(seal, 60))
    });
    let names: Vec<String> = names.map(|name| plain(name, 60)).chain(seals).chain(forks).collect();
    if !names.is_empty() {
        let _ = write!(text, "  [{}]", names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    fn family(images: &[(&str, i64, &[&str])]) -> HashMap<Digest, Manifest> {
        let digest = |name: &str| Digest::of(name.as_bytes());
        let image = |(name, seconds, parents): &(&str, i64, &[&str])| {
            let mut manifest = sample();
            manifest.created_at += chrono::Duration::seconds(*seconds);
            manifest.parents = parents.iter().map(|name| digest(name)).collect();
            (digest(name), manifest)
        };
        images.iter().map(image).collect()
    }

    #[test]
    fn children_come_before_their_parents_with_any_clock() {
        let all = family(&[
            ("base", 5, &[]),
            ("a", 1, &["base", "base"]),
            ("b", 2, &["base", "nowhere"]),
            ("merge", 0, &["a", "b"]),
            ("other", 3, &[]),
        ]);
        let name = |id: &Digest| {
            let names = ["base", "a", "b", "merge", "other"];
            names.into_iter().find(|name| Digest::of(name.as_bytes()) == *id).unwrap()
        };
        let order = children_first(&all);
        assert_eq!(order.iter().map(name).collect::<Vec<_>>(), ["other", "merge", "b", "a", "base"]);
        let of_a = ancestors(&all, [Digest::of(b"a")].into_iter());
        assert_eq!(of_a, ["a", "base"].map(|name| Digest::of(name.as_bytes())).into_iter().collect());
    }
}
