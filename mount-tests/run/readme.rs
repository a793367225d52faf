//! The README as a new user reads it: each command in it, typed in order, with the output that it shows.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::support::visible_folder;
use crate::common::cli::{Run, copy_program};
use crate::common::{PFIMG, is_root, names, system};

/// What a machine is prepared with, and other commands that change this machine. `scripts/fresh-machine.sh` runs the scripts.
const SET_UP: [&str; 3] = ["scripts/demo.sh", "scripts/test.sh", "cargo install --path ."];

/// Makes the project that the README speaks of: a git repository with a virtual environment that has the project installed in
/// place, ignored files, and a test that fails.
const PROJECT: &str = include_str!("readme/project.sh");

/// The agent that the README runs. What it does depends on the fork.
const AGENT: &str = include_str!("readme/my-agent");

/// Prints a hash of everything in the project: names, modes, times and contents.
const HASH: &str =
    "cd ~/project && find . -printf '%p %m %T@ %l\\n' -type f -exec sha256sum {} + | sort | sha256sum";

/// A new user with a project and nothing else.
struct NewUser {
    home: PathBuf,
    user: Option<u32>,
    _guard: tempfile::TempDir,
}

impl NewUser {
    fn new() -> Self {
        system::require_fuse();
        let guard = tempfile::Builder::new().prefix("readme-").tempdir_in(visible_folder()).unwrap();
        let home = guard.path().canonicalize().unwrap();
        for folder in ["bin", "runtime"] {
            fs::create_dir(home.join(folder)).unwrap();
        }
        copy_program(PFIMG, &home.join("bin/pfimg"));
        fs::write(home.join("bin/my-agent"), AGENT).unwrap();
        for (path, mode) in [("", 0o755), ("bin/pfimg", 0o755), ("bin/my-agent", 0o755), ("runtime", 0o700)] {
            fs::set_permissions(home.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let user = is_root().then_some(super::support::NOBODY);
        if let Some(user) = user {
            let owner = format!("{user}:{user}");
            Run::program(Path::new("chown"), ["-R", &owner, home.to_str().unwrap()]).run().exits(0);
        }
        let this = Self { home, user, _guard: guard };
        let said = this.bash(PROJECT);
        assert!(said.trim().is_empty(), "{said}");
        this
    }

    /// Runs a script, and returns what it prints on both channels. Panics if it fails.
    #[track_caller]
    fn bash(&self, script: &str) -> String {
        let path = format!("{}:{}", self.home.join("bin").display(), std::env::var("PATH").unwrap());
        let run = Run::program(Path::new("bash"), ["-c", &format!("exec 2>&1; {script}")]).dir(&self.home);
        let run =
            run.user(self.user).env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.home.join("runtime"));
        run.env("PATH", path).env("PFIMG_IDLE", "10m").env("LC_ALL", "C.UTF-8").run().exits(0).stdout
    }

    fn project(&self) -> String {
        self.bash(HASH).trim().to_owned()
    }
}

impl Drop for NewUser {
    fn drop(&mut self) {
        let folder = self.home.join("runtime/pfimg");
        let own = names(&folder).unwrap_or_default().into_iter().map(|name| folder.join(name).join("mnt"));
        for point in own.chain([self.home.join("pf")]).filter(|point| !system::types_at(point).is_empty()) {
            let program = self.home.join("bin/pfimg");
            let umount = Run::program(&program, ["umount", point.to_str().unwrap()]).user(self.user);
            umount.env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.home.join("runtime")).run();
            system::detach_all(&point);
        }
    }
}

/// A command, and what the page shows below it.
struct Step {
    command: String,
    /// Nothing in a block that shows no output.
    shown: Option<String>,
}

/// The commands of a page's blocks `sh`, which show no output, and `console`, where `$ ` begins a command.
fn steps(page: &str) -> Vec<Step> {
    let (mut steps, mut block) = (Vec::new(), None);
    for line in page.lines() {
        match (block, line) {
            (None, _) => block = line.strip_prefix("```").filter(|kind| matches!(*kind, "sh" | "console")),
            (Some(_), "```") => block = None,
            (Some("console"), _) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.into(), shown: Some(String::new()) });
                }
                (None, Some(Step { shown: Some(shown), .. })) => writeln!(shown, "{line}").unwrap(),
                (None, _) => panic!("output before a command: {line}"),
            },
            (Some(_), _) => {
                let command = line.split_once(" #").map_or(line, |(command, _)| command).trim();
                if !command.is_empty() && !command.starts_with('#') {
                    steps.push(Step { command: command.into(), shown: None });
                }
            }
        }
    }
    steps
}

/// Units of what is different each time.
const UNITS: [&str; 6] = ["s", "ms", "B", "KiB", "MiB", "GiB"];

