//! Opens a store and hands out its parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::applies::Applies;
use super::atomic::write_durably;
use super::blob::Blobs;
use super::images::{Image, Images, MarkerError};
use super::io::{StoreIo, SystemIo};
use super::projects::Projects;
use super::tags::Tags;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::util::sharing::{Openness, Sharing, openness};

/// A store. Cheap to open; holds no descriptor and no cache.
pub struct Store {
    root: PathBuf,
    sharing: Sharing,
    io: Arc<dyn StoreIo>,
    blobs: Blobs,
    images: Images,
    tags: Tags,
    projects: Projects,
    applies: Applies,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens an existing store, writing nothing. Distinguishes a missing, an empty, and any other folder.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let shown = root.display();
        let not_a_store = |what: String| {
            Error::new(ErrorKind::NotAStore, what).with_path(root).with_hint(
                "run `pfimg import DIR` to make a store of a project, or `pfimg run NAME -- COMMAND` in the project; or name a store \
                 with --store or PF_STORE",
            )
        };
        let metadata = fs::metadata(root).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => not_a_store(format!("there is no store at {shown}")),
            _ => Error::io(e, format!("cannot open store {shown}")).with_path(root),
        })?;
        if !metadata.is_dir() {
            return Err(not_a_store(format!("{shown} is not a directory, so not a store")));
        }
        let mut entries =
            fs::read_dir(root).map_err(|e| Error::io(e, format!("cannot open store {shown}")))?;
        if !root.join("images").is_dir() && !root.join("blobs").join("sha256").is_dir() {
            return Err(not_a_store(if entries.next().is_none() {
                format!("{shown} is empty, not a store yet")
            } else {
                format!("{shown} is not a store: it has neither images/ nor blobs/sha256/")
            }));
        }
        // An absolute path, so that a daemon that changes its working folder still finds the store.
        let root = fs::canonicalize(root).map_err(|e| Error::io(e, format!("cannot open store {shown}")))?;
        Ok(Self::at(root, Arc::new(SystemIo)))
    }

    /// Opens a store and makes its folders first if they are missing: for its user alone, unless the store
    /// says otherwise.
    pub fn create(root: impl AsRef<Path>) -> Result<Self> {
        Self::create_shared(&root, Sharing::of(root.as_ref()))
    }

    /// Does the same for a store that is shared as given; the store records that.
    pub fn create_shared(root: impl AsRef<Path>, sharing: Sharing) -> Result<Self> {
        let root = root.as_ref();
        let failed = |path: &Path, e| Error::io(e, format!("cannot create {}", path.display()));
        sharing.create_dir_all(root).map_err(|e| failed(root, e))?;
        remember(&SystemIo, root, sharing)?;
        for folder in ["images", "blobs/sha256"] {
            let folder = root.join(folder);
            sharing.create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
        }
        Self::open(root)
    }

    /// Changes how an existing store is shared. Existing files keep their modes.
    pub fn share(self, sharing: Sharing) -> Result<Self> {
        remember(&*self.io, &self.root, sharing)?;
        Ok(Self::at(self.root, self.io))
    }

    /// How it is shared.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// What other users may do in it unintentionally, if anything.
    pub fn openness(&self) -> Option<Openness> {
        openness(&self.root, self.sharing)
    }

    fn at(root: PathBuf, io: Arc<dyn StoreIo>) -> Self {
        let sharing = Sharing::of(&root);
        let (blobs, tags) = (Blobs::new(&root, io.clone(), sharing), Tags::new(&root, io.clone(), sharing));
        let projects = Projects::new(&root, io.clone(), sharing);
        let applies = Applies::new(&root, io.clone(), sharing);
        Self { blobs, images: Images::new(&root), tags, projects, applies, io, sharing, root }
    }

    /// The calls that change it.
    pub(super) fn io(&self) -> &dyn StoreIo {
        &*self.io
    }

    /// The same store, changed through other calls.
    #[must_use]
    pub fn with_io(self, io: Arc<dyn StoreIo>) -> Self {
        Self::at(self.root, io)
    }

    /// Its folder, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Its images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Its tags.
    pub fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Its projects.
    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// What it applied to directories.
    pub fn applies(&self) -> &Applies {
        &self.applies
    }

    /// Reads an image's manifest.
    pub fn image(&self, id: &Digest) -> Result<Image, MarkerError> {
        self.images.get(&self.blobs, id)
    }

    /// Finds an image by `latest`, tag, `sha256:…` or a unique prefix of at least four digits.
    pub fn resolve(&self, text: &str) -> Result<Digest> {
        self.images.resolve(&self.blobs, &self.tags, text)
    }
}

