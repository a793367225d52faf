//! Copies a tag: a plan that copies no byte, and the code that carries it out.
//!
//! A blob is stored once under its digest, so a "hard link" of it is the blob itself, where it is. The only
//! new part of a copy is one small file that names the image.

use super::handle::Store;
use super::tags::refuse_new_tag;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// A tag and the blobs it leads to, as far as a plan needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestView {
    /// The tag.
    pub tag: String,
    /// Digests of the blobs that the manifest names, in its order.
    pub blob_shas: Vec<String>,
}

/// One step of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyOp {
    /// The blob is used at its place.
    HardLink {
        /// Its digest.
        sha: String,
    },
    /// The new tag is written.
    WriteManifest {
        /// The tag.
        tag: String,
    },
}

/// What a copy will do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// The state afterwards.
    pub dst: ManifestView,
    /// The steps: every blob in the manifest's order, then the tag.
    pub ops: Vec<CopyOp>,
}

impl CopyPlan {
    /// The number of blobs that are used at their place.
    pub fn hard_links(&self) -> usize {
        self.ops.iter().filter(|op| matches!(op, CopyOp::HardLink { .. })).count()
    }

    /// The number of tags that are written.
    pub fn manifest_writes(&self) -> usize {
        self.ops.iter().filter(|op| matches!(op, CopyOp::WriteManifest { .. })).count()
    }

    /// Whether no step writes a blob's bytes.
    pub fn copies_no_bytes(&self) -> bool {
        self.hard_links() + self.manifest_writes() == self.ops.len()
    }
}

/// Why a copy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// There is no image or tag of that name.
    #[error("there is no image {0:?} to copy")]
    SourceNotFound(String),
    /// There is a tag of that name.
    #[error("there is a tag {0:?} already")]
    DestinationExists(String),
    /// Text that no tag can have as its name.
    #[error("{0:?} cannot be a tag: {1}")]
    InvalidTag(String, &'static str),
    /// A manifest that names no blob.
    #[error("the manifest of {0:?} names no blob: there is nothing to copy")]
    EmptyManifest(String),
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        let message = error.to_string();
        match error {
            CopyError::SourceNotFound(_) => Self::new(ErrorKind::NotFound, message)
                .with_hint("list them with `pfimg tags` and `pfimg images`"),
            CopyError::DestinationExists(_) => Self::new(ErrorKind::AlreadyExists, message)
                .with_hint("remove it with `pfimg untag`, or move it with `pfimg tag --force`"),
            CopyError::InvalidTag(..) => Self::new(ErrorKind::InvalidInput, message),
            CopyError::EmptyManifest(_) => Self::new(ErrorKind::Damaged, message),
        }
    }
}

/// Says why no image can have the name `name`, not even as an id.
fn refuse_source(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.contains(['/', '\\', '\0']) {
        Some("it contains a path separator or NUL")
    } else {
        None
    }
}

/// Checks the two names of a copy, the source's first. Does not read a store.
pub fn check_names(src: &str, dst: &str) -> Result<(), CopyError> {
    let refuse = |name: &str, why: Option<&'static str>| match why {
        Some(why) => Err(CopyError::InvalidTag(name.to_owned(), why)),
        None => Ok(()),
    };
    refuse(src, refuse_source(src))?;
    refuse(dst, refuse_new_tag(dst))
}

/// Plans to copy `src` to `dst`, given all images and tags. Reads nothing else and changes nothing.
pub fn plan_copy(registry: &[ManifestView], src: &str, dst: &str) -> Result<CopyPlan, CopyError> {
    check_names(src, dst)?;
    let find = |tag: &str| registry.iter().find(|view| view.tag == tag);
    let source = find(src).ok_or_else(|| CopyError::SourceNotFound(src.to_owned()))?;
    if find(dst).is_some() {
        return Err(CopyError::DestinationExists(dst.to_owned()));
    }
    if source.blob_shas.is_empty() {
        return Err(CopyError::EmptyManifest(src.to_owned()));
    }
    let links = source.blob_shas.iter().map(|sha| CopyOp::HardLink { sha: sha.clone() });
    let write = CopyOp::WriteManifest { tag: dst.to_owned() };
    Ok(CopyPlan {
        dst: ManifestView { tag: dst.to_owned(), blob_shas: source.blob_shas.clone() },
        ops: links.chain([write]).collect(),
    })
}

