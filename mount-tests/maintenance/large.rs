//! Large files: stored in frames, read by frames, and only what changed is compressed again.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;

use super::support::{House, id};
use crate::common::cli::clean_command;
use crate::common::forks::{fork, open_rw};
use crate::common::{MIB, Mount, PFIMG, Rng, tree};

#[test]
fn a_large_file_that_changed_a_little_keeps_its_other_frames_and_pf_reads_both() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    let mut content = Rng::new(1).bytes(20 * MIB as usize + 5);
    fs::write(dir.join("big"), &content).unwrap();
    let stored = |image: &str| {
        fs::read(house.blob_path(house.pf_tree(image).entries[0].blob.as_ref().unwrap().as_str())).unwrap()
    };
    let before = stored(&id(&house.import(&dir, &[])));
    content[10 * MIB as usize + 77] ^= 1;
    let file = open_rw(&dir.join("big")).unwrap();
    file.write_all_at(&content[10 * MIB as usize..][..100], 10 * MIB).unwrap();
    let image = id(&house.import(&dir, &[]));
    let after = stored(&image);
    let same = before.iter().zip(&after).take_while(|(a, b)| a == b).count() as u64;
    assert!(same >= 10 * MIB && before.len() == after.len(), "{same} bytes of {}", before.len());
    let (restored, source) = (house.pf_restored(&image), tree::read_tree(&dir).unwrap());
    assert_eq!(tree::differences(&restored, &source), [""; 0]);
    house.pfimg(["verify"]).exits(0);
}

#[test]
fn a_file_larger_than_the_cache_is_read_in_any_order_in_images_and_forks_and_not_kept() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    let mut content = Rng::new(2).bytes(24 * MIB as usize + 999);
    fs::write(dir.join("big"), &content).unwrap();
    let image = id(&house.import(&dir, &[]));
    let cache = house.dir.join("mount-cache");
    let mount = Mount::of(&house.store())
        .args(["--cache-disk", "4MiB", "--cache-dir", cache.to_str().unwrap()])
        .start();
    let world = fork(&mount, "try", &image[7..]);
    let mut rng = Rng::new(3);
    let mut check = |path: &std::path::Path, content: &[u8]| {
        let file = fs::File::open(path).unwrap();
        for _ in 0..200 {
            let offset = rng.below(content.len() as u64);
            let mut buffer = vec![0; 1 + rng.below(300_000) as usize];
            let n = file.read_at(&mut buffer, offset).unwrap();
            assert!(n > 0 && buffer[..n] == content[offset as usize..][..n], "{n} bytes at {offset}");
        }
        assert!(fs::read(path).unwrap() == content);
    };
    check(&mount.image(&image[7..]).join("world/fs/big"), &content);
    check(&world.join("big"), &content);
    open_rw(&world.join("big")).unwrap().write_all_at(b"here", 13 * MIB).unwrap();
    content[13 * MIB as usize..][..4].copy_from_slice(b"here");
    check(&world.join("big"), &content);
    let kept = tree::read_tree(&cache).unwrap_or_default();
    let bytes: u64 =
        kept.values().map(|node| if let tree::Node::File { len, .. } = node { *len } else { 0 }).sum();
    assert!(bytes <= 4 * MIB, "{kept:?}");
    mount.unmount();
}

/// Shows how a slow command looks at a terminal of 100 columns. Stops the command again and again, so that a bar, which is drawn
/// every 50 ms at most, is drawn at many places however fast the disk is.
fn at_a_terminal(house: &House, args: &[&str]) -> String {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap().into_string().unwrap();
    let terminal = fs::File::options().read(true).write(true).open(name).unwrap();
    rustix::termios::tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    let mut command = clean_command(Path::new(PFIMG));
    command.args(args).env("TERM", "xterm").env("PF_STORE", house.store());
    command.env("XDG_CACHE_HOME", house.dir.join("cache"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal).spawn().unwrap();
    drop(command);
    let mut screen = fs::File::from(screen);
    let reader = std::thread::spawn(move || {
        let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
        // Reading a terminal that no program has open is an error.
        while let Ok(n @ 1..) = screen.read(&mut buffer) {
            shown.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    });
    let pid = Pid::from_child(&child);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        // The process is not waited for yet, so that the number is its own still.
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        kill_process(pid, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
    reader.join().unwrap()
}

#[test]
fn the_bar_of_one_large_file_moves_and_tells_no_speed_before() {
    let house = House::new();
    let dir = house.dir.join("tree");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("big"), Rng::new(4).bytes(128 * MIB as usize)).unwrap();
    let [dir, out] = [dir, house.dir.join("out")].map(|path| path.to_str().unwrap().to_owned());
    for (args, done) in [(["import", &dir, "--tag=one"], "read"), (["export", "one", &out], "written")] {
        let shown = at_a_terminal(&house, &args);
        let bars: Vec<&str> = shown.split('\r').filter(|bar| bar.contains("/128.00 MiB")).collect();
        let (none, moved): (Vec<&str>, Vec<&str>) =
            bars.iter().partition(|bar| bar.contains(" 0 B/128.00 MiB"));
        let between = moved.iter().filter(|bar| !bar.contains("128.00 MiB/128.00 MiB")).count();
        assert!(between > 0, "{bars:?}");
        assert!(moved.iter().any(|bar| bar.contains("/s, ") && bar.contains(" left")), "{bars:?}");
        assert!(none.iter().all(|bar| bar.trim_end().contains(done) && !bar.contains("left")), "{bars:?}");
    }
}
