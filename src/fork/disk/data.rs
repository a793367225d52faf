//! A fork's data files.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use super::files::{FileKey, read_exact};
use super::generation::Generation;

/// Bytes that are copied at a time from one data file to another.
const COPIED_AT_ONCE: u64 = 1 << 20;

/// A sparse file of a generation. When the last piece of a file in it is removed, and the generation is still
/// being written, the data file goes to the trash.
pub struct DataFile {
    /// The generation whose folder it is in.
    pub generation: Arc<Generation>,
    /// Its name there.
    pub number: u64,
    /// Whether it represents a frozen file of another generation, and so is never written after that: a hard
    /// link to it or, without hard links, a copy of the needed ranges.
    pub shared: bool,
}

impl DataFile {
    pub(in crate::fork) fn known(generation: &Arc<Generation>, number: u64, shared: bool) -> Arc<Self> {
        generation.saw_data(number);
        Arc::new(Self { generation: generation.clone(), number, shared })
    }

    /// Makes a new, empty one.
    pub(in crate::fork) fn create(generation: &Arc<Generation>) -> io::Result<Arc<Self>> {
        let number = generation.next_number();
        generation.io().create(&generation.data_path(number), generation.files.sharing)?;
        Ok(Self::known(generation, number, false))
    }

    /// Gives a frozen file a second name in `generation`.
    pub(in crate::fork) fn link(&self, generation: &Arc<Generation>) -> io::Result<Arc<Self>> {
        let number = generation.next_number();
        let (from, to) = (self.generation.data_path(self.number), generation.data_path(number));
        generation.files.link(&from, &generation.dir.join("data"), &to)?;
        // The bytes may still be on their way to disk under the old name.
        generation.unsynced.lock().insert(number);
        Ok(Self::known(generation, number, true))
    }

    /// Makes a file in `generation` that will hold bytes of a frozen one, each at the same offset. Like a
    /// second name of the frozen one, it belongs to no file alone.
    pub(in crate::fork) fn twin(generation: &Arc<Generation>) -> io::Result<Arc<Self>> {
        let number = generation.next_number();
        generation.io().create(&generation.data_path(number), generation.files.sharing)?;
        Ok(Self::known(generation, number, true))
    }

    /// Copies a range from another data file, to the same offset.
    pub(in crate::fork) fn copy_from(&self, from: &Self, start: u64, len: u64) -> io::Result<()> {
        let end = start.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut buf = vec![0; len.min(COPIED_AT_ONCE) as usize];
        let mut at = start;
        while at < end {
            let now = &mut buf[..(end - at).min(COPIED_AT_ONCE) as usize];
            from.read_exact_at(now, at)?;
            let mut done = 0;
            while done < now.len() {
                done += self.write_at(&now[done..], at + done as u64)?;
            }
            at += now.len() as u64;
        }
        Ok(())
    }

    pub(in crate::fork) fn is_frozen(&self) -> bool {
        self.shared || self.generation.is_frozen()
    }

    fn file(&self) -> io::Result<Arc<File>> {
        let key = FileKey::Data(self.generation.id, self.number);
        self.generation.files.get(key, || self.generation.data_path(self.number))
    }

    /// Fills a buffer; see [`read_exact`].
    pub(in crate::fork) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let key = FileKey::Data(self.generation.id, self.number);
        let path = || self.generation.data_path(self.number);
        read_exact(&*self.generation.files.get_to_read(key, path)?, buf, offset)
    }

    /// Writes as many bytes as possible and returns their number. Fails if it can write none.
    pub(in crate::fork) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let file = self.file()?;
        let mut done = 0;
        // Noted again after the write: a sync in between covers only earlier bytes.
        self.generation.unsynced.lock().insert(self.number);
        while done < bytes.len() {
            match self.generation.io().write_at(&file, &bytes[done..], offset + done as u64) {
                Ok(0) if done == 0 => return Err(io::ErrorKind::WriteZero.into()),
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        self.generation.unsynced.lock().insert(self.number);
        Ok(done)
    }

    /// Reserves space for writes of `len` bytes at `offset`.
    pub(in crate::fork) fn set_aside(&self, offset: u64, len: u64) -> io::Result<()> {
        self.generation.io().set_aside(&*self.file()?, offset, len)
    }

    /// Bytes it occupies on disk.
    pub(in crate::fork) fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file()?.metadata()?.blocks() * 512)
    }

    /// Its length in bytes.
    pub(in crate::fork) fn len(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.generation.data_path(self.number))?.len())
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        if !self.generation.is_frozen() {
            self.generation.unreferenced.lock().push(self.number);
        }
    }
}

impl fmt::Debug for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generation.id, self.number)
    }
}