impl Store {
    /// Gives the image that `src` names (a tag, a prefix, `sha256:…` or `latest`) another tag, without a byte
    /// of content. Refuses an image that lacks a blob of its manifest. Returns the image and the plan.
    pub fn copy_tag(&self, src: &str, dst: &str) -> Result<(Digest, CopyPlan)> {
        // Before the store is read: a damaged source must not hide an invalid name.
        check_names(src, dst)?;
        let tags = self.tags().names()?;
        let mut registry: Vec<ManifestView> =
            tags.into_iter().map(|tag| ManifestView { tag, blob_shas: Vec::new() }).collect();
        let id = match self.resolve(src) {
            Ok(id) => {
                let blobs = self.image(&id)?.manifest.blobs();
                let view = ManifestView {
                    tag: src.to_owned(),
                    blob_shas: blobs.iter().map(|(_, digest)| digest.hex()).collect(),
                };
                registry.retain(|known| known.tag != src);
                registry.push(view);
                Some(id)
            }
            // A name that leads nowhere has its own error; any other failure is returned unchanged.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(error) if registry.iter().any(|known| known.tag == src) => return Err(error),
            Err(_) => None,
        };
        let plan = plan_copy(&registry, src, dst)?;
        let id = id.ok_or_else(|| CopyError::SourceNotFound(src.to_owned()))?;
        for op in &plan.ops {
            match op {
                CopyOp::HardLink { sha } => {
                    let there = Digest::from_hex(sha).is_ok_and(|digest| self.blobs().contains(&digest));
                    if !there {
                        let what = format!("image {id}, which {src:?} names, lacks blob sha256:{sha}");
                        return Err(Error::new(ErrorKind::Missing, what)
                            .with_hint("run `pfimg verify` to list everything that is missing"));
                    }
                }
                // The name may have been taken since the check.
                CopyOp::WriteManifest { tag } => self.tags().set(tag, &id, false)?,
            }
        }
        Ok((id, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::sample;

    fn registry() -> Vec<ManifestView> {
        let view = |tag: &str, blobs: &[&str]| ManifestView {
            tag: tag.to_owned(),
            blob_shas: blobs.iter().map(|blob| blob.repeat(64)).collect(),
        };
        vec![view("agent:green", &["a", "b", "c"]), view("other:latest", &["d"]), view("hollow:x", &[])]
    }

    fn plan(src: &str, dst: &str) -> CopyPlan {
        plan_copy(&registry(), src, dst).unwrap()
    }

    fn refusal(src: &str, dst: &str) -> CopyError {
        plan_copy(&registry(), src, dst).unwrap_err()
    }

    #[test]
    fn a_copy_names_the_same_blobs_under_another_tag() {
        let plan = plan("agent:green", "agent:mine");
        assert_eq!(plan.dst, ManifestView { tag: "agent:mine".into(), ..registry()[0].clone() });
    }

    #[test]
    fn a_plan_links_every_blob_and_writes_one_tag_and_no_blob() {
        let plan = plan("agent:green", "agent:mine");
        assert!(plan.copies_no_bytes());
        assert_eq!((plan.hard_links(), plan.manifest_writes()), (3, 1));
    }

    #[test]
    fn each_blob_of_a_copy_is_that_of_its_source_pair_by_pair() {
        let plan = plan("agent:green", "agent:mine");
        for (source, copy) in registry()[0].blob_shas.iter().zip(&plan.dst.blob_shas) {
            assert_eq!(source, copy);
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        assert_eq!(refusal("nothing:latest", "x:y"), CopyError::SourceNotFound("nothing:latest".into()));
    }

    #[test]
    fn a_tag_that_is_taken_is_not_written_over() {
        assert_eq!(
            refusal("agent:green", "other:latest"),
            CopyError::DestinationExists("other:latest".into())
        );
    }

    /// Of two faults at once the first in the planner's order is reported: the names, the source, the
    /// destination, the blobs.
    #[test]
    fn the_first_of_two_faults_in_the_planners_order_is_reported() {
        for (src, dst, named) in [
            ("../x", "../y", "../x"),
            ("nothing", "../y", "../y"),
            ("hollow:x", "../y", "../y"),
            ("../x", "other:latest", "../x"),
        ] {
            let CopyError::InvalidTag(name, _) = refusal(src, dst) else { panic!("{src} {dst}") };
            assert_eq!(name, named);
        }
        assert_eq!(refusal("nothing", "other:latest"), CopyError::SourceNotFound("nothing".into()));
        assert_eq!(refusal("hollow:x", "other:latest"), CopyError::DestinationExists("other:latest".into()));
        assert_eq!(refusal("hollow:x", "hollow:x"), CopyError::DestinationExists("hollow:x".into()));
    }

    #[test]
    fn each_refusal_has_its_kind_and_its_words() {
        for (error, kind, words) in [
            (refusal("nothing", "x"), ErrorKind::NotFound, "there is no image \"nothing\" to copy"),
            (
                refusal("agent:green", "other:latest"),
                ErrorKind::AlreadyExists,
                "there is a tag \"other:latest\" already",
            ),
            (refusal("agent:green", ""), ErrorKind::InvalidInput, "\"\" cannot be a tag: it is empty"),
            (refusal("hollow:x", "x"), ErrorKind::Damaged, "the manifest of \"hollow:x\" names no blob"),
        ] {
            let error = Error::from(error);
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn an_empty_source_is_refused() {
        assert!(matches!(refusal("", "x:y"), CopyError::InvalidTag(..)));
    }

    #[test]
    fn an_empty_destination_is_refused() {
        assert!(matches!(refusal("agent:green", ""), CopyError::InvalidTag(..)));
    }

    #[test]
    fn a_path_is_refused_as_a_name_with_either_separator() {
        for (src, dst) in
            [("agent:green", "../evil"), ("agent:green", r"a\b"), ("../evil", "x"), (r"a\b", "x")]
        {
            assert!(matches!(refusal(src, dst), CopyError::InvalidTag(..)), "{src} {dst}");
        }
    }

    #[test]
    fn a_name_with_nul_is_refused() {
        assert!(matches!(refusal("agent:green", "bad\0tag"), CopyError::InvalidTag(..)));
        assert!(matches!(refusal("bad\0tag", "x"), CopyError::InvalidTag(..)));
    }

    #[test]
    fn a_manifest_without_blobs_is_not_copied() {
        assert_eq!(refusal("hollow:x", "hollow:y"), CopyError::EmptyManifest("hollow:x".into()));
    }

    #[test]
    fn an_image_of_one_blob_is_copied() {
        let plan = plan("other:latest", "other:pinned");
        assert_eq!((plan.dst.blob_shas.len(), plan.hard_links()), (1, 1));
    }

    #[test]
    fn the_same_question_gets_the_same_plan() {
        assert_eq!(plan("agent:green", "agent:a"), plan("agent:green", "agent:a"));
    }

    #[test]
    fn blobs_are_linked_in_the_manifests_order() {
        let linked: Vec<String> = plan("agent:green", "agent:a")
            .ops
            .into_iter()
            .filter_map(|op| if let CopyOp::HardLink { sha } = op { Some(sha) } else { None })
            .collect();
        assert_eq!(linked, registry()[0].blob_shas);
    }

    #[test]
    fn the_tag_is_written_after_every_blob_is_in_place() {
        let ops = plan("agent:green", "agent:a").ops;
        assert_eq!(ops.last(), Some(&CopyOp::WriteManifest { tag: "agent:a".into() }));
    }

    #[test]
    fn no_copy_of_anything_that_can_be_copied_writes_a_blob() {
        for view in registry().iter().filter(|view| !view.blob_shas.is_empty()) {
            assert!(plan(&view.tag, &format!("{}-copy", view.tag)).copies_no_bytes());
        }
    }

    #[test]
    fn a_copy_to_itself_finds_its_name_taken() {
        assert_eq!(refusal("agent:green", "agent:green"), CopyError::DestinationExists("agent:green".into()));
    }

    #[test]
    fn a_copy_has_as_many_blobs_as_its_source() {
        assert_eq!(plan("agent:green", "agent:a").dst.blob_shas.len(), registry()[0].blob_shas.len());
    }

    #[test]
    fn a_copied_tag_names_the_same_image_and_an_image_that_lacks_a_blob_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        store.blobs().put(b"x").unwrap();
        let id = store.put_manifest(&sample()).unwrap();
        store.tags().set("a", &id, false).unwrap();
        for (src, dst) in [("a", "b"), ("latest", "c"), (&id.hex()[..8], "d"), (&id.to_string(), "e")] {
            assert_eq!(store.copy_tag(src, dst).unwrap().0, id);
            assert_eq!(store.tags().get(dst).unwrap(), id);
        }
        let refused = |src: &str, dst: &str| store.copy_tag(src, dst).unwrap_err().kind();
        assert_eq!(refused("a", "b"), ErrorKind::AlreadyExists);
        assert_eq!(refused("a", "a"), ErrorKind::AlreadyExists);
        assert_eq!(refused("nothing", "f"), ErrorKind::NotFound);
        assert_eq!(refused("a", "latest"), ErrorKind::InvalidInput);
        assert_eq!(refused("../a", "f"), ErrorKind::InvalidInput);
        // A source that cannot be read does not hide an invalid name.
        std::fs::write(store.tags().dir().join("hurt"), "garbage").unwrap();
        assert_eq!(refused("hurt", "../y"), ErrorKind::InvalidInput);
        assert_eq!(refused("hurt", "f"), ErrorKind::Damaged);
        std::fs::remove_file(store.tags().dir().join("hurt")).unwrap();
        store.tags().set("astray", &Digest::of(b"gone"), false).unwrap();
        let error = store.copy_tag("astray", "f").unwrap_err();
        assert!(error.to_string().contains("no longer in the store"), "{error}");
        std::fs::remove_file(store.blobs().path(&Digest::of(b"x"))).unwrap();
        let error = store.copy_tag("a", "f").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
        assert!(store.tags().get("f").is_err());
    }
}
