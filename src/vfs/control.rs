//! `.pfimg/`: what the daemon says of itself. Each reading gets a new version under a new inode, so that neither the
//! kernel's cached pages nor its cached size can be outdated. Who looks first and opens then, as `cp` does, gets the version
//! that was seen.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, json};

use super::attempt::may_wait;
use super::inode::Node;
use super::{Attempt, Entry, Numbering, Op, Vfs};
use crate::audit::Packs;
use crate::error::ErrorKind;
use crate::sync::Mutex;
use crate::sync::wait::MayWait;

/// Names in `.pfimg/`.
pub(super) const DOCS: [&str; 4] = ["audit.json", "events.jsonl", "metrics", "status.json"];

/// The facts that a mount shows about itself. In JSON, bytes of a path that are not UTF-8 become U+FFFD.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountInfo {
    /// Process id of the daemon.
    pub pid: u32,
    /// Version of this program.
    pub version: String,
    /// The store's folder.
    #[serde(serialize_with = "lossy")]
    pub store: PathBuf,
    /// Where it is mounted.
    #[serde(serialize_with = "lossy")]
    pub mountpoint: PathBuf,
    /// Where decompressed blobs are kept.
    #[serde(serialize_with = "lossy")]
    pub cache_dir: PathBuf,
    /// The log file; `None` if the log goes to the terminal.
    #[serde(serialize_with = "lossy_option")]
    pub log: Option<PathBuf>,
    /// Since when, in RFC 3339.
    pub started_at: chrono::DateTime<chrono::Utc>,
    /// [`Secret::fingerprint`] of the secret that chains ledgers at a seal; `None` if each ledger has its own.
    ///
    /// [`Secret::fingerprint`]: crate::layers::effects::Secret::fingerprint
    #[serde(default)]
    pub session_secret: Option<String>,
    /// How inodes are numbered.
    #[serde(default)]
    pub inodes: Numbering,
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[allow(clippy::ref_option)]
fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// How long an unread version stands for its name.
const UNREAD: Duration = Duration::from_millis(100);

/// The newest unread versions, by name.
#[derive(Default)]
pub(super) struct Unread(Mutex<HashMap<String, (Instant, Node)>>);

impl Unread {
    /// Returns the unread version of a name, if it is new enough.
    fn of(&self, name: &str) -> Option<Node> {
        let mut all = self.0.lock();
        all.retain(|_, (made, _)| made.elapsed() < UNREAD);
        all.get(name).map(|(_, node)| node.clone())
    }

    fn add(&self, name: &str, node: &Node) {
        self.0.lock().insert(name.to_owned(), (Instant::now(), node.clone()));
    }

    /// Marks a version as read: its name then stands for a new version.
    pub(super) fn read(&self, version: u64) {
        self.0.lock().retain(|_, (_, node)| !matches!(node, Node::Doc { key, .. } if *key == version));
    }
}

impl MountInfo {
    pub(super) fn started_ns(&self) -> i64 {
        self.started_at.timestamp_nanos_opt().unwrap_or(0)
    }
}

impl Vfs {
    pub(super) fn lookup_control(&self, name: &str) -> Attempt<Entry> {
        static VERSION: AtomicU64 = AtomicU64::new(1);
        if let Some(node) = self.unread.of(name) {
            return self.entry_with(node, Duration::ZERO);
        }
        let bytes = match name {
            "audit.json" => self.audit_doc()?,
            // The log may be long, and another program may be appending to it.
            "events.jsonl" => self.events_doc(may_wait()?),
            "metrics" => self.metrics_text(may_wait()?).into_bytes(),
            "status.json" => self.status(may_wait()?).into_bytes(),
            _ => {
                let number = name.strip_prefix("done-").and_then(|name| name.strip_suffix(".json"));
                number.and_then(|number| self.outcome(number)).ok_or(ErrorKind::NotFound)?.to_vec()
            }
        };
        let mtime_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let key = VERSION.fetch_add(1, Ordering::Relaxed);
        let node = Node::Doc { bytes: bytes.into(), mtime_ns, key };
        self.unread.add(name, &node);
        self.entry_with(node, Duration::ZERO)
    }

