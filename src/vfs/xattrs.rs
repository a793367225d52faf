//! Extended attributes of files in forks and images.

use super::forked::kind;
use super::inode::{Ino, Node};
use super::{Attempt, Process, Vfs};
use crate::error::{ErrorKind, Posix};
use crate::fork::{self, XattrMode};

impl Vfs {
    /// Returns an extended attribute of a file in a fork or an image.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Attempt<Vec<u8>> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.getxattr(ino, name).map_err(kind),
            node => {
                let xattrs = self.xattrs_of(&node)?;
                let value = xattrs.as_ref().and_then(|xattrs| xattrs.get(name));
                Ok(value.cloned().ok_or(if fork::is_bare_prefix(name) {
                    ErrorKind::InvalidInput
                } else {
                    ErrorKind::Posix(Posix::NoAttribute)
                })?)
            }
        }
    }

    /// Lists the names of a file's extended attributes.
    pub fn listxattr(&self, ino: Ino) -> Attempt<Vec<Vec<u8>>> {
        match self.node(ino)? {
            Node::Forked { mounted, ino } => mounted.fork.listxattr(ino).map_err(kind),
            node => {
                Ok(self.xattrs_of(&node)?.map_or_else(Vec::new, |xattrs| xattrs.keys().cloned().collect()))
            }
        }
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, by: Process) -> Attempt<()> {
        let (mounted, ino) = self.in_fork(ino)?;
        mounted.fork.setxattr_by(ino, name, value, mode, by).map_err(kind)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Attempt<()> {
        let (mounted, ino) = self.in_fork(ino)?;
        mounted.fork.removexattr(ino, name).map_err(kind)
    }
}
