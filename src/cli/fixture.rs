//! `pfimg fixture`: writes a synthetic image.

use std::process::ExitCode;

use chrono::Utc;
use clap::Args;
use serde_json::json;

use super::audit;
use super::envelope::print_json;
use super::sharing::SharingArg;
use super::store_arg::StoreArg;
use super::text::print;
use crate::audit::note;
use crate::daemon::forks;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::cache::LAYOUT;
use crate::ops::fixture::{FixtureLayers, FixtureSpec, agent, build};
use crate::store::Manifest;
use crate::store::manifest::{
    Agent, CacheRefs, EffectsRefs, MAX_PARENTS, MEDIA_TYPE, ModelRefs, SCHEMA_VERSION, TraceRefs, WorldRefs,
};
use crate::store::tags::check_new_tag;

/// The variable that `replay_command.sh` of a crash pack exports for the image concerned.
const SEED: &str = "PFIMG_SEED_FIXTURE";

/// The maximum of every count.
const MAX_COUNT: u64 = 10_000_000;

/// The largest page, file or diff in bytes: each is made in memory.
const MAX_BYTES: u64 = 1 << 30;

fn parse_count(text: &str) -> Result<usize, String> {
    at_most(text, MAX_COUNT)
}

fn parse_size(text: &str) -> Result<usize, String> {
    crate::util::units::parse_bytes(text).and_then(|bytes| at_most(&bytes.to_string(), MAX_BYTES))
}

fn at_most(text: &str, most: u64) -> Result<usize, String> {
    match text.parse::<u64>() {
        // The text comes from `parse`.
        Ok(number) if number <= most => usize::try_from(number).map_err(|e| e.to_string()),
        Ok(_) => Err(format!("more than {most}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Write a synthetic image for tests. Prints its id.
///
/// It has all parts of an image: files (the world), an agent's model and its cache, a ledger (a record of tool
/// calls), and a trace (the agent's messages). For the same numbers, the library
/// `pf-core` makes the same content.
#[derive(Debug, Args)]
pub(crate) struct FixtureArgs {
    /// Give the image a name
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Move the name if another image has it
    #[arg(long, alias = "force-tag", requires = "tag")]
    force: bool,
    /// Pages (pieces) of the model's cache, each with keys and values
    #[arg(long, value_name = "N", default_value = "32", value_parser = parse_count)]
    cache_pages: usize,
    /// Size of the keys (or values) of a page
    #[arg(long, value_name = "BYTES", default_value = "16384", value_parser = parse_size)]
    page_bytes: usize,
    /// Number of files
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_count)]
    world_files: usize,
    /// Size of a file
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = parse_size)]
    world_file_bytes: usize,
    /// Size of the model's change, before its encoding as text
    #[arg(long, value_name = "BYTES", default_value = "65536", value_parser = parse_size)]
    model_diff_bytes: usize,
    /// Entries of the ledger
    #[arg(long, value_name = "N", default_value = "16", value_parser = parse_count)]
    effects_entries: usize,
    /// Messages of the trace
    #[arg(long, value_name = "N", default_value = "16", value_parser = parse_count)]
    trace_messages: usize,
    /// Seed of the content: another seed gives other content
    #[arg(long, value_name = "N", env = SEED, default_value_t = 0)]
    seed: u64,
    /// Parent of this image; two parents make a merge
    #[arg(long = "parent", value_name = "IMAGE")]
    parents: Vec<String>,
    #[command(flatten)]
    sharing: SharingArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl FixtureArgs {
    fn spec(&self) -> FixtureSpec {
        FixtureSpec {
            cache_pages: self.cache_pages,
            page_bytes: self.page_bytes,
            world_files: self.world_files,
            world_file_bytes: self.world_file_bytes,
            model_diff_bytes: self.model_diff_bytes,
            effects_entries: self.effects_entries,
            trace_messages: self.trace_messages,
            seed: self.seed,
        }
    }
}

pub(crate) fn run(store: &StoreArg, args: &FixtureArgs) -> Result<ExitCode> {
    // All arguments are checked before anything is written, and names before the store is made.
    if let Some(tag) = &args.tag {
        check_new_tag(tag)?;
    }
    if args.parents.len() > MAX_PARENTS {
        let message = format!("an image has at most two parents, and --parent names {}", args.parents.len());
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_hint("merge two of the parents first, and name the merge"));
    }
    let store = args.sharing.open_or_create(&store.path()?)?;
    if let Some(tag) = &args.tag {
        store.tags().check_free(tag, args.force)?;
    }
    let parents =
        args.parents.iter().map(|parent| forks::image(&store, parent)).collect::<Result<Vec<_>>>()?;
    let layers = build(&args.spec(), &mut |bytes| store.blobs().put(bytes))?;
    let agent = agent(args.seed);
    let name = agent.fingerprint.clone();
    let id = store.put_manifest(&manifest(agent, &layers, parents))?;
    audit::tell(&store, "fixture", [note::checkpoint_taken(&name, &id)]);
    if let Some(tag) = &args.tag {
        store.tags().set(tag, &id, args.force)?;
        audit::tell(&store, "fixture", [note::tags_changed(&[tag], &[], Some(&id))]);
    }
    if args.json {
        print_json(&json!({"id": id, "tag": args.tag, "store": store.root().to_string_lossy()}))?;
    } else {
        print(&format!("{id}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the manifest of an image made now from these layers.
pub(crate) fn manifest(agent: Agent, layers: &FixtureLayers, parents: Vec<Digest>) -> Manifest {
    Manifest {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent,
        model: ModelRefs { base: layers.model_base, diff: layers.model_diff },
        cache: CacheRefs { layout: LAYOUT.into(), manifest: layers.cache_manifest },
        world: WorldRefs { fs: layers.world_fs, env: layers.world_env, procs: layers.world_procs },
        effects: EffectsRefs { ledger: layers.effects_ledger },
        trace: TraceRefs { messages: layers.trace_messages },
        created_at: Utc::now(),
        parents,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_would_not_fit_in_memory_are_refused() {
        assert_eq!(parse_size("16KiB"), Ok(16 << 10));
        assert_eq!(parse_count("0"), Ok(0));
        assert!(
            parse_size("2GiB").is_err() && parse_count("10000001").is_err() && parse_count("-1").is_err()
        );
    }
}
