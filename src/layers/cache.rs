//! The cache layer's page manifest, layout `paged-batchinvariant-v1`.
//!
//! Three programs write three shapes of it: `pf_cache` all of the metadata, pf-core's fixture only the size
//! of a page, and the `pf` command zeros with a note. One type accepts all of them; an unknown value is
//! `None`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;
use crate::digest::Digest;

/// The only layout.
pub const LAYOUT: &str = "paged-batchinvariant-v1";

/// The pages of a key-value cache and the sequences that use them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageManifest {
    layout: String,
    /// Tokens in a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size_tokens: Option<u32>,
    /// Layers of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_layers: Option<u32>,
    /// Attention heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_heads: Option<u32>,
    /// Elements of a head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u32>,
    /// The type of an element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Bytes of a K (or V) page, in the fixture's shape only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size_bytes: Option<u64>,
    /// The pages, each index once.
    pub pages: Vec<Page>,
    /// The sequences; absent in the fixture's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_seqs: Option<Vec<LogicalSeq>>,
    /// Keys this program does not know, and notes.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The type of a cache element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16, 2 bytes.
    Bf16,
    /// IEEE binary16, 2 bytes.
    F16,
    /// IEEE binary32, 4 bytes.
    F32,
    /// 8-bit E4M3, 1 byte.
    Fp8E4m3,
    /// A type of unknown size.
    #[serde(untagged)]
    Other(String),
}

/// A physical page: K and V are separate blobs, so that forks share the one that did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The index in the engine's page table.
    pub ix: u32,
    /// The blob of the keys.
    pub k: Digest,
    /// The blob of the values.
    pub v: Digest,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A request and the pages that hold its tokens, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalSeq {
    /// The request's name.
    pub id: String,
    /// Indices of its pages.
    pub page_ixs: Vec<u32>,
    /// Tokens in the last page; 0 if that is full.
    pub fill_in_last_page: u32,
    /// Keys this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Dtype {
    /// Bytes of one element, if the type is known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Bf16 | Self::F16 => Some(2),
            Self::F32 => Some(4),
            Self::Fp8E4m3 => Some(1),
            Self::Other(_) => None,
        }
    }
}

impl PageManifest {
    /// Makes a manifest without pages or metadata.
    pub fn new() -> Self {
        Self {
            layout: LAYOUT.to_owned(),
            page_size_tokens: None,
            n_layers: None,
            n_heads: None,
            head_dim: None,
            dtype: None,
            page_size_bytes: None,
            pages: Vec::new(),
            logical_seqs: None,
            extra: Map::new(),
        }
    }

    /// Makes the manifest of an image without an engine. It has all the keys that `pf` requires.
    pub fn empty(note: impl Into<String>) -> Self {
        let mut extra = Map::new();
        extra.insert("note".to_owned(), Value::String(note.into()));
        Self {
            page_size_tokens: Some(16),
            n_layers: Some(0),
            n_heads: Some(0),
            head_dim: Some(0),
            dtype: Some(Dtype::Bf16),
            logical_seqs: Some(Vec::new()),
            extra,
            ..Self::new()
        }
    }

    /// Parses the blob of `cache.manifest`. Another layout, or an index that occurs twice, is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let manifest: Self = json::document(LAYOUT, bytes)?;
        if manifest.layout != LAYOUT {
            return Err(FormatError::new(LAYOUT, "layout", "another layout"));
        }
        let mut indices: Vec<u32> = manifest.pages.iter().map(|page| page.ix).collect();
        indices.sort_unstable();
        if let Some((twice, _)) = indices.iter().zip(indices.iter().skip(1)).find(|(ix, next)| ix == next) {
            return Err(FormatError::new(LAYOUT, format!("page {twice}"), "the index occurs twice"));
        }
        Ok(manifest)
    }

    /// Writes the blob, in the order of pages and sequences that the manifest has.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_bytes(self)
    }

    /// Sorts pages by index and sequences by name, as `pf` does before it writes them.
    pub fn canonicalize(&mut self) {
        self.pages.sort_by_key(|page| page.ix);
        self.logical_seqs.iter_mut().for_each(|seqs| seqs.sort_by(|a, b| a.id.cmp(&b.id)));
    }

    /// Bytes of a K (or V) page. `None` if the manifest has no size, says 0, or contradicts itself.
    pub fn page_bytes(&self) -> Option<u64> {
        let computed = self.computed_page_bytes();
        match (computed, self.page_size_bytes) {
            (Some(computed), Some(declared)) => (computed == declared).then_some(computed),
            (computed, declared) => computed.or(declared),
        }
        .filter(|bytes| *bytes > 0)
    }

    fn computed_page_bytes(&self) -> Option<u64> {
        [self.n_layers?, self.page_size_tokens?, self.n_heads?, self.head_dim?]
            .into_iter()
            .try_fold(self.dtype.as_ref()?.bytes()?, |product, factor| product.checked_mul(u64::from(factor)))
    }
}

