//! The two images of the demo: an agent finds a bug and fixes it.

use chrono::{DateTime, Duration, Utc};

use crate::cli::fixture::manifest;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::FormatError;
use crate::layers::effects::{Entry as Effect, Header, Ledger, Record, Secret, SideEffectClass};
use crate::layers::env::{Env, EnvV1};
use crate::layers::trace::{Message, Trace};
use crate::layers::world::{Entry, FsTree, Kind};
use crate::ops::fixture::{FixtureSpec, build};
use crate::store::Store;
use crate::store::manifest::Agent;

/// Modules that both images share.
const MODULES: usize = 24;

const README: &str = "# greeter\n\nSays hello. Run `python3 src/greet.py NAME`.\n";
const BUGGY: &str =
    "import sys\n\n\ndef greet(name):\n    return \"Hello \" + name\n\n\nprint(greet(sys.argv[1]))\n";
const FIXED: &str = "import sys\n\n\ndef greet(name=\"world\"):\n    return f\"Hello, {name}!\"\n\n\nprint(greet(*sys.argv[1:2]))\n";
const SCRATCH: &str = "# TODO: why does it crash without an argument?\n";
const NOTES: &str = "greet.py crashed without an argument. It greets the world now.\n";

/// The tool calls of the agent: tool, arguments, result, class.
const EFFECTS: [(&str, &str, &str, SideEffectClass); 4] = [
    ("read_file", "src/greet.py", "ok", SideEffectClass::Pure),
    ("write_file", "src/greet.py", "ok", SideEffectClass::Idempotent),
    ("web_search", "python default argument", "3 hits", SideEffectClass::NetworkOnly),
    ("send_mail", "fixed: greet.py", "queued", SideEffectClass::Irreversible),
];

/// The conversation: role, content.
const TRACE: [(&str, &str); 4] = [
    ("user", "greet.py crashes without an argument. Please fix it."),
    ("assistant", "I'll look at src/greet.py."),
    ("tool", "IndexError: list index out of range"),
    ("assistant", "Fixed: without an argument it greets the world."),
];

/// The time between the two images.
const BETWEEN: Duration = Duration::minutes(5);

/// The ids of the two images.
pub(super) struct Images {
    pub(super) before: Digest,
    pub(super) after: Digest,
}

/// Writes both images and tags them.
pub(super) fn fill(store: &Store) -> Result<Images> {
    let now = Utc::now();
    // A demonstration's secret: no program relies on this ledger.
    let secret = Secret::new(Digest::of(format!("{now:?} {}", std::process::id()).as_bytes()).hex());
    let before = image(store, &secret, now - BETWEEN, Step::Before, Vec::new())?;
    let after = image(store, &secret, now, Step::After, vec![before])?;
    store.tags().set("before", &before, true)?;
    store.tags().set("after", &after, true)?;
    Ok(Images { before, after })
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Before,
    After,
}

