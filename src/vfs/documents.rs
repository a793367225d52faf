//! The documents by which the daemon describes itself.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, json};

use super::advice::Advice;
use super::attempt::{Attempt, OnDisk};
use super::audit_trail::AuditTrail;
use super::catalog::Catalog;
use super::damage::Damage;
use super::fork_table::ForkTable;
use super::metrics::{Metrics, Op};
use super::nodes::Nodes;
use super::readahead::Readahead;
use crate::audit::Packs;
use crate::cache::Cache;
use crate::control::MountInfo;
use crate::images::ImageReader;
use crate::store::Home;
use crate::sync::wait::MayWait;

/// Everything that a document tells of.
pub(super) struct Documents {
    pub(super) info: MountInfo,
    pub(super) store: OnDisk,
    pub(super) home: Arc<Home>,
    pub(super) cache: Arc<Cache>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) images: Arc<ImageReader>,
    pub(super) readahead: Arc<Readahead>,
    pub(super) damage: Arc<Damage>,
    pub(super) table: Arc<ForkTable>,
    pub(super) advice: Arc<Advice>,
    pub(super) audit: Arc<AuditTrail>,
    pub(super) metrics: Arc<Metrics>,
}

#[allow(clippy::unnecessary_wraps, reason = "all rows of the table in `control` have one type")]
impl Documents {
    /// `audit.json`: the summary of the audit log.
    pub(super) fn audit(&self, wait: MayWait) -> Attempt<Vec<u8>> {
        self.audit.note_cache(&self.cache);
        self.audit.summary(wait)
    }

    /// `events.jsonl`: the newest events. The log may be long, and another program may be appending to it.
    pub(super) fn events(&self, wait: MayWait) -> Attempt<Vec<u8>> {
        self.audit.note_cache(&self.cache);
        Ok(self.audit.newest_events(wait, self.store.at(wait)))
    }

    /// `metrics`: Prometheus text format, version 0.0.4.
    pub(super) fn metrics(&self, _: MayWait) -> Attempt<Vec<u8>> {
        Ok(self.metrics_text().into_bytes())
    }

    /// `status.json`: the settings and counters of the mount.
    pub(super) fn status(&self, _: MayWait) -> Attempt<Vec<u8>> {
        Ok(self.status_text().into_bytes())
    }

    fn status_text(&self) -> String {
        let info = &self.info;
        let stats = self.cache.stats();
        let [missing, damaged] = self.damage.counts();
        let requests: Map<_, _> = Op::ALL
            .iter()
            .filter(|op| self.metrics.requests(**op) > 0)
            .map(|op| (op.name().to_owned(), self.metrics.requests(*op).into()))
            .collect();
        let mut status = json!(info);
        status["images"] = json!(self.catalog.ids().map_or(0, |ids| ids.len()));
        status["writes_forks"] = json!(self.table.would_write());
        status["cache_problem"] = json!(self.cache.trouble());
        status["moved_to"] = json!(self.home.moved_to());
        status["refused"] = json!(self.advice.last());
        // A folder that cannot be listed must not hide everything else.
        status["crash_packs"] = json!(Packs::of(self.store.root()).unwrap_or_default());
        status["counters"] = json!({
            "requests": requests,
            "inodes": self.nodes.len(),
            "blob_fills": stats.fills,
            "blob_fill_bytes": stats.fill_bytes,
            "blobs_from_packs": stats.from_packs,
            "blobs_asked_ahead": self.readahead.asked(),
            "cache_hits": stats.hits,
            "cache_evictions": stats.evictions,
            "cache_heap_bytes": stats.heap_bytes,
            "cache_mapped_bytes": stats.mapped_bytes,
            "tree_bytes": self.images.tree_bytes(),
            "missing": missing,
            "damaged": damaged,
            "violations": self.audit.log().violations(),
        });
        format!("{status:#}\n")
    }

    fn metrics_text(&self) -> String {
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
        family("pfimg_inodes", "gauge", "Inodes the kernel knows.", &plain(self.nodes.len() as u64));
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
            &plain(self.readahead.asked()),
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
        family("pfimg_tree_bytes", "gauge", "Bytes of parsed file trees.", &plain(self.images.tree_bytes()));
        family(
            "pfimg_times_trees_total",
            "counter",
            "Trees that were read to derive times.",
            &plain(self.images.times().trees_read()),
        );
        let [missing, damaged] = self.damage.counts();
        let events = [("missing", missing), ("damaged", damaged)]
            .map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), count));
        family("pfimg_events_total", "counter", "Reads that failed, by reason.", &events);
        family(
            "pfimg_violations_total",
            "counter",
            "Violations that oracles found in this mount.",
            &plain(self.audit.log().violations()),
        );
        let packs = Packs::of(self.store.root()).unwrap_or_default().count;
        family("pfimg_crash_packs", "gauge", "Crash packs of the store.", &plain(packs));
        out
    }
}