    fn status(&self, _: MayWait) -> String {
        let info = self.info.lock().clone();
        let stats = self.cache.stats();
        let requests: Map<_, _> = Op::ALL
            .iter()
            .filter(|op| self.metrics.requests(**op) > 0)
            .map(|op| (op.name().to_owned(), self.metrics.requests(*op).into()))
            .collect();
        let mut status = json!(info);
        status["images"] = json!(self.catalog.ids().map_or(0, |ids| ids.len()));
        status["writes_forks"] = json!(self.writes_forks());
        status["cache_problem"] = json!(self.cache.trouble());
        status["moved_to"] = json!(self.catalog.home.moved_to());
        status["refused"] = json!(self.advice.last());
        // A folder that cannot be listed must not hide everything else.
        status["crash_packs"] = json!(Packs::of(self.store.root()).unwrap_or_default());
        status["counters"] = json!({
            "requests": requests,
            "inodes": self.inodes.len(),
            "blob_fills": stats.fills,
            "blob_fill_bytes": stats.fill_bytes,
            "blobs_from_packs": stats.from_packs,
            "blobs_asked_ahead": self.ahead.asked(),
            "cache_hits": stats.hits,
            "cache_evictions": stats.evictions,
            "cache_heap_bytes": stats.heap_bytes,
            "cache_mapped_bytes": stats.mapped_bytes,
            "tree_bytes": self.trees.bytes(),
            "missing": self.metrics.missing.load(Ordering::Relaxed),
            "damaged": self.metrics.damaged.load(Ordering::Relaxed),
            "violations": self.log().violations(),
        });
        format!("{status:#}\n")
    }

    /// Prometheus text format, version 0.0.4.
    fn metrics_text(&self, _: MayWait) -> String {
        let stats = self.cache.stats();
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let plain = |value: u64| [(String::new(), value)];
        let requests: Vec<_> = Op::ALL
            .iter()
            .map(|op| (format!("{{op=\"{}\"}}", op.name()), self.metrics.requests(*op)))
            .collect();
        family("pfimg_fuse_requests_total", "counter", "Requests of the kernel by kind.", &requests);
        family("pfimg_inodes", "gauge", "Inodes the kernel knows.", &plain(self.inodes.len() as u64));
        family("pfimg_blob_fills_total", "counter", "Blobs put into the cache.", &plain(stats.fills));
        family("pfimg_blob_fill_bytes_total", "counter", "Bytes of those.", &plain(stats.fill_bytes));
        family(
            "pfimg_blobs_from_packs_total",
            "counter",
            "Blobs taken from packs that were read before.",
            &plain(stats.from_packs),
        );
        family(
            "pfimg_blobs_asked_ahead_total",
            "counter",
            "Blobs filled ahead of their readers.",
            &plain(self.ahead.asked()),
        );
        family("pfimg_cache_hits_total", "counter", "Blobs found in the cache.", &plain(stats.hits));
        family(
            "pfimg_cache_evictions_total",
            "counter",
            "Blobs dropped from the cache.",
            &plain(stats.evictions),
        );
        family(
            "pfimg_cache_heap_bytes",
            "gauge",
            "Bytes of small blobs on the heap.",
            &plain(stats.heap_bytes),
        );
        family(
            "pfimg_cache_mapped_bytes",
            "gauge",
            "Bytes of large blobs in files.",
            &plain(stats.mapped_bytes),
        );
        family("pfimg_tree_bytes", "gauge", "Bytes of parsed file trees.", &plain(self.trees.bytes()));
        family(
            "pfimg_times_trees_total",
            "counter",
            "Trees that were read to derive times.",
            &plain(self.reader.times().trees_read()),
        );
        let events = [("missing", &self.metrics.missing), ("damaged", &self.metrics.damaged)]
            .map(|(kind, counter)| (format!("{{kind=\"{kind}\"}}"), counter.load(Ordering::Relaxed)));
        family("pfimg_events_total", "counter", "Reads that failed, by reason.", &events);
        family(
            "pfimg_violations_total",
            "counter",
            "Violations that oracles found in this mount.",
            &plain(self.log().violations()),
        );
        let packs = Packs::of(self.store.root()).unwrap_or_default().count;
        family("pfimg_crash_packs", "gauge", "Crash packs of the store.", &plain(packs));
        out
    }
}
