//! A program that drives many forks at once and reads only what `--json` prints.

use super::home::Home;
use crate::common::cli::Run;
use crate::common::is_root;

#[test]
fn a_python_script_drives_eight_forks_at_once_by_json_alone() {
    let home = Home::new(is_root().then_some(super::support::NOBODY));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-tests/run/driver.py");
    // The checkout may be closed to other users.
    let text = std::fs::read_to_string(script).unwrap();
    let before = home.git(&["status", "--porcelain"]);
    let run = Run::program("python3".as_ref(), ["-c", &text, home.program.to_str().unwrap()]);
    let run = run.dir(&home.project).user(home.user).env("HOME", home.path(""));
    let said = run.env("XDG_RUNTIME_DIR", home.path("runtime")).env("PFIMG_IDLE", "10m").run().exits(0);
    let objects: u32 = said.stdout.trim().parse().unwrap();
    assert!(objects > 8 * 15, "{objects} objects");
    assert_eq!(home.git(&["status", "--porcelain"]), before);
}
