//! `pfimg demo`: a store, a mount and a look around, with real commands and their real output.

mod story;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::TempDir;

use super::envelope::print_json;
use super::text::print;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Sharing, Store};

/// Show what pfimg does, in a store that is removed at the end.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the store mounted
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let demo = Demo::new(args.json)?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // Ends the demo between two steps, with the mount cleared away.
        signal_hook::flag::register(signal, Arc::clone(&demo.interrupted))
            .map_err(|e| Error::io(e, "cannot watch for signals"))?;
    }
    let story::Images { before, after } = story::fill(&Store::create(demo.path("store"))?)?;
    demo.print(&format!(
        "An agent fixed a bug. A store in {} holds what there was before and after:\n\
         two images with files, KV cache, ledger and trace, tagged `before` and `after`.\n",
        demo.dir.path().display()
    ))?;
    demo.mount()?;

    demo.say("Every image is a folder, found by id, tag, agent or age:")?;
    demo.show("ls -F . images tags latest/", &[0])?;
    demo.say("Every layer is files that any tool can read:")?;
    demo.show("ls -F tags/after/*", &[0])?;
    demo.show("ls -l tags/after/world/fs/ tags/after/world/fs/src", &[0])?;
    demo.say(
        "What the agent's tools did, chained so that nothing can be slipped in (the chain's secret is held back):",
    )?;
    demo.show("cat tags/after/effects/ledger.jsonl", &[0])?;
    demo.say("An image's id is the hash of its manifest. Here is the id, and what sha256sum says:")?;
    demo.show("readlink tags/after", &[0])?;
    let sum = demo.show("sha256sum tags/after/manifest.json", &[0])?;
    if sum.split_whitespace().next() != Some(&after.hex()) {
        return Err(failed(format!("sha256sum of the manifest is not the image's id {}", after.hex())));
    }
    demo.say("What changed between the two images:")?;
    let diff = demo.show("diff -r tags/before/world/fs tags/after/world/fs", &[1])?;
    for line in ["Only in tags/after/world/fs: NOTES.md", "Only in tags/before/world/fs/src: scratch.py"] {
        if !diff.lines().any(|found| found == line) {
            return Err(failed(format!(
                "diff does not say {line:?} of {} and {}",
                before.hex(),
                after.hex()
            )));
        }
    }
    try_things(&demo)?;
    if args.keep { demo.keep() } else { demo.finish() }
}

/// Two attempts in forks: one is kept, one is thrown away.
fn try_things(demo: &Demo) -> Result<()> {
    demo.say(
        "A fork is a folder to write into, made in no time whatever the image's size. Let an agent try something:",
    )?;
    demo.show("mkdir forks/try-1@after", &[0])?;
    demo.show("ls forks/try-1/world/fs", &[0])?;
    demo.show("echo 'print(\"moin\")' > forks/try-1/world/fs/src/moin.py", &[0])?;
    if demo.show("pfimg diff try-1", &[0])? != "A src/moin.py\n" {
        return Err(failed("pfimg diff does not say what was done"));
    }
    demo.say(
        "A copy of it is a branch: no content is copied, and from then on neither sees what the other does:",
    )?;
    demo.show("cp -r forks/try-1 forks/try-2", &[0])?;
    demo.show("rm forks/try-2/world/fs/NOTES.md && echo '# try 2' >> forks/try-2/world/fs/README.md", &[0])?;
    let diff = demo.show("diff -r forks/try-1/world/fs forks/try-2/world/fs", &[1])?;
    if diff.lines().last() != Some("> # try 2") || !diff.contains("Only in forks/try-1/world/fs: NOTES.md") {
        return Err(failed("diff does not say what the two attempts did"));
    }
    demo.say(
        "The first is worth keeping. Sealed, it is an image like any other, and pf takes it as its own:",
    )?;
    demo.show("pfimg seal try-1 --tag moin", &[0])?;
    let diff = demo.show("diff -r tags/after/world/fs tags/moin/world/fs", &[1])?;
    if diff.trim_end() != "Only in tags/moin/world/fs/src: moin.py" {
        return Err(failed("diff does not say what was sealed"));
    }
    demo.say("Then the agent breaks everything. Back to what was sealed:")?;
    demo.show("rm -r forks/try-1/world/fs/src", &[0])?;
    demo.show("pfimg restore try-1 moin", &[0])?;
    demo.show("diff -r tags/moin/world/fs forks/try-1/world/fs && echo the same", &[0])?;
    demo.say("The second is not worth keeping:")?;
    demo.show("pfimg forks", &[0])?;
    demo.show("rm -rf forks/try-2", &[0])?;
    demo.say("Every blob against its digest:")?;
    demo.show("pfimg verify 2>&1", &[0])?;
    Ok(())
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::io(e, "cannot find this program"))
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Io(None), what.into()).context("the demo failed")
}

/// A temporary folder with a store and a mountpoint. Nothing is left mounted when it is dropped.
struct Demo {
    dir: TempDir,
    interrupted: Arc<AtomicBool>,
    /// Whether nothing is printed before the end, and JSON then.
    json: bool,
    /// What was said and run so far.
    steps: RefCell<Vec<Value>>,
}

impl Demo {
    fn new(json: bool) -> Result<Self> {
        let doing = "cannot make a temporary folder";
        let closed = Sharing::Private.folder_permissions();
        let dir = tempfile::Builder::new()
            .prefix("pfimg-demo-")
            .permissions(closed)
            .tempdir()
            .map_err(|e| Error::io(e, doing))?;
        let demo = Self { dir, interrupted: Arc::default(), json, steps: RefCell::default() };
        Sharing::Private.create_dir_all(&demo.path("mnt")).map_err(|e| Error::io(e, doing))?;
        Ok(demo)
    }

