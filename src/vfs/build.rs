//! Puts the parts of a mounted store together.

use std::sync::Arc;

use super::advice::Advice;
use super::announcements::Announcements;
use super::announcer::Announcer;
use super::attempt::OnDisk;
use super::audit_trail::AuditTrail;
use super::autoseal::AutoSeal;
use super::cached_writes::CachedWrites;
use super::catalog::Catalog;
use super::config::VfsConfig;
use super::control::ControlDir;
use super::damage::Damage;
use super::dispatch::Vfs;
use super::documents::Documents;
use super::fork_files::ForkFiles;
use super::fork_table::ForkTable;
use super::forks_dir::ForksDir;
use super::image_dirs::ImageDirs;
use super::image_links::ImageLinks;
use super::malloc::MallocTrimmer;
use super::metrics::Metrics;
use super::nodes::Nodes;
use super::readahead::Readahead;
use super::root::RootDir;
use super::seals::Seals;
use super::snap::SnapDir;
use super::tags::TagDir;
use crate::audit::Log;
use crate::cache::Cache;
use crate::control::MountInfo;
use crate::fork;
use crate::images::ImageReader;
use crate::ops::seal::Sealer;
use crate::store::{Home, Store};

/// Makes the filesystem of a store. Does not read the store.
#[allow(clippy::too_many_lines, reason = "it is a list of parts")]
pub(super) fn build(
    store: Arc<Store>,
    cache: Arc<Cache>,
    config: VfsConfig,
    info: MountInfo,
    log: Log,
) -> Vfs {
    let home = Arc::new(Home::new(store.root()));
    let on_disk = OnDisk::new(Arc::clone(&store));
    let metrics = Arc::new(Metrics::new());
    let audit = Arc::new(AuditTrail::new(&store, log.clone()));
    let advice = Arc::new(Advice::default());
    let nodes = Arc::new(Nodes::new(&config, info.started_ns()));
    let catalog = Arc::new(Catalog::new(Arc::clone(&store), Arc::clone(&home)));
    let damage = Arc::new(Damage::new(Arc::clone(&home)));
    let readahead = Arc::new(Readahead::new(Arc::clone(&cache)));
    let cached_writes = Arc::new(CachedWrites::new(Arc::clone(&metrics)));
    let announcements = Arc::new(Announcements::default());
    let images = Arc::new(ImageReader::new(
        Arc::clone(&store),
        Arc::clone(&cache),
        config.tree_bytes,
        config.reveal_secrets,
    ));
    let links = Arc::new(ImageLinks::new(Arc::clone(&nodes), Arc::clone(&images), on_disk.clone()));
    let owners = if config.mine { fork::Owners::mine } else { fork::Owners::kept };
    let owners = owners(config.uid, config.gid);
    let table = Arc::new(ForkTable::new(
        Arc::clone(&nodes),
        on_disk.clone(),
        Arc::clone(&home),
        Arc::clone(&audit),
        images.clone(),
        owners.clone(),
        &config,
    ));
    let files = Arc::new(ForkFiles {
        nodes: Arc::clone(&nodes),
        table: Arc::clone(&table),
        images: Arc::clone(&images),
        readahead: Arc::clone(&readahead),
        cached_writes: Arc::clone(&cached_writes),
        home: Arc::clone(&home),
    });
    let mut sealer = Sealer::new(store, images.clone(), config.session_secret.clone()).with_log(log.clone());
    sealer.push_before({
        let cached_writes = Arc::clone(&cached_writes);
        move |fork| cached_writes.push(fork)
    });
    let seals = Arc::new(Seals {
        sealer,
        nodes: Arc::clone(&nodes),
        table: Arc::clone(&table),
        catalog: Arc::clone(&catalog),
        store: on_disk.clone(),
        home: Arc::clone(&home),
    });
    let mountpoint = info.mountpoint.clone();
    let documents = Documents {
        info,
        store: on_disk.clone(),
        home: Arc::clone(&home),
        cache: Arc::clone(&cache),
        nodes: Arc::clone(&nodes),
        catalog: Arc::clone(&catalog),
        images: Arc::clone(&images),
        readahead: Arc::clone(&readahead),
        damage: Arc::clone(&damage),
        table: Arc::clone(&table),
        advice: Arc::clone(&advice),
        audit: Arc::clone(&audit),
        metrics: Arc::clone(&metrics),
    };
    Vfs {
        root: RootDir::new(
            Arc::clone(&nodes),
            Arc::clone(&catalog),
            Arc::clone(&links),
            Arc::clone(&images),
            Arc::clone(&home),
            on_disk.clone(),
        ),
        tags: TagDir {
            links: Arc::clone(&links),
            announcements: Arc::clone(&announcements),
            store: on_disk.clone(),
            home: Arc::clone(&home),
            log: log.clone(),
            mountpoint,
            read_only: config.read_only,
            narrow: nodes.is_narrow(),
        },
        images: ImageDirs {
            nodes: Arc::clone(&nodes),
            images,
            links: Arc::clone(&links),
            cache: Arc::clone(&cache),
            readahead,
            damage,
            store: on_disk.clone(),
            owners,
            xattrs: config.xattrs,
        },
        forks: ForksDir {
            nodes: Arc::clone(&nodes),
            table: Arc::clone(&table),
            files: Arc::clone(&files),
            cached_writes: Arc::clone(&cached_writes),
            announcements: Arc::clone(&announcements),
            store: on_disk.clone(),
            home: Arc::clone(&home),
            log,
        },
        snap: SnapDir { nodes: Arc::clone(&nodes), seals: Arc::clone(&seals), links, store: on_disk.clone() },
        control: ControlDir::new(Arc::clone(&nodes), documents),
        announcer: Announcer::new(Arc::clone(&nodes), Arc::clone(&files), Arc::clone(&announcements)),
        auto_seal: Arc::new(AutoSeal::new(
            config.seal,
            Arc::clone(&seals),
            Arc::clone(&table),
            Arc::clone(&cached_writes),
        )),
        seals,
        trimmer: MallocTrimmer::default(),
        store: on_disk,
        home,
        cache,
        config,
        metrics,
        audit,
        advice,
        nodes,
        catalog,
        table,
        files,
        cached_writes,
        announcements,
    }
}
