//! The pages of an image's cache layer.

use super::times::PageList;
use crate::digest::Digest;
use crate::layers::FormatError;
use crate::layers::cache::PageManifest;

/// The pages of a cache layer.
#[derive(Debug)]
pub struct Pages {
    /// (index, K, V), sorted by index.
    pages: PageList,
    /// Bytes of each page, if the page manifest says so.
    page_bytes: Option<u64>,
}

impl Pages {
    /// Parses a page manifest.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let manifest = PageManifest::parse(bytes)?;
        let page_bytes = manifest.page_bytes();
        let mut pages: PageList = manifest.pages.iter().map(|page| (page.ix, page.k, page.v)).collect();
        pages.sort_unstable_by_key(|(ix, ..)| *ix);
        Ok(Self { pages, page_bytes })
    }

    /// The pages: index, K and V, sorted by index.
    pub(super) fn list(&self) -> &PageList {
        &self.pages
    }

    /// Bytes of each page, if the page manifest says so.
    pub fn page_bytes(&self) -> Option<u64> {
        self.page_bytes
    }

    /// Names of the pages' files.
    pub fn names(&self) -> Vec<String> {
        self.pages.iter().flat_map(|(ix, ..)| [Self::name(*ix, true), Self::name(*ix, false)]).collect()
    }

    /// The name of a page's file.
    pub fn name(ix: u32, key: bool) -> String {
        format!("{ix:08}.{}", if key { 'k' } else { 'v' })
    }

    /// Finds a page's file by its name: its index, whether it is K, and its blob.
    pub fn find(&self, name: &str) -> Option<(u32, bool, Digest)> {
        let (digits, suffix) = name.split_once('.')?;
        let ix: u32 = digits.parse().ok()?;
        // Each page has one name: 1.k and +0000001.k do not mean 00000001.k.
        if format!("{ix:08}") != digits {
            return None;
        }
        let at = self.pages.binary_search_by_key(&ix, |(ix, ..)| *ix).ok()?;
        match suffix {
            "k" => Some((ix, true, self.pages[at].1)),
            "v" => Some((ix, false, self.pages[at].2)),
            _ => None,
        }
    }
}