    /// Prints text for people.
    fn print(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { print(text) }
    }

    fn say(&self, text: &str) -> Result<()> {
        self.steps.borrow_mut().push(json!({"text": text}));
        self.print(&format!("\n# {text}\n"))
    }

    /// Prints for programs what was said and run. `kept` is the folder that stays.
    fn print_steps(&self, kept: Option<&Path>) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        print_json(&json!({"steps": self.steps.take(), "kept": kept.map(Path::to_string_lossy)}))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that says what it has to say in English. Cache and log of what it starts are in the temporary folder, so that
    /// nothing is left of them.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("PF_STORE", self.path("store"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("log"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// Runs this program.
    fn pfimg(&self, args: &[&Path]) -> Result<()> {
        let mut shown = String::from("pfimg");
        for arg in args {
            let _ = write!(shown, " {}", arg.display());
        }
        let status = self
            .command(this_program()?)
            .args(args)
            .stdout(Stdio::null())
            // Ctrl-C is for the demo: a mount that is half made could not be cleared away.
            .process_group(0)
            .status()
            .map_err(|e| Error::io(e, format!("cannot run {shown}")))?;
        if status.success() { Ok(()) } else { Err(failed(format!("{shown}: {status}"))) }
    }

    fn mount(&self) -> Result<()> {
        let (store, mnt) = (self.path("store"), self.path("mnt"));
        self.print(&format!(
            "\n$ pfimg mount {} {}\n$ cd {}\n",
            store.display(),
            mnt.display(),
            mnt.display()
        ))?;
        self.pfimg(&[Path::new("mount"), &store, &mnt]).inspect_err(|_| {
            // The folder with the daemon's log is deleted in a moment.
            for log in fs::read_dir(self.path("log/pfimg")).into_iter().flatten().flatten() {
                eprintln!("{}", fs::read_to_string(log.path()).unwrap_or_default().trim_end());
            }
        })
    }

    /// Shows a command and what it prints. Its exit code must be one of `codes`.
    fn show(&self, command: &str, codes: &[i32]) -> Result<String> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(failed("it was interrupted"));
        }
        // Whatever it is called where it lies.
        let script = format!("pfimg() {{ \"$PFIMG\" \"$@\"; }}\n{command}");
        let output = self
            .command("sh")
            .args(["-c", &script])
            .current_dir(self.path("mnt"))
            .env("PFIMG", this_program()?)
            .output()
            .map_err(|e| Error::io(e, format!("cannot run {command:?}")))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        self.print(&format!("$ {command}\n{text}"))?;
        self.steps.borrow_mut().push(json!({"command": command, "output": text}));
        if output.status.code().is_some_and(|code| codes.contains(&code)) {
            Ok(text)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(failed(format!("{command}: {}: {}", output.status, said.trim_end())))
        }
    }

    fn keep(self) -> Result<ExitCode> {
        let (store, mnt) = (self.path("store"), self.path("mnt"));
        let mut this = self;
        this.dir.disable_cleanup(true);
        let dir = this.dir.path().to_owned();
        let printed = this.print(&format!(
            "\n# The store stays mounted. Look around in {mnt}; then\n\
             pfimg umount {mnt} && rm -r {dir}\n\n\
             # Try next:\n\
             pfimg --store {store} show after\n\
             pfimg --store {store} verify\n\
             mkdir {mnt}/forks/mine@after && cd {mnt}/forks/mine/world/fs\n",
            mnt = mnt.display(),
            dir = dir.display(),
            store = store.display(),
        ));
        let printed = printed.and_then(|()| this.print_steps(Some(&dir)));
        // Without the unmounting of its drop.
        std::mem::forget(this);
        printed.map(|()| ExitCode::SUCCESS)
    }

    fn finish(self) -> Result<ExitCode> {
        let mnt = self.path("mnt");
        self.print(&format!("\n$ pfimg umount {}\n", mnt.display()))?;
        self.pfimg(&[Path::new("umount"), &mnt])?;
        if is_mounted(&mnt) {
            return Err(failed(format!("{} is still mounted", mnt.display())));
        }
        self.print(
            "\n# Try next:\n\
             pfimg demo --keep                         the same, left mounted to look around\n\
             pfimg images                              the images in ~/.processfork, or --store DIR\n\
             mkdir mnt && pfimg mount ~/.processfork mnt\n\
             pfimg verify                              every blob against its digest\n",
        )?;
        self.print_steps(None)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether something is mounted at `path`; a dead mount, which answers nothing, counts.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parents))) => own != parents,
        (Err(error), _) => error.kind() != std::io::ErrorKind::NotFound,
        _ => false,
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let mnt = self.path("mnt");
        if is_mounted(&mnt) {
            let _ = self.pfimg(&[Path::new("umount"), &mnt]);
        }
        if is_mounted(&mnt) {
            // Deleting the folder would reach through the mount.
            self.dir.disable_cleanup(true);
            eprintln!("pfimg: {} is still mounted: `pfimg umount` it and delete its folder", mnt.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_folder_is_not_mounted_and_proc_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mounted(dir.path()) && !is_mounted(&dir.path().join("nothing")));
        assert!(is_mounted(Path::new("/proc")));
    }

    #[test]
    fn a_step_that_fails_says_which_and_why() {
        let demo = Demo::new(false).unwrap();
        let error = demo.show("echo no >&2; exit 3", &[0, 1]).unwrap_err().to_string();
        assert!(error.starts_with("the demo failed: echo no") && error.ends_with("3: no"), "{error}");
        demo.interrupted.store(true, Ordering::Relaxed);
        assert!(demo.show("true", &[0]).unwrap_err().to_string().contains("interrupted"));
    }
}
