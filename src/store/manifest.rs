//! The `.pfimg` manifest, schema version 1, as `pf-core` 1.0 writes it.
//!
//! An image's id is the SHA-256 of the exact bytes of the manifest. So pfimg never serializes a manifest
//! again to name it; [`Manifest::to_bytes`] is for new ones.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// The schema version this program reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

/// Media type of version 1.
pub const MEDIA_TYPE: &str = "application/vnd.processfork.image.v1+json";

/// The most parents of an image: two make a merge.
pub const MAX_PARENTS: usize = 2;

/// Which agent made an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Kind of runtime, for instance `claude-code`.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// Opaque fingerprint of the runtime's build.
    pub fingerprint: String,
}

/// The model layer's blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRefs {
    /// The base model, any bytes.
    pub base: Digest,
    /// The difference to it, `model.diff.v1`.
    pub diff: Digest,
}

/// The cache layer's blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRefs {
    /// Layout of the pages, `paged-batchinvariant-v1`.
    pub layout: String,
    /// The page manifest.
    pub manifest: Digest,
}

/// The world layer's blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldRefs {
    /// The file tree, `fs.tree.v1`.
    pub fs: Digest,
    /// The environment, `env.v1`.
    pub env: Digest,
    /// The processes, `procs.*.v1`.
    pub procs: Digest,
}

/// The effects layer's blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectsRefs {
    /// The ledger, JSON lines.
    pub ledger: Digest,
}

/// The trace layer's blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRefs {
    /// The messages, JSON lines.
    pub messages: Digest,
}

/// A manifest. The order of the fields is the order on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// [`MEDIA_TYPE`].
    pub media_type: String,
    /// Which agent made the image.
    pub agent: Agent,
    /// Model layer.
    pub model: ModelRefs,
    /// Cache layer.
    pub cache: CacheRefs,
    /// World layer.
    pub world: WorldRefs,
    /// Effects layer.
    pub effects: EffectsRefs,
    /// Trace layer.
    pub trace: TraceRefs,
    /// When the image was sealed.
    pub created_at: DateTime<Utc>,
    /// Parents: none, one, or two for a merge.
    #[serde(default)]
    pub parents: Vec<Digest>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A schema this program does not know.
    #[error("manifest has schema version {0}, this program reads version {SCHEMA_VERSION}")]
    NewerSchema(u64),
    /// Not a manifest.
    #[error("not a manifest: {0}")]
    Malformed(String),
}

impl From<ManifestError> for Error {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::NewerSchema(_) => Error::new(ErrorKind::UnsupportedSchema, error.to_string())
                .with_hint("a newer pfimg may read it"),
            ManifestError::Malformed(_) => Error::new(ErrorKind::Damaged, error.to_string()),
        }
    }
}

/// The agent of images that keep what an apply changes in a directory. They hold the paths concerned alone.
pub const APPLY_AGENT: &str = "pfimg-apply";

impl Manifest {
    /// Whether the image may be `latest`: images that are kept for an apply do not count.
    pub fn may_be_latest(&self) -> bool {
        self.agent.kind != APPLY_AGENT
    }

    /// Parses a manifest's bytes. Unknown keys are allowed, as `pf` allows them; the bytes keep them.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u64,
        }
        let malformed = |e: serde_json::Error| ManifestError::Malformed(e.to_string());
        // First the version alone: a newer schema may lack or change every other field.
        let Version { schema_version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if schema_version != u64::from(SCHEMA_VERSION) {
            return Err(ManifestError::NewerSchema(schema_version));
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The bytes of a new manifest, as `pf` would write them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        serde_json::to_vec(self).map_err(|e| ManifestError::Malformed(e.to_string()))
    }

    /// Every blob that the manifest names, with the layer file that shows it. In the manifest's order.
    pub fn blobs(&self) -> [(LayerFile, Digest); 8] {
        [
            (LayerFile::ModelBase, self.model.base),
            (LayerFile::ModelDiff, self.model.diff),
            (LayerFile::CacheManifest, self.cache.manifest),
            (LayerFile::WorldFs, self.world.fs),
            (LayerFile::WorldEnv, self.world.env),
            (LayerFile::WorldProcs, self.world.procs),
            (LayerFile::EffectsLedger, self.effects.ledger),
            (LayerFile::TraceMessages, self.trace.messages),
        ]
    }
}

/// A blob's place in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerFile {
    /// `model/base`
    ModelBase,
    /// `model/diff.json`
    ModelDiff,
    /// `cache/manifest.json`
    CacheManifest,
    /// `world/fs`, a folder under the mount
    WorldFs,
    /// `world/env.json`
    WorldEnv,
    /// `world/procs.json`
    WorldProcs,
    /// `effects/ledger.jsonl`
    EffectsLedger,
    /// `trace/messages.jsonl`
    TraceMessages,
}

impl LayerFile {
    /// Its path in an image's folder.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ModelBase => "model/base",
            Self::ModelDiff => "model/diff.json",
            Self::CacheManifest => "cache/manifest.json",
            Self::WorldFs => "world/fs",
            Self::WorldEnv => "world/env.json",
            Self::WorldProcs => "world/procs.json",
            Self::EffectsLedger => "effects/ledger.jsonl",
            Self::TraceMessages => "trace/messages.jsonl",
        }
    }
}

