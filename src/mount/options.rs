//! Mount options in the words of mount(8).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;

use crate::error::{Error, ErrorKind, Result};

/// The kernel's own options of a FUSE mount, which `/proc/mounts` lists.
const KERNEL_WORDS: [&str; 7] =
    ["fd=", "rootmode=", "user_id=", "group_id=", "max_read=", "blksize=", "subtype="];

/// Mount options. The defaults are those that an ordinary user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct MountOptions {
    /// Allow no writes.
    pub read_only: bool,
    /// Honour set-user-id bits; root only.
    pub suid: bool,
    /// Honour device nodes; root only.
    pub dev: bool,
    /// Allow programs to be run.
    pub exec: bool,
    /// Allow access by users other than the mounting one.
    pub allow_other: bool,
    /// Make the kernel check modes and owners even if only root can access the mount.
    pub default_permissions: bool,
    /// Allow a mountpoint that is not empty. Callers must check this, since the kernel does not.
    pub nonempty: bool,
    /// Change the options of an existing mount.
    pub remount: bool,
    noatime: bool,
    nodiratime: bool,
    sync: bool,
    dirsync: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            allow_other: false,
            default_permissions: false,
            nonempty: false,
            remount: false,
            noatime: false,
            nodiratime: false,
            sync: false,
            dirsync: false,
        }
    }
}

impl MountOptions {
    /// Applies a comma-separated list. Later words override earlier ones. An unknown word is an error.
    ///
    /// mount(8) lists the present options of a mount before `remount`. There the kernel's own options for FUSE are ignored, since
    /// they cannot be changed.
    pub fn apply(&mut self, list: &str) -> Result<()> {
        let remounts = list.split(',').any(|word| word == "remount");
        for word in list.split(',').filter(|word| !word.is_empty()) {
            match word {
                "defaults" => *self = Self { allow_other: self.allow_other, ..Self::default() },
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "suid" => self.suid = true,
                "nosuid" => self.suid = false,
                "dev" => self.dev = true,
                "nodev" => self.dev = false,
                "exec" => self.exec = true,
                "noexec" => self.exec = false,
                "noatime" => self.noatime = true,
                "atime" | "relatime" => self.noatime = false,
                "nodiratime" => self.nodiratime = true,
                "diratime" => self.nodiratime = false,
                "sync" => self.sync = true,
                "async" => self.sync = false,
                "dirsync" => self.dirsync = true,
                "allow_other" => self.allow_other = true,
                "default_permissions" => self.default_permissions = true,
                "nonempty" => self.nonempty = true,
                "remount" => self.remount = true,
                _ if remounts && KERNEL_WORDS.iter().any(|key| word.starts_with(key)) => {}
                _ => {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("unknown mount option {word:?}"),
                    )
                    .with_hint(
                        "known are ro, rw, suid, nosuid, dev, nodev, exec, noexec, atime, noatime, relatime, \
                             diratime, nodiratime, sync, async, dirsync, allow_other, default_permissions, \
                             nonempty, remount, defaults",
                    ));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        for (set, flag) in [
            (self.read_only, MountFlags::RDONLY),
            (!self.suid, MountFlags::NOSUID),
            (!self.dev, MountFlags::NODEV),
            (!self.exec, MountFlags::NOEXEC),
            (self.noatime, MountFlags::NOATIME),
            (self.nodiratime, MountFlags::NODIRATIME),
            (self.sync, MountFlags::SYNCHRONOUS),
            (self.dirsync, MountFlags::DIRSYNC),
        ] {
            flags.set(flag, set);
        }
        flags
    }

    /// Whether the kernel has to check modes and owners. It need not if only root has access, since root may do everything. Each
    /// change of a folder then saves a request for the folder's attributes at the next lookup in it.
    pub(crate) fn need_checks(&self) -> bool {
        let all = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER;
        let may_do_everything = || {
            rustix::process::geteuid().is_root()
                && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(all))
        };
        self.allow_other || self.default_permissions || !may_do_everything()
    }

    /// Returns the options for fusermount3, which always adds nosuid and nodev for an ordinary user. `source` is the store's
    /// folder.
    pub(crate) fn for_fusermount(&self, source: &Path) -> OsString {
        let mut out = b"fsname=".to_vec();
        for byte in source.as_os_str().as_bytes() {
            if matches!(byte, b',' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        let mut words = vec!["subtype=pfimg", "default_permissions"];
        for (set, word) in [
            (self.read_only, "ro"),
            (self.suid, "suid"),
            (self.dev, "dev"),
            (!self.exec, "noexec"),
            (self.noatime, "noatime"),
            (self.sync, "sync"),
            (self.dirsync, "dirsync"),
            (self.allow_other, "allow_other"),
        ] {
            if set {
                words.push(word);
            }
        }
        for word in words {
            out.push(b',');
            out.extend(word.bytes());
        }
        OsString::from_vec(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions> {
        let mut options = MountOptions::default();
        options.apply(list).map(|()| options)
    }

    #[test]
    fn nosuid_and_nodev_hold_unless_asked_otherwise() {
        let flags = parsed("").unwrap().flags();
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(parsed("suid,dev").unwrap().flags(), MountFlags::empty());
        assert_eq!(parsed("suid,nosuid,dev,defaults").unwrap().flags(), flags);
    }

    #[test]
    fn the_words_of_mount_8_are_understood_and_others_refused() {
        let options =
            parsed("ro,noexec,noatime,sync,dirsync,nodiratime,allow_other,default_permissions").unwrap();
        assert!(options.read_only && !options.exec && options.allow_other && options.need_checks());
        assert!(parsed("default_permissions").unwrap().need_checks());
        assert!(options.flags().contains(MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::SYNCHRONOUS));
        assert_eq!(
            options.for_fusermount(Path::new(r"/a,b\c")),
            r"fsname=/a\,b\\c,subtype=pfimg,default_permissions,ro,noexec,noatime,sync,dirsync,allow_other"
        );
        let listed = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,remount,ro";
        assert!(parsed(listed).is_ok_and(|options| options.remount && options.read_only));
        for bad in ["rox", "fsname=x", "user_id=0", "ro,fd=3", "max_read=1"] {
            let error = parsed(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