fn image(
    store: &Store,
    secret: &Secret,
    at: DateTime<Utc>,
    step: Step,
    parents: Vec<Digest>,
) -> Result<Digest> {
    // The first effect came just before the first image.
    let begin = if step == Step::Before { at } else { at - BETWEEN } - Duration::seconds(1);
    let put = |bytes: &[u8]| store.blobs().put(bytes);
    // Another seed makes another cache: the agent continued to think between the images.
    let seed = u64::from(step == Step::After);
    let spec = FixtureSpec {
        cache_pages: 4,
        world_files: 0,
        model_diff_bytes: 256,
        effects_entries: 0,
        trace_messages: 0,
        seed,
        ..FixtureSpec::default()
    };
    let mut layers = build(&spec, &mut |bytes| put(bytes))?;
    layers.world_fs = world(store, step)?;
    let vars = [("LANG", "C.UTF-8"), ("API_TOKEN", "<redacted>")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let env = EnvV1 { cwd: "/work/greeter".into(), vars: vars.into(), ..EnvV1::default() };
    layers.world_env = put(&Env::V1(env).to_bytes())?;
    let done = if step == Step::Before { 1 } else { EFFECTS.len() };
    layers.effects_ledger = put(&ledger(secret, begin, done)?.to_bytes())?;
    let mut trace = Trace::default();
    for (role, content) in TRACE.iter().take(if step == Step::Before { 2 } else { TRACE.len() }) {
        let message =
            Message { content: (*content).into(), role: (*role).into(), extra: serde_json::Map::default() };
        trace.push(message);
    }
    layers.trace_messages = put(&trace.to_bytes())?;
    let agent = Agent { kind: "demo-agent".into(), version: "1".into(), fingerprint: "demo".into() };
    let mut manifest = manifest(agent, &layers, parents);
    manifest.created_at = at;
    store.put_manifest(&manifest)
}

fn world(store: &Store, step: Step) -> Result<Digest> {
    let mut files = vec![("README.md".to_owned(), README.to_owned(), 0o644)];
    for number in 1..=MODULES {
        let text = format!("\"\"\"Language no. {number}.\"\"\"\n\nHELLO = \"hello {number}\"\n");
        files.push((format!("src/languages/language_{number:02}.py"), text, 0o644));
    }
    match step {
        Step::Before => {
            files.push(("src/greet.py".into(), BUGGY.into(), 0o755));
            files.push(("src/scratch.py".into(), SCRATCH.into(), 0o644));
        }
        Step::After => {
            files.push(("src/greet.py".into(), FIXED.into(), 0o755));
            files.push(("NOTES.md".into(), NOTES.into(), 0o644));
        }
    }
    let mut entries: Vec<Entry<'static>> =
        ["src", "src/languages"].map(|dir| Entry::new(dir, Kind::Dir, 0o755)).into();
    for (path, text, mode) in files {
        let mut entry = Entry::new(path, Kind::File, mode);
        entry.size = text.len() as u64;
        entry.blob = Some(store.blobs().put(text.as_bytes())?);
        entries.push(entry);
    }
    let target = "README.md";
    let mut link = Entry::new("ABOUT", Kind::Symlink, 0o777);
    link.size = target.len() as u64;
    link.blob = Some(store.blobs().put(target.as_bytes())?);
    link.link_target = Some(target.into());
    entries.push(link);
    entries.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    store.blobs().put(&FsTree { entries, ..FsTree::default() }.to_bytes().map_err(unwritable)?)
}

/// The second image's ledger continues the first one's, so entries in both have the same time.
fn ledger(secret: &Secret, begin: DateTime<Utc>, effects: usize) -> Result<Ledger> {
    let header = Header {
        session_secret_hex: Some(secret.clone()),
        verification_mode: Some("tamper-detection".into()),
        ..Header::default()
    };
    let entries = EFFECTS.iter().take(effects).enumerate().map(|(number, (tool, args, result, class))| {
        Effect::new(Record {
            timestamp: begin + Duration::minutes(number as i64),
            tool_id: (*tool).into(),
            args_hash: Digest::of(args.as_bytes()).to_string(),
            idempotency_key: format!("demo-{number}"),
            result_hash: Digest::of(result.as_bytes()).to_string(),
            side_effect_class: *class,
            session_hmac: String::new(),
            extra: serde_json::Map::default(),
        })
    });
    let mut ledger = Ledger { header, entries: entries.collect() };
    ledger.chain(secret).map_err(unwritable)?;
    Ok(ledger)
}

fn unwritable(error: FormatError) -> Error {
    Error::new(ErrorKind::InvalidInput, "cannot write the demo's images").with_source(error)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::ops::verify::{Options, verify};

    #[test]
    fn the_images_of_the_demo_are_sound_related_and_chained() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let images = fill(&store).unwrap();
        assert_eq!(store.resolve("latest").unwrap(), images.after);
        assert_eq!(store.resolve("before").unwrap(), images.before);
        assert_eq!(store.image(&images.after).unwrap().manifest.parents, [images.before]);
        let options = Options { images: None, jobs: NonZeroUsize::MIN, secret: None };
        let report = verify(&store, &options, &()).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.images, report.ledgers.verified), (2, 2));
    }
}
