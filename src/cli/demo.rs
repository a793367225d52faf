//! `pfimg demo`: shows a store and a mount, with real commands and their real output.

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

/// Show the features of pfimg in a temporary store. Your own store is not used.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the temporary store, and leave it mounted
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let demo = Demo::new(args.json)?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // Ends the demo between two steps, and unmounts the store.
        signal_hook::flag::register(signal, Arc::clone(&demo.interrupted))
            .map_err(|e| Error::io(e, "cannot watch for signals"))?;
    }
    let story::Images { before, after } = story::fill(&Store::create(demo.path("store"))?)?;
    demo.print(&format!(
        "An agent fixed a bug. The store in {} holds the states before and after that:\n\
         two images with files, KV cache, ledger and trace, tagged `before` and `after`.\n",
        demo.dir.path().display()
    ))?;
    demo.mount()?;

    demo.say("Every image is a directory, found by id, tag, agent or age:")?;
    demo.show("ls -F . images tags latest/", &[0])?;
    demo.say("Any tool can read the files of each layer:")?;
    demo.show("ls -F tags/after/*", &[0])?;
    demo.show("ls -l tags/after/world/fs/ tags/after/world/fs/src", &[0])?;
    demo.say(
        "The ledger of the agent's tool calls. A hash chain reveals changes to it (the mount hides the chain's secret):",
    )?;
    demo.show("cat tags/after/effects/ledger.jsonl", &[0])?;
    demo.say("An image's id is the hash of its manifest. Compare the id with the output of sha256sum:")?;
    demo.show("readlink tags/after", &[0])?;
    let sum = demo.show("sha256sum tags/after/manifest.json", &[0])?;
    if sum.split_whitespace().next() != Some(&after.hex()) {
        return Err(failed(format!("sha256sum of the manifest is not the image's id {}", after.hex())));
    }
    demo.say("The changes between the two images:")?;
    let diff = demo.show("diff -r tags/before/world/fs tags/after/world/fs", &[1])?;
    for line in ["Only in tags/after/world/fs: NOTES.md", "Only in tags/before/world/fs/src: scratch.py"] {
        if !diff.lines().any(|found| found == line) {
            return Err(failed(format!(
                "diff does not print {line:?} for {} and {}",
                before.hex(),
                after.hex()
            )));
        }
    }
    try_things(&demo)?;
    if args.keep { demo.keep() } else { demo.finish() }
}

/// Makes two attempts in forks: keeps one, throws the other away.
fn try_things(demo: &Demo) -> Result<()> {
    demo.say(
        "A fork is a writable directory, made instantly from an image of any size. Let an agent try a change:",
    )?;
    demo.show("mkdir forks/try-1@after", &[0])?;
    demo.show("ls forks/try-1/world/fs", &[0])?;
    demo.show("echo 'print(\"moin\")' > forks/try-1/world/fs/src/moin.py", &[0])?;
    if demo.show("pfimg diff try-1", &[0])? != "A src/moin.py\n" {
        return Err(failed("pfimg diff does not show the change"));
    }
    demo.say("A copy of a fork is a branch. It shares all content, and each fork keeps its own changes:")?;
    demo.show("cp -r forks/try-1 forks/try-2", &[0])?;
    demo.show("rm forks/try-2/world/fs/NOTES.md && echo '# try 2' >> forks/try-2/world/fs/README.md", &[0])?;
    let diff = demo.show("diff -r forks/try-1/world/fs forks/try-2/world/fs", &[1])?;
    if diff.lines().last() != Some("> # try 2") || !diff.contains("Only in forks/try-1/world/fs: NOTES.md") {
        return Err(failed("diff does not show the changes of the two attempts"));
    }
    demo.say("Keep the first attempt: seal it. The result is an image that pf can use like its own:")?;
    demo.show("pfimg seal try-1 --tag moin", &[0])?;
    let diff = demo.show("diff -r tags/after/world/fs tags/moin/world/fs", &[1])?;
    if diff.trim_end() != "Only in tags/moin/world/fs/src: moin.py" {
        return Err(failed("diff does not show the sealed change"));
    }
    demo.say("Then the agent breaks everything. Restore the seal:")?;
    demo.show("rm -r forks/try-1/world/fs/src", &[0])?;
    demo.show("pfimg restore try-1 moin", &[0])?;
    demo.show("diff -r tags/moin/world/fs forks/try-1/world/fs && echo the same", &[0])?;
    demo.say("Throw the second attempt away:")?;
    demo.show("pfimg forks", &[0])?;
    demo.show("rm -rf forks/try-2", &[0])?;
    demo.say("Check every blob against its digest:")?;
    demo.show("pfimg verify 2>&1", &[0])?;
    Ok(())
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::io(e, "cannot find this program"))
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Io(None), what.into()).context("the demo failed")
}

/// A temporary directory with a store and a mountpoint. Dropping it unmounts the store.
struct Demo {
    dir: TempDir,
    interrupted: Arc<AtomicBool>,
    /// Whether the demo prints only JSON, at its end.
    json: bool,
    /// The texts and commands so far.
    steps: RefCell<Vec<Value>>,
}

impl Demo {
    fn new(json: bool) -> Result<Self> {
        let doing = "cannot make a temporary directory";
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

    /// Prints the texts and commands as JSON. `kept` is the directory that stays.
    fn print_steps(&self, kept: Option<&Path>) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        print_json(&json!({"steps": self.steps.take(), "kept": kept.map(Path::to_string_lossy)}))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a command with English messages. Its cache and log are in the temporary directory, so that nothing
    /// of them is left.
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
            // Only the demo gets Ctrl-C: it could not unmount a half-made mount.
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
            // The directory with the daemon's log is about to be deleted.
            for log in fs::read_dir(self.path("log/pfimg")).into_iter().flatten().flatten() {
                eprintln!("{}", fs::read_to_string(log.path()).unwrap_or_default().trim_end());
            }
        })
    }

    /// Shows a command and its output. Its exit code must be one of `codes`.
    fn show(&self, command: &str, codes: &[i32]) -> Result<String> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(failed("it was interrupted"));
        }
        // The program's file may have any name.
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
        // Skips the drop, which would unmount the store.
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
             pfimg verify                              check every blob against its digest\n",
        )?;
        self.print_steps(None)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns whether something is mounted at `path`. A dead mount, which does not answer, counts.
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
            // Deleting the directory would delete files through the mount.
            self.dir.disable_cleanup(true);
            eprintln!(
                "pfimg: {} is still mounted: run `pfimg umount` on it and delete its directory",
                mnt.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_not_mounted_and_proc_is() {
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