impl fmt::Display for LayerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let d = Digest::of(b"x");
        Manifest {
            schema_version: SCHEMA_VERSION,
            media_type: MEDIA_TYPE.into(),
            agent: Agent { kind: "claude-code".into(), version: "0.1.0".into(), fingerprint: "test".into() },
            model: ModelRefs { base: d, diff: d },
            cache: CacheRefs { layout: "paged-batchinvariant-v1".into(), manifest: d },
            world: WorldRefs { fs: d, env: d, procs: d },
            effects: EffectsRefs { ledger: d },
            trace: TraceRefs { messages: d },
            created_at: "2026-11-20T09:20:56.312327059Z".parse().unwrap(),
            parents: vec![],
        }
    }

    #[test]
    fn a_manifest_survives_json() {
        let manifest = sample();
        let back = Manifest::parse(&manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(back, manifest);
        assert_eq!((back.schema_version, back.media_type.as_str()), (1, MEDIA_TYPE));
    }

    #[test]
    fn the_real_pf_names_the_same_bytes_the_same() {
        let ours = Manifest { parents: vec![Digest::of(b"parent")], ..sample() };
        let bytes = ours.to_bytes().unwrap();
        let theirs: pf_core::manifest::Manifest = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_vec(&theirs).unwrap(), bytes);
    }

    #[test]
    fn a_manifest_is_written_in_these_bytes_and_names_its_blobs_in_this_order() {
        let d = |text: &str| Digest::of(text.as_bytes());
        let manifest = Manifest {
            model: ModelRefs { base: d("base"), diff: d("diff") },
            cache: CacheRefs { layout: "l".into(), manifest: d("pages") },
            world: WorldRefs { fs: d("fs"), env: d("env"), procs: d("procs") },
            effects: EffectsRefs { ledger: d("ledger") },
            trace: TraceRefs { messages: d("messages") },
            parents: vec![d("p")],
            ..sample()
        };
        let expected = format!(
            concat!(
                r#"{{"schema_version":1,"media_type":"application/vnd.processfork.image.v1+json","#,
                r#""agent":{{"kind":"claude-code","version":"0.1.0","fingerprint":"test"}},"#,
                r#""model":{{"base":"{}","diff":"{}"}},"cache":{{"layout":"l","manifest":"{}"}},"#,
                r#""world":{{"fs":"{}","env":"{}","procs":"{}"}},"effects":{{"ledger":"{}"}},"trace":{{"messages":"{}"}},"#,
                r#""created_at":"2026-11-20T09:20:56.312327059Z","parents":["{}"]}}"#
            ),
            d("base"),
            d("diff"),
            d("pages"),
            d("fs"),
            d("env"),
            d("procs"),
            d("ledger"),
            d("messages"),
            d("p")
        );
        assert_eq!(String::from_utf8(manifest.to_bytes().unwrap()).unwrap(), expected);
        let named: Vec<(&str, Digest)> =
            manifest.blobs().iter().map(|(file, digest)| (file.path(), *digest)).collect();
        let expected = [
            ("model/base", d("base")),
            ("model/diff.json", d("diff")),
            ("cache/manifest.json", d("pages")),
            ("world/fs", d("fs")),
            ("world/env.json", d("env")),
            ("world/procs.json", d("procs")),
            ("effects/ledger.jsonl", d("ledger")),
            ("trace/messages.jsonl", d("messages")),
        ];
        assert_eq!(named, expected);
        assert_eq!((SCHEMA_VERSION, MEDIA_TYPE), (1, "application/vnd.processfork.image.v1+json"));
    }

    #[test]
    fn parents_may_be_absent_and_unknown_keys_present() {
        let mut value = serde_json::to_value(sample()).unwrap();
        let object = value.as_object_mut().unwrap();
        object.remove("parents");
        object.insert("comment".into(), "hi".into());
        assert_eq!(Manifest::parse(value.to_string().as_bytes()).unwrap(), sample());
    }

    #[test]
    fn a_newer_schema_is_distinguished_from_garbage() {
        for other in [0, 2, u64::MAX] {
            let bytes = serde_json::to_vec(&sample()).unwrap();
            let bytes =
                String::from_utf8(bytes).unwrap().replace("_version\":1", &format!("_version\":{other}"));
            let refused = Manifest::parse(bytes.as_bytes());
            assert!(
                matches!(refused, Err(ManifestError::NewerSchema(version)) if version == other),
                "{other}"
            );
        }
        assert!(matches!(Manifest::parse(b"{\"schema_version\":2}"), Err(ManifestError::NewerSchema(2))));
        for bad in
            [&b""[..], b"{}", b"[]", b"{\"schema_version\":1}", b"\xff\x00", b"{\"schema_version\":-1}"]
        {
            assert!(matches!(Manifest::parse(bad), Err(ManifestError::Malformed(_))), "{bad:?}");
        }
    }
}
