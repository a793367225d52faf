//! `pfimg show`: an image, layer by layer.

use std::fmt::Write as _;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::envelope::print_json;
use super::images::tags;
use super::secret::operator_secret;
use super::store_arg::StoreArg;
use super::text::{count, count_directories, plain, print};
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Exit, Result};
use crate::ops::summary::{BaseBrief, Brief, CacheBrief, EffectsBrief, Part, TraceBrief, TreeBrief};
use crate::store::manifest::Agent;
use crate::store::{Manifest, MarkerError};
use crate::util::units::format_bytes;

/// The longest text of a layer in the output, in characters.
const EXCERPT: usize = 70;

/// Show what an image contains: files, model, cache, tool calls, messages. Exits with 4 if a part is damaged.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// An image: its tag, the first digits of its id, or latest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    id: Digest,
    schema_version: u32,
    media_type: String,
    agent: Agent,
    created_at: DateTime<Utc>,
    parents: Vec<Digest>,
    tags: Vec<String>,
    latest: bool,
    /// Damage of the marker itself.
    marker_damage: Option<String>,
    layers: Brief,
}

pub(crate) fn run(store: &StoreArg, args: &ShowArgs) -> Result<ExitCode> {
    let store = store.open()?;
    let id = forks::image(&store, &args.image)?;
    let (bytes, measured) = store.images().bytes(store.blobs(), &id)?;
    let manifest = Manifest::parse(&bytes).map_err(|source| MarkerError::Manifest { id, source })?;
    let shown = Shown {
        id,
        tags: tags(&store)?.0.remove(&id).unwrap_or_default(),
        latest: store.images().newest(store.blobs())? == Some(id),
        marker_damage: measured
            .map(|measured| format!("its bytes hash to {measured}; the manifest's blob is shown instead")),
        layers: Brief::of(&store, &manifest, operator_secret()?.as_ref()),
        schema_version: manifest.schema_version,
        media_type: manifest.media_type,
        agent: manifest.agent,
        created_at: manifest.created_at,
        parents: manifest.parents,
    };
    if args.json {
        print_json(&shown)?;
    } else {
        print(&render(&shown))?;
    }
    let damaged = shown.marker_damage.is_some() || !shown.layers.damage().is_empty();
    Ok(if damaged { Exit::Damage.into() } else { ExitCode::SUCCESS })
}

fn render(shown: &Shown) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        let _ = writeln!(out, "{name:<15} {text}");
    };
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    line("image", &shown.id.to_string());
    if let Some(damage) = &shown.marker_damage {
        line("", &format!("MARKER DAMAGED: {damage}"));
    }
    line("created", &shown.created_at.format("%F %T UTC").to_string());
    let Agent { kind, version, fingerprint } = &shown.agent;
    line("agent", &plain(&format!("{kind} {version} ({fingerprint})"), EXCERPT));
    let parents: Vec<String> = shown.parents.iter().map(Digest::to_string).collect();
    line("parents", &or_none(parents.join("\n                ")));
    let names = shown.latest.then_some("latest").into_iter().chain(shown.tags.iter().map(String::as_str));
    line("tags", &or_none(names.map(|name| plain(name, EXCERPT)).collect::<Vec<_>>().join(", ")));
    line("schema", &plain(&format!("version {}, {}", shown.schema_version, shown.media_type), 100));
    let layers = &shown.layers;
    line("model/base", &describe(&layers.model_base, base));
    line(
        "model/diff",
        &describe(&layers.model_diff, |diff| with_note(diff.kind.clone(), diff.note.as_deref())),
    );
    line("cache", &describe(&layers.cache, cache));
    line("world/fs", &describe(&layers.world_fs, tree));
    line(
        "world/env",
        &describe(&layers.world_env, |env| {
            let cwd = env.cwd.as_ref().map(|cwd| format!(", in {cwd}")).unwrap_or_default();
            format!("{}{cwd}", count(env.vars, "variable"))
        }),
    );
    line(
        "world/procs",
        &describe(&layers.world_procs, |procs| with_note(procs.kind.clone(), Some(&procs.detail))),
    );
    line("effects", &describe(&layers.effects, effects));
    line("trace", &describe(&layers.trace, trace));
    out
}