impl Default for PageManifest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(pages: &str) -> String {
        format!(
            r#"{{"layout":"paged-batchinvariant-v1","page_size_tokens":16,"n_layers":80,"n_heads":64,"head_dim":128,"dtype":"bf16","pages":[{pages}],"logical_seqs":[{{"id":"seq-A","page_ixs":[0,1],"fill_in_last_page":7}}]}}"#
        )
    }

    fn page(ix: u64) -> String {
        format!(r#"{{"ix":{ix},"k":"{K}","v":"{K}"}}"#)
    }

    #[test]
    fn all_three_shapes_are_read_and_written() {
        let fixture = format!(
            r#"{{"layout":"paged-batchinvariant-v1","page_size_bytes":16384,"pages":[{}]}}"#,
            page(0)
        );
        let cli = r#"{"dtype":"bf16","head_dim":0,"layout":"paged-batchinvariant-v1","logical_seqs":[],"n_heads":0,"n_layers":0,"note":"n","page_size_tokens":16,"pages":[]}"#;
        let cases =
            [(full(&page(1)), Some(80 * 16 * 64 * 128 * 2)), (fixture, Some(16384)), (cli.to_owned(), None)];
        for (text, page_bytes) in cases {
            let manifest = PageManifest::parse(text.as_bytes()).unwrap();
            assert_eq!(manifest.page_bytes(), page_bytes, "{text}");
            let (before, after): (Value, Value) =
                (serde_json::from_str(&text).unwrap(), serde_json::from_slice(&manifest.to_bytes()).unwrap());
            assert_eq!(before, after);
            assert_eq!(PageManifest::parse(&manifest.to_bytes()).unwrap(), manifest);
        }
        assert_eq!(PageManifest::parse(cli.as_bytes()).unwrap(), PageManifest::empty("n"));
    }

    #[test]
    fn unknown_keys_are_kept_at_every_level() {
        let text = full(&page(3).replace("\"ix\"", "\"hot\":true,\"ix\""))
            .replace("\"id\"", "\"lang\":\"en\",\"id\"")
            .replace("bf16", "int4")
            .replacen('{', r#"{"engine":{"v":[0.1]},"#, 1);
        let manifest = PageManifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.dtype, Some(Dtype::Other("int4".to_owned())));
        assert_eq!(manifest.page_bytes(), None);
        let (before, after): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_slice(&manifest.to_bytes()).unwrap());
        assert_eq!(before, after);
    }

    #[test]
    fn an_invalid_page_manifest_is_refused_with_its_position() {
        let cases = [
            (full(&page(1)).replace("-v1", "-v2"), "layout"),
            (full(&[page(4), page(1), page(4)].join(",")), "page 4"),
            (full(&page(u64::from(u32::MAX) + 1)), "line 1"),
            (full(&page(1)).replace(K, "sha256:../../x"), "line 1"),
            (r#"{"layout":"paged-batchinvariant-v1"}"#.to_owned(), "line 1"),
            (r#"{"pages":[]}"#.to_owned(), "line 1"),
            (
                format!(r#"{{"layout":"paged-batchinvariant-v1","pages":[],"x":{}"#, "[".repeat(10_000)),
                "line 1",
            ),
        ];
        for (text, at) in cases {
            let error = PageManifest::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.at, at, "{error}");
        }
    }

    #[test]
    fn the_size_of_a_page_is_never_guessed() {
        let sized = |factors: [u32; 4], dtype, declared| PageManifest {
            n_layers: Some(factors[0]),
            page_size_tokens: Some(factors[1]),
            n_heads: Some(factors[2]),
            head_dim: Some(factors[3]),
            dtype: Some(dtype),
            page_size_bytes: declared,
            ..PageManifest::new()
        };
        let cases = [
            (sized([2, 4, 2, 4], Dtype::Bf16, None), Some(128)),
            (sized([2, 4, 2, 4], Dtype::F32, Some(256)), Some(256)),
            (sized([2, 4, 2, 4], Dtype::Fp8E4m3, Some(65)), None),
            (sized([0, 4, 2, 4], Dtype::F16, None), None),
            (sized([u32::MAX; 4], Dtype::F32, None), None),
            (sized([2, 4, 2, 4], Dtype::Other("int4".to_owned()), Some(32)), Some(32)),
            (PageManifest { page_size_bytes: Some(0), ..PageManifest::new() }, None),
            (PageManifest { page_size_tokens: Some(16), ..PageManifest::new() }, None),
        ];
        for (manifest, expected) in cases {
            assert_eq!(manifest.page_bytes(), expected, "{manifest:?}");
        }
    }

    #[test]
    fn canonical_order_is_by_index_and_by_name() {
        let text = full(&[page(9), page(2)].join(","));
        let mut manifest = PageManifest::parse(text.as_bytes()).unwrap();
        let mut second = manifest.logical_seqs.as_ref().unwrap()[0].clone();
        second.id = "a".to_owned();
        manifest.logical_seqs.as_mut().unwrap().push(second);
        manifest.canonicalize();
        assert_eq!(manifest.pages.iter().map(|page| page.ix).collect::<Vec<_>>(), [2, 9]);
        assert_eq!(manifest.logical_seqs.unwrap()[0].id, "a");
    }
}
