//! Access control lists, judged by a plain folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::XattrFlags;

use super::support::MODES;
use crate::common::cli::{pfimg_on, tool};
use crate::common::forks::{fork, small_store, world};
use crate::common::{Mount, errno, is_root};

/// A list for the owner, user 1234, the owning group, a mask and all others.
fn list(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries =
        [(1, owner, none), (2, user, 1234), (4, group, none), (0x10, mask, none), (0x20, others, none)];
    let entry = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [&[2, 0, 0, 0][..], &entries.into_iter().flat_map(entry).collect::<Vec<_>>()].concat()
}

const LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Modes and lists by path.
type Rights = BTreeMap<String, (u32, [Option<Vec<u8>>; 2])>;

/// Modes and lists of all that is below a folder.
fn rights(folder: &Path) -> Rights {
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::symlink_metadata(&path).unwrap().mode();
            let list = |name| {
                let mut value = vec![0; 200];
                rustix::fs::lgetxattr(&path, name, &mut value).ok().map(|length| value[..length].to_vec())
            };
            found.insert(path.strip_prefix(folder).unwrap().display().to_string(), (mode, LISTS.map(list)));
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            }
        }
    }
    found
}

/// Paths whose modes or lists differ from what they should be.
fn wrong(folder: &Path, expected: &Rights) -> Vec<String> {
    let found = rights(folder);
    let paths = found.keys().chain(expected.keys()).filter(|path| found.get(*path) != expected.get(*path));
    paths.cloned().collect()
}

const NONE: [&str; 0] = [];

/// Gives lists, takes them away, and makes files below folders that hand one on.
fn give_lists(top: &Path) {
    let [access, default] = LISTS;
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).map_err(std::io::Error::from)
    };
    let shell = |script: &str| {
        tool("sh", ["-ec".as_ref(), format!("cd \"$0\"\n{script}").as_ref(), top.as_os_str()]).exits(0);
    };
    shell(
        "for name in list chmod plain removed; do echo x > $name; chmod 640 $name; done; ln -s list link; mkdir dir sub",
    );
    set(&top.join("list"), access, &list(6, 7, 4, 6, 0)).unwrap();
    set(&top.join("chmod"), access, &list(6, 7, 4, 6, 0)).unwrap();
    set(&top.join("plain"), access, &list(6, 7, 4, 6, 0)).unwrap();
    set(&top.join("removed"), access, &list(6, 7, 4, 6, 0)).unwrap();
    shell("chmod 2751 chmod");
    // A list that says no more than a mode is a mode.
    let whole = list(7, 0, 5, 0, 4);
    let plain = [&whole[..12], &whole[20..28], &whole[36..]].concat();
    set(&top.join("plain"), access, &plain).unwrap();
    rustix::fs::removexattr(top.join("removed"), access).unwrap();
    assert_eq!(errno(set(&top.join("list"), default, &plain)), libc::EACCES);
    assert_eq!(errno(set(&top.join("list"), access, b"\x02\0\0\0abc")), libc::EINVAL);
    for folder in ["dir", "sub"] {
        let handed_on = if folder == "dir" { list(7, 7, 5, 7, 1) } else { plain.clone() };
        set(&top.join(folder), default, &handed_on).unwrap();
        shell(&format!(
            "cd {folder}; for umask in 022 077 000; do umask $umask; mkdir d$umask; echo x > f$umask; mkfifo p$umask; \
             mkdir -m 750 m$umask; ln -s x l$umask; mkdir d$umask/below; done"
        ));
    }
    shell("umask 027; mkdir without; echo x > without/f; cp -a dir copied");
}

#[test]
fn access_control_lists_are_those_of_a_disk_and_last() {
    let plain = tempfile::tempdir().unwrap();
    let probe = rustix::fs::setxattr(plain.path(), LISTS[1], &list(7, 7, 7, 7, 7), XattrFlags::empty());
    if probe.is_err() {
        eprintln!("the folder for temporary files has no access control lists: set TMPDIR");
        return;
    }
    rustix::fs::removexattr(plain.path(), LISTS[1]).unwrap();
    let (store, id) = small_store();
    give_lists(plain.path());
    let expected = rights(plain.path());
    assert!(expected.values().filter(|(_, [access, _])| access.is_some()).count() > 8);
    for writes in MODES {
        let (name, tag) = (format!("f-{writes}"), format!("sealed-{writes}"));
        let start =
            || Mount::of(store.root()).args(["--xattrs", "--seal", "manual", "--writes", writes]).start();
        let mount = start();
        let top = fork(&mount, &name, &id).join("top");
        fs::create_dir(&top).unwrap();
        give_lists(&top);
        assert_eq!(wrong(&top, &expected), NONE, "{writes}");
        mount.unmount();
        let mount = start();
        assert_eq!(wrong(&world(&mount, &name).join("top"), &expected), NONE, "{writes}, after a remount");
        pfimg_on(store.root(), ["seal", &name, "--tag", &tag]).exits(0);
        assert_eq!(
            wrong(&mount.join("tags").join(&tag).join("world/fs/top"), &expected),
            NONE,
            "{writes}, sealed"
        );
        assert_eq!(
            wrong(&fork(&mount, &format!("again-{writes}"), &tag).join("top"), &expected),
            NONE,
            "{writes}, forked"
        );
        mount.unmount();
        let out = tempfile::tempdir().unwrap();
        let exported = out.path().join("out");
        pfimg_on(store.root(), ["export".as_ref(), tag.as_ref(), exported.as_os_str()]).exits(0);
        assert_eq!(wrong(&exported.join("top"), &expected), NONE, "{writes}, exported");
    }
}

#[test]
fn the_kernel_goes_by_access_control_lists() {
    if !is_root() {
        return;
    }
    let (store, id) = small_store();
    let mount = Mount::of(store.root()).args(["--xattrs", "--allow-other", "--seal", "manual"]).start();
    fs::set_permissions(mount.path().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let w = fork(&mount, "f", &id);
    for dir in w.ancestors().take(3) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = w.join("README");
    let reads = |file: &Path, user: &str| {
        let args = [&format!("--reuid={user}"), "--regid=65534", "--clear-groups", "cat"];
        tool("setpriv", args.iter().map(std::ffi::OsStr::new).chain([file.as_os_str()])).code == 0
    };
    for (user, group, mask, others, may) in
        [(4, 0, 4, 0, [true, false]), (4, 0, 0, 0, [false, false]), (0, 0, 4, 4, [false, true])]
    {
        rustix::fs::setxattr(&file, LISTS[0], &list(6, user, group, mask, others), XattrFlags::empty())
            .unwrap();
        assert_eq!([reads(&file, "1234"), reads(&file, "1235")], may, "{user}{group}{mask}{others}");
    }
    mount.unmount();
}