/// Records in the store how it is shared.
fn remember(io: &dyn StoreIo, root: &Path, sharing: Sharing) -> Result<()> {
    if Sharing::of(root) == sharing {
        return Ok(());
    }
    let write = || {
        let (path, text) = sharing.settings(root)?;
        write_durably(io, sharing, &path, &text, false)
    };
    write().map_err(|e| Error::io(e, format!("cannot record in {} how the store is shared", root.display())))
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::super::manifest::tests::sample;
    use super::*;

    fn store_with(n: u32) -> (tempfile::TempDir, Store, Vec<Digest>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        store.blobs().put(b"x").unwrap();
        let ids = (0..n)
            .map(|i| {
                let mut manifest = sample();
                manifest.created_at += chrono::Duration::seconds(i64::from(i));
                store.put_manifest(&manifest).unwrap()
            })
            .collect();
        (dir, store, ids)
    }

    #[test]
    fn a_path_that_is_not_a_store_gives_an_error_that_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let says = |path: &Path| Store::open(path).unwrap_err().to_string();
        assert!(says(&dir.path().join("nowhere")).contains("there is no store at"));
        assert!(says(dir.path()).contains("is empty"));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(says(dir.path()).contains("is not a store"));
        assert!(says(&dir.path().join("file")).contains("is not a directory"));
    }

    #[test]
    fn the_real_pf_opens_our_images_and_we_open_its() {
        let (dir, store, ids) = store_with(2);
        let theirs = pf_core::store::PfStore::open(dir.path()).unwrap();
        assert_eq!(theirs.iter_manifests().unwrap().count(), 2);
        let cid = pf_core::digest::Digest256::parse(&ids[1].to_string()).unwrap();
        let mut manifest = theirs.get_manifest(&cid).unwrap();
        manifest.agent.version = "2".into();
        let new = theirs.put_manifest(&manifest).unwrap();
        let image = store.image(&new.as_str().parse().unwrap()).unwrap();
        assert_eq!(image.manifest.agent.version, "2");
        assert_eq!(Digest::of(&image.bytes), image.id);
    }

    #[test]
    fn an_image_is_found_by_latest_tag_digest_and_prefix() {
        let (_dir, store, ids) = store_with(3);
        store.tags().set("before", &ids[0], false).unwrap();
        assert_eq!(store.resolve("latest").unwrap(), ids[2]);
        assert_eq!(store.resolve("before").unwrap(), ids[0]);
        assert_eq!(store.resolve(&ids[1].to_string()).unwrap(), ids[1]);
        assert_eq!(store.resolve(&ids[1].hex()[..12]).unwrap(), ids[1]);
        for unknown in ["nothing", "ab", "0000", "sha256:zz", "../x", ""] {
            assert_eq!(store.resolve(unknown).unwrap_err().kind(), ErrorKind::NotFound, "{unknown}");
        }
    }

    #[test]
    fn a_damaged_marker_is_mended_from_its_blob_and_never_believed() {
        let (_dir, store, ids) = store_with(1);
        let marker = store.images().marker(&ids[0]);
        let good = fs::read(&marker).unwrap();
        fs::write(&marker, &good[..good.len() - 1]).unwrap();
        assert_eq!(store.image(&ids[0]).unwrap().bytes, good);
        fs::remove_file(store.blobs().path(&ids[0])).unwrap();
        assert!(matches!(store.image(&ids[0]), Err(MarkerError::Mismatch { .. })));
        fs::remove_file(&marker).unwrap();
        assert!(matches!(store.image(&ids[0]), Err(MarkerError::Absent(_))));
    }

    #[test]
    fn reading_writes_nothing() {
        let (dir, store, ids) = store_with(1);
        let missing = Digest::of(b"missing");
        let listing = || {
            let mut all: Vec<_> = walk(dir.path());
            all.sort();
            all
        };
        let before = listing();
        let store2 = Store::open(store.root()).unwrap();
        store2.image(&ids[0]).unwrap();
        assert!(store2.blobs().read(&missing, Size::AtMost(10)).is_err());
        assert!(!store2.blobs().contains(&missing));
        assert!(store2.resolve("nothing").is_err());
        assert_eq!(listing(), before);
    }

    fn walk(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir)
            .unwrap()
            .flat_map(|e| {
                let path = e.unwrap().path();
                if path.is_dir() { [vec![path.clone()], walk(&path)].concat() } else { vec![path] }
            })
            .collect()
    }
}