/// Replaces what is different each time: times, sizes, ids, the number of imported files, the order in which runs side by side
/// end, and spaces that only align columns.
fn normal(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines
        .chunk_by_mut(|a, b| a.starts_with("  try-") && b.starts_with("  try-"))
        .for_each(<[&str]>::sort_unstable);
    let mut normal = String::new();
    for line in lines {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        for at in 0..words.len() {
            let bare = bare(&words[at]).to_owned();
            let unit = words.get(at + 1).map_or("", |next| self::bare(next)).to_owned();
            let is_number = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_digit() || ".,".contains(c));
            let is_id = matches!(bare.len(), 7 | 12 | 64)
                && bare.chars().all(|c| c.is_ascii_hexdigit())
                && bare.chars().any(|c| c.is_ascii_digit());
            let is_time = bare.len() == 8
                && bare.bytes().enumerate().all(|(at, b)| b == b':' || at % 3 != 2 && b.is_ascii_digit());
            let kind = match () {
                () if is_id => "ID",
                () if is_time => "TIME",
                // The files of a repository depend on git's version.
                () if line.contains(": imported ") && unit == "files" => "N",
                () if is_number && UNITS.contains(&unit.as_str()) => "N",
                () => continue,
            };
            words[at] = words[at].replace(&bare, kind);
            if kind == "N" && unit.ends_with('B') {
                words[at + 1] = words[at + 1].replace(&unit, "BYTES");
            }
        }
        normal.push_str(words.join(" ").trim_end());
        normal.push('\n');
    }
    normal
}

/// A word without the punctuation around it.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric())
}

#[test]
fn every_command_of_the_readme_has_the_shown_output() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let steps: Vec<Step> =
        steps(&page).into_iter().filter(|step| !SET_UP.contains(&step.command.as_str())).collect();
    let shown = steps.iter().filter(|step| step.shown.is_some()).count();
    assert!(shown >= 8 && steps.len() - shown >= 8, "{shown} of {} commands show their output", steps.len());
    let user = NewUser::new();
    let before = user.project();
    // One shell types all of it. A line that begins with a byte of 1 stands before the output of each command, and has the hash of the
    // project and the exit code of the command before.
    let mut script = String::from("code=0; cd ~/project\n");
    for step in &steps {
        writeln!(script, "printf '\\001%s\\n' $code; code=0; {{ {}\n}} || code=$?", step.command).unwrap();
        if step.command.starts_with("pfimg run") {
            writeln!(script, "printf '\\002%s' \"$({HASH})\"").unwrap();
        }
    }
    script.push_str("printf '\\001%s\\n' $code\n");
    let printed = user.bash(&script);
    // Nothing stands before the first mark. Each other part begins with the code of the command before it.
    let parts: Vec<(&str, &str)> =
        printed.split('\u{1}').skip(1).map(|part| part.split_once('\n').unwrap_or((part, ""))).collect();
    assert_eq!(parts.len(), steps.len() + 1, "{printed}");
    let mut wrong = String::new();
    for (at, step) in steps.iter().enumerate() {
        let (output, hash) = parts[at].1.split_once('\u{2}').unwrap_or((parts[at].1, ""));
        let code = parts[at + 1].0;
        match &step.shown {
            Some(shown) if normal(shown) != normal(output) => {
                write!(wrong, "$ {}\n--- README\n{shown}--- printed\n{output}\n", step.command).unwrap();
            }
            None if code != "0" => write!(wrong, "$ {}\nexit code {code}\n{output}\n", step.command).unwrap(),
            _ => {}
        }
        // Until the user changes the project it stays byte for byte as it is: four agents and their commits leave it alone.
        if at == 0 {
            assert_eq!(hash.trim(), before, "{}", step.command);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(
        printed.contains("  try-2  exit 0"),
        "the right one passes the test of the project, in its own environment"
    );
}

#[test]
fn outputs_are_equal_except_for_values_of_each_run() {
    let shown = "pfimg: imported ~/project: 154 files, 48.1 KiB, 0.4 s\n  try-1  exit 1  0.2 s  ~1\n  try-2  exit 0  0.31 s  +1\n  0  10:02:11  made of project (0e24621)\n";
    let other = "pfimg: imported ~/project: 154 files, 1.2 MiB, 12.4 s\n  try-2 exit 0 7.3 s +1\n  try-1 exit 1 1.2 s   ~1\n  0  23:59:59  made of project (1f24621abcd9)\n";
    assert_eq!(normal(shown), normal(other));
    for (is, was) in [("exit 1", "exit 2"), ("~1", "~2"), (": imported", ": unchanged"), ("try-1", "try-3")] {
        assert_ne!(normal(shown), normal(&shown.replace(is, was)), "{is}");
    }
    let page = "```console\n$ a b # c\nout\n$ d\n```\ntext\n```sh\n# x\ne f   # g\n```\n```\n$ no\n```\n";
    let found: Vec<_> = steps(page).into_iter().map(|step| (step.command, step.shown)).collect();
    let all = [("a b # c", Some("out\n")), ("d", Some("")), ("e f", None)];
    assert_eq!(found, all.map(|(command, shown)| (command.to_owned(), shown.map(str::to_owned))));
}
