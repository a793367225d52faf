//! What an import tells while it works.

/// Receives the progress of an import.
pub trait Progress: Sync {
    /// The number of files, directories and links found since the last call.
    fn found(&self, more: u64) {
        let _ = more;
    }

    /// The number of bytes to read.
    fn to_read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The number of bytes read since the last call.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }
}

impl Progress for () {}
