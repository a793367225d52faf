//! Keeps file times while a fork is being filled by `cp -r`.
//!
//! `cp -r` copies the files of another fork or of an image one by one, and sets no times. While nothing else happens in the
//! new fork, a file whose whole content comes from the same path keeps its time. Otherwise each file would be as new as its
//! copy, in the order of copying, and make would take an edited source that is not yet built for built. Copies stay separate
//! files: none becomes a hard link.

use std::sync::Weak;

use super::attr::{SetAttr, SetTime};
use super::copy::CopySource;
use super::ino::Ino;
use super::live::Fork;
use super::node::Attr;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::layers::world::Kind;
use crate::tree::NodeId;

/// The source that a fork is being copied from.
#[derive(Debug, Default)]
pub(super) enum Making {
    /// The fork is not being copied, or the copying has ended.
    #[default]
    No,
    /// Nothing was copied yet.
    Begun,
    /// The fork or image that the first file came from.
    From(Source),
}

/// A fork or an image.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Fork(Weak<Fork>),
    Image(Digest),
}

impl Source {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fork(one), Self::Fork(two)) => one.ptr_eq(two),
            // A file's image is the one where it was first seen, which may be another image of the line.
            (Self::Image(_), Self::Image(_)) => true,
            _ => false,
        }
    }
}

/// The source of a file that is copied to the same path.
pub(super) struct Origin(Source);

impl Fork {
    /// Notes that the fork was made empty.
    pub(super) fn begin_making(&self) {
        *self.making.lock() = Making::Begun;
    }

    /// Notes that a program does something else in the fork than copying a fork or an image. From now on no times are kept.
    pub fn end_making(&self) {
        *self.making.lock() = Making::No;
    }

    /// Whether the fork is being copied from another.
    pub fn is_being_made(&self) -> bool {
        !matches!(*self.making.lock(), Making::No)
    }

    /// Returns the source of content that is copied into a file, if the file keeps its time.
    pub(super) fn origin(
        &self,
        from: &CopySource<'_>,
        ino: Ino,
        from_offset: u64,
        offset: u64,
    ) -> Result<Option<Origin>> {
        if from_offset != 0 || offset != 0 || !self.is_being_made() {
            return Ok(None);
        }
        let own = {
            let live = self.live.read();
            if live.image.is_some()
                || live.inode(ino).is_none_or(|inode| inode.content().is_none_or(|c| c.known_size() > 0))
            {
                return Ok(None);
            }
            live.state.path(ino)
        };
        let (source, path) = match from {
            CopySource::Fork(fork, _) if std::ptr::eq(*fork, self) => return Ok(None),
            CopySource::Fork(fork, other) => {
                let live = fork.live.read();
                let inode = live.need(*other)?;
                // A file with several names matches by any of them.
                let names = inode.links.iter().filter_map(|(folder, name)| {
                    let folder = live.state.path(*folder)?;
                    Some(if folder.is_empty() { name.to_vec() } else { [&folder[..], name].join(&b'/') })
                });
                let path = names.into_iter().find(|path| own.as_ref() == Some(path));
                (Source::Fork(fork.this.clone()), path)
            }
            CopySource::Image { image, path, .. } => (Source::Image(*image), Some(path.to_vec())),
            CopySource::Blob(_) => return Ok(None),
        };
        if own.is_none() || own != path {
            return Ok(None);
        }
        let mut making = self.making.lock();
        match &*making {
            Making::Begun => *making = Making::From(source.clone()),
            Making::From(first) if first.is(&source) => {}
            Making::From(_) | Making::No => return Ok(None),
        }
        Ok(Some(Origin(source)))
    }

    /// Sets a file's time to that of its source, if all `size` bytes were copied.
    pub(super) fn take_time(&self, ino: Ino, origin: &Origin, mtime: i64, size: u64) -> Result<()> {
        let same = matches!(&*self.making.lock(), Making::From(source) if source.is(&origin.0));
        let as_copied = self.getattr(ino).is_ok_and(|attr| attr.size == size);
        if same && as_copied {
            self.set_mtime(ino, mtime)?;
        }
        Ok(())
    }

    /// Loads what [`Fork::take_time_of_empty`] needs into memory. Must be called before a file is created.
    ///
    /// Fails with [`ErrorKind::Waits`] on an event loop if that takes the disk.
    pub fn prepare_to_take_times(&self) -> Result<()> {
        let image = match &*self.making.lock() {
            Making::From(Source::Image(image)) => *image,
            _ => return Ok(()),
        };
        let reader = &self.shared.reader;
        match reader.tree(&image).and_then(|_| reader.times(&image)) {
            Err(error) if error.kind() == ErrorKind::Waits => Err(error),
            // Without the image the time is not taken.
            _ => Ok(()),
        }
    }

    /// Sets the time of a newly created empty file to that of an empty file at the same path in the source. No byte of such a
    /// file is copied, so [`Fork::copy_range`] never sees it. Returns the file's new attributes.
    pub fn take_time_of_empty(&self, made: &Attr) -> Result<Option<Attr>> {
        if made.kind != Kind::File {
            return Ok(None);
        }
        let source = match &*self.making.lock() {
            Making::From(source) => source.clone(),
            Making::No | Making::Begun => return Ok(None),
        };
        let Some(path) = self.live.read().state.path(made.ino) else { return Ok(None) };
        let found = match source {
            Source::Fork(fork) => fork.upgrade().and_then(|fork| {
                let ino = fork.live.read().state.resolve(&path)?;
                let attr = fork.getattr(ino).ok()?;
                (attr.kind == Kind::File && attr.size == 0).then_some(attr.mtime)
            }),
            Source::Image(image) => path.strip_prefix(b"world/fs/").and_then(|path| {
                let reader = &self.shared.reader;
                let tree = reader.tree(&image).ok()?;
                let node: NodeId = tree.resolve(path)?;
                let empty = tree.kind(node) == Kind::File && tree.size(node) == 0;
                empty.then(|| Some(tree.shown_mtime_ns(node, &reader.times(&image).ok()?.nodes)))?
            }),
        };
        found.map(|mtime| self.set_mtime(made.ino, mtime)).transpose()
    }

    fn set_mtime(&self, ino: Ino, mtime: i64) -> Result<Attr> {
        self.setattr(ino, &SetAttr { mtime: Some(SetTime::At(mtime)), ..SetAttr::default() })
    }
}