/// Returns a layer's line: its content, size and damage.
fn describe<T>(part: &Part<T>, content: impl Fn(&T) -> String) -> String {
    let mut text = match (&part.content, part.bytes) {
        (Some(value), Some(bytes)) => format!("{} [{}]", plain(&content(value), 160), format_bytes(bytes)),
        (Some(value), None) => plain(&content(value), 160),
        (None, _) => String::new(),
    };
    if let Some(damage) = &part.damage {
        let separator = if text.is_empty() { "" } else { "\n                " };
        let _ = write!(text, "{separator}DAMAGED: {}", plain(damage, 400));
    }
    text
}

fn with_note(text: String, note: Option<&str>) -> String {
    match note {
        Some(note) if !note.is_empty() => format!("{text} ({})", plain(note, EXCERPT)),
        _ => text,
    }
}

fn base(base: &BaseBrief) -> String {
    match base {
        BaseBrief::Agent { agent } => format!("no model, agent {agent}"),
        BaseBrief::Text { text } => plain(text, EXCERPT),
        BaseBrief::Opaque => "opaque bytes".into(),
    }
}

fn cache(cache: &CacheBrief) -> String {
    let mut text = count(cache.pages, "page");
    if let (Some(page), Some(total)) = (cache.page_bytes, cache.total_bytes.filter(|total| *total > 0)) {
        let _ = write!(text, " of 2 × {}, {} in all", format_bytes(page), format_bytes(total));
    }
    if let (Some(layers), Some(heads), Some(dim)) = (cache.n_layers, cache.n_heads, cache.head_dim)
        && layers > 0
    {
        let _ = write!(text, "; {layers} layers × {heads} heads × {dim}");
        if let Some(dtype) = &cache.dtype {
            let _ = write!(text, " {dtype}");
        }
        if let Some(tokens) = cache.page_size_tokens {
            let _ = write!(text, ", {tokens} tokens a page");
        }
    }
    if let Some(sequences) = cache.sequences {
        let _ = write!(text, "; {}", count(sequences, "sequence"));
    }
    with_note(text, cache.note.as_deref())
}

fn tree(tree: &TreeBrief) -> String {
    let mut text = format!(
        "{}, {}, {}",
        count(tree.files, "file"),
        count_directories(tree.folders),
        count(tree.symlinks, "symlink")
    );
    if tree.specials > 0 {
        let _ = write!(text, ", {}", count(tree.specials, "special file"));
    }
    let _ = write!(text, ", {} in all", format_bytes(tree.content_bytes));
    text
}

fn effects(effects: &EffectsBrief) -> String {
    let entries =
        if effects.entries == 1 { "1 entry".into() } else { format!("{} entries", effects.entries) };
    let classes: Vec<String> = effects.classes.iter().map(|(class, n)| format!("{n} {class}")).collect();
    let mut text = match effects.kind {
        "merged" => format!("a merge of {entries}"),
        _ => entries,
    };
    if !classes.is_empty() {
        let _ = write!(text, ": {}", classes.join(", "));
    }
    if let Some(chain) = effects.chain {
        let _ = write!(text, "; chain {chain}");
    }
    text
}

fn trace(trace: &TraceBrief) -> String {
    let mut text = count(trace.messages, "message");
    for (number, noun) in [(trace.events, "event"), (trace.other, "other record")] {
        if number > 0 {
            let _ = write!(text, ", {}", count(number, noun));
        }
    }
    if let Some(first) = &trace.first {
        let _ = write!(text, "; {}", plain(first, EXCERPT));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_layer_is_marked_next_to_its_known_content() {
        let digest = Digest::of(b"");
        let part = Part { digest, bytes: Some(2048), content: Some(7_u32), damage: Some("bad\nline".into()) };
        let text = describe(&part, |n| format!("{n} things"));
        assert!(text.starts_with("7 things [2.0 KiB]") && text.ends_with(r"DAMAGED: bad\nline"), "{text}");
        let gone = Part::<u32> { bytes: None, content: None, ..part };
        assert_eq!(describe(&gone, u32::to_string), r"DAMAGED: bad\nline");
    }

    #[test]
    fn a_ledger_is_described_by_its_classes_and_its_chain() {
        let brief = EffectsBrief {
            kind: "ledger",
            entries: 3,
            classes: [("irreversible".to_owned(), 1), ("pure".to_owned(), 2)].into(),
            chain: Some("verified"),
        };
        assert_eq!(effects(&brief), "3 entries: 1 irreversible, 2 pure; chain verified");
    }
}
