//! Rights that a file has beyond its permissions: they fall in a fork where they fall on any disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, XattrFlags};

use super::support::MODES;
use crate::common::cli::pfimg_on;
use crate::common::forks::{fallocate, fork, open_rw, punch, small_store, write_mapped};
use crate::common::{Mount, is_root};

/// `security.capability` of version 2 with one capability, as setcap(8) writes it.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn rights_that_were_taken_away_do_not_come_back_with_an_export() {
    if !is_root() {
        eprintln!("giving rights takes root");
        return;
    }
    let (store, _) = small_store();
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    fs::create_dir(&source).unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    let get = |path: &Path, name: &str| rustix::fs::getxattr(path, name, &mut [0; 200][..]).is_ok();
    let ways = ["kept", "written", "mapped", "cut", "given", "copied-over"];
    for name in ways {
        fs::write(source.join(name), "program ".repeat(1000)).unwrap();
        set(&source.join(name), "security.capability", &NET_RAW);
    }
    // Owner rw, another user r, group r, mask r, others r.
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 65_534), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    fs::write(source.join("listed"), "secret").unwrap();
    set(&source.join("listed"), "system.posix_acl_access", &acl);
    pfimg_on(store.root(), ["import".as_ref(), source.as_os_str(), "--tag".as_ref(), "rights".as_ref()])
        .exits(0);
    for writes in MODES {
        let args = ["--writes", writes, "--seal", "manual"];
        let mount = Mount::of(store.root()).args(args).start();
        let w = fork(&mount, &format!("f-{writes}"), "rights");
        fs::write(w.join("written"), "evil").unwrap();
        write_mapped(&w.join("mapped"), 0, b"evil").unwrap();
        File::options().write(true).open(w.join("cut")).unwrap().set_len(4).unwrap();
        std::os::unix::fs::chown(w.join("given"), Some(65_534), None).unwrap();
        fs::copy(w.join("kept"), w.join("copied-over")).unwrap();
        fs::set_permissions(w.join("listed"), fs::Permissions::from_mode(0o600)).unwrap();
        let tag = format!("sealed-{writes}");
        fs::create_dir(mount.join(format!("forks/f-{writes}/.snap/{tag}"))).unwrap();
        mount.unmount();
        pfimg_on(store.root(), ["export".as_ref(), tag.as_ref(), out.as_os_str()]).exits(0);
        let left: Vec<&str> =
            ways.into_iter().filter(|name| get(&out.join(name), "security.capability")).collect();
        assert_eq!(left, ["kept"], "{writes}");
        assert_eq!(fs::metadata(out.join("listed")).unwrap().mode() & 0o777, 0o600, "{writes}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn root_keeps_suid_where_it_keeps_it_elsewhere() {
    if !is_root() {
        eprintln!("only root keeps it");
        return;
    }
    let (store, id) = small_store();
    let native = tempfile::tempdir().unwrap();
    for writes in MODES {
        let mount = Mount::of(store.root()).args(["--writes", writes]).start();
        let w = fork(&mount, &format!("f-{writes}"), &id);
        let modes = |folder: &Path| {
            let step = |what: &str, change: &dyn Fn(&Path)| {
                let path = folder.join(what);
                fs::write(&path, "program ".repeat(100)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
                change(&path);
                let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
                fs::remove_file(&path).unwrap();
                format!("{what} {mode:o}")
            };
            let rw = |path: &Path| open_rw(path).unwrap();
            [
                step("write", &|path| rw(path).write_all_at(b"x", 3).unwrap()),
                step("truncate", &|path| rw(path).set_len(5).unwrap()),
                step("O_TRUNC", &|path| drop(File::create(path).unwrap())),
                step("fallocate", &|path| {
                    fallocate(&rw(path), FallocateFlags::empty(), 0, 9000).unwrap();
                }),
                step("punch", &|path| punch(&rw(path), 0, 100).unwrap()),
                step("copy", &|path| {
                    let source = File::open(folder.join("source")).unwrap();
                    rustix::fs::copy_file_range(&source, None, rw(path), None, 100).unwrap();
                }),
                step("chown", &|path| std::os::unix::fs::chown(path, Some(5), None).unwrap()),
            ]
        };
        for folder in [native.path(), &w] {
            fs::write(folder.join("source"), "source ".repeat(100)).unwrap();
        }
        assert_eq!(modes(&w), modes(native.path()), "{writes}");
        mount.unmount();
    }
}
