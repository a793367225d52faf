//! The cache's page manifest: what is read comes out the same, and a page is never of no size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pfimg::layers::cache::PageManifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut manifest) = PageManifest::parse(bytes) {
        assert_ne!(manifest.page_bytes(), Some(0));
        assert_eq!(PageManifest::parse(&manifest.to_bytes()).as_ref(), Ok(&manifest));
        manifest.canonicalize();
        assert!(manifest.pages.is_sorted_by(|a, b| a.ix < b.ix));
    }
});
