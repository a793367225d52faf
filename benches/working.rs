//! Working in a folder: what agents and people do all day, each time in a fresh folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::measure::{Bench, Done, Row, measure, turns};
use crate::result::Result;
use crate::steps::{CHAINS, Chain, Runs, Step};
use crate::systems::{State, System};

const GROUP: &str = "working";

/// Names that scripts and the names of steps use, and what they stand for.
pub(crate) type Amounts = &'static [(&'static str, usize)];

/// How much of everything.
pub(crate) const FULL: Amounts = &[
    ("SMALL", 5000),
    ("ARCHIVED", 6000),
    ("SOURCES", 200),
    ("MODULES", 15),
    ("WHEEL", 1500),
    ("IMPORTS", 10),
    ("PACKAGES", 8),
    ("APPENDS", 50_000),
    ("MIB", 1024),
    ("SPOTS", 20_000),
    ("COMMITS", 5000),
    ("SYNCED", 300),
];

/// The same for a run of a few minutes.
pub(crate) const QUICK: Amounts = &[
    ("SMALL", 1000),
    ("ARCHIVED", 1000),
    ("SOURCES", 40),
    ("MODULES", 8),
    ("WHEEL", 200),
    ("IMPORTS", 3),
    ("PACKAGES", 2),
    ("APPENDS", 5000),
    ("MIB", 64),
    ("SPOTS", 4000),
    ("COMMITS", 500),
    ("SYNCED", 50),
];

const INPUTS: &[(&str, &str)] = &[
    ("inputs.sh", include_str!("given/inputs.sh")),
    ("small.py", include_str!("given/small.py")),
    ("data.py", include_str!("given/data.py")),
    (
        "gitconfig",
        "[user]\n\tname = bench\n\temail = bench@localhost\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n",
    ),
];

/// Runs scripts.
struct Shell {
    inputs: PathBuf,
    path: OsString,
    amounts: Amounts,
}

impl Shell {
    fn new(inputs: PathBuf, amounts: Amounts) -> Self {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        // The interpreter itself instead of a script that looks for it and takes longer than what is measured.
        let asked =
            Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]).output();
        let python = asked.ok().and_then(|said| String::from_utf8(said.stdout).ok()).map(PathBuf::from);
        if let Some(folder) = python.as_deref().and_then(Path::parent) {
            path = [folder.as_os_str(), ":".as_ref(), &path].into_iter().collect();
        }
        Self { inputs, path, amounts }
    }

    /// Runs a script; gives what it printed. Its complaints go to the terminal, since only failures have any.
    fn run(&self, script: &str, folder: &Path, extra: &[(&str, &Path)]) -> Result<Vec<u8>> {
        let home = |name: &str| OsString::from(std::env::home_dir().unwrap_or_default().join(name));
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script])
            .env("IN", &self.inputs)
            .env("D", folder)
            .env("HOME", &self.inputs)
            .env("PATH", &self.path)
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_GLOBAL", self.inputs.join("gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z")
            .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
            .env("CARGO_HOME", std::env::var_os("CARGO_HOME").unwrap_or_else(|| home(".cargo")))
            .env("RUSTUP_HOME", std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| home(".rustup")))
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .env_remove("CARGO_TARGET_DIR")
            .envs(self.amounts.iter().map(|(name, amount)| (name, amount.to_string())))
            .envs(extra.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let output = bash.output()?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!("in {}: {script}: {}", folder.display(), output.status).into())
        }
    }

    /// A name with its numbers.
    fn name(&self, name: &str) -> String {
        self.amounts.iter().fold(name.to_owned(), |name, (key, amount)| {
            name.replace(&format!("${key}"), &crate::text::thousands(*amount as u64))
        })
    }

    fn lacks(&self, chain: &Chain) -> Option<&'static str> {
        let there = |program: &&&str| {
            let asked = Command::new("sh")
                .args(["-c", "command -v \"$0\" >/dev/null", program])
                .env("PATH", &self.path)
                .status();
            !asked.is_ok_and(|status| status.success())
        };
        chain.needs.iter().find(there).copied()
    }
}

/// Measures every chain whose name contains `filter` on each system in turn. `tree` is a folder with many
/// files.
pub(crate) fn measure_all(
    bench: &Bench<'_>,
    systems: &mut [Box<dyn System + '_>],
    tree: &Path,
    amounts: Amounts,
    filter: &str,
) -> Result<Vec<Row>> {
    let shell = Shell::new(bench.scratch.fresh("inputs")?, amounts);
    for (name, text) in INPUTS {
        fs::write(shell.inputs.join(name), text)?;
    }
    let meant = |chain: &&Chain| {
        let steps = chain.steps.iter().chain(&chain.deletes).map(|step| shell.name(step.name));
        chain.name.contains(filter) || steps.into_iter().any(|name| name.contains(filter))
    };
    let mut chains: Vec<&Chain> = CHAINS.iter().filter(meant).collect();
    chains.retain(|chain| {
        let lacks = shell.lacks(chain);
        if let Some(program) = lacks {
            bench.tell(&format!("{} is left out: {program} is not installed", chain.name));
        }
        lacks.is_none()
    });
    bench.say("preparing what the steps take");
    shell.run(". $IN/inputs.sh", &shell.inputs, &[("TREE", tree)])?;
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    for chain in chains {
        let mut measured: Vec<_> =
            chain.steps.iter().map(|step| Measured::new(&shell, step, systems)).collect();
        let mut folders = Vec::new();
        for round in 0..bench.runs {
            let made = fresh_folders(bench, &shell, systems, chain, round)?;
            for measured in &mut measured {
                measured.round(bench, &shell, systems, &made, round)?;
            }
            if chain.large {
                made.iter().try_for_each(fs::remove_dir_all)?;
            }
            folders.push(made);
        }
        for measured in measured {
            rows.push(measured.finish(bench)?);
        }
        if let Some(step) = &chain.deletes {
            left.push((step, folders));
        }
    }
    for (step, folders) in left {
        let mut measured = Measured::new(&shell, step, systems);
        for (round, folders) in folders.iter().enumerate() {
            measured.round(bench, &shell, systems, folders, round)?;
        }
        rows.push(measured.finish(bench)?);
    }
    Ok(rows)
}

/// A folder for a chain on each system.
fn fresh_folders(
    bench: &Bench<'_>,
    shell: &Shell,
    systems: &mut [Box<dyn System + '_>],
    chain: &Chain,
    round: usize,
) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for system in systems {
        bench.scratch.go_on()?;
        bench.say(format!("{}: preparing {}", chain.name, system.name()));
        system.reset(State::Once)?;
        let work = system.work().ok_or("there is nowhere to work")?;
        let folder = work.join(format!("{}-{round}", chain.name));
        fs::create_dir(&folder)?;
        if !chain.before.is_empty() {
            shell.run(chain.before, &folder, &[])?;
        }
        folders.push(folder);
    }
    Ok(folders)
}

/// A step and its row.
struct Measured<'a> {
    step: &'a Step,
    row: Row,
    /// What the first system's check said.
    checked: Option<Vec<u8>>,
    patience: std::time::Duration,
}

impl<'a> Measured<'a> {
    fn new(shell: &Shell, step: &'a Step, systems: &[Box<dyn System + '_>]) -> Self {
        let state = if step.before_it == Runs::Warm { State::Warm } else { State::Once };
        let row = Row::new(GROUP, &shell.name(step.name), state, systems);
        Self { step, row, checked: None, patience: std::time::Duration::MAX }
    }

    /// Measures it on each system, in the folder made there.
    fn round(
        &mut self,
        bench: &Bench<'_>,
        shell: &Shell,
        systems: &[Box<dyn System + '_>],
        folders: &[PathBuf],
        round: usize,
    ) -> Result<()> {
        self.patience = self.patience.min(bench.patience);
        bench.say(format!("{}: waiting for quiet", self.row.name));
        bench.wait_for_quiet(&mut self.patience)?;
        for at in turns(systems.len(), round) {
            bench.scratch.go_on()?;
            let (system, folder) = (&*systems[at], &folders[at]);
            bench.say(format!("{}: {} {}/{}", self.row.name, system.name(), round + 1, bench.runs));
            if !self.step.before.is_empty() {
                shell.run(self.step.before, folder, &[])?;
            }
            // Earlier writes, here or elsewhere, must not reach the disk during the measurement.
            rustix::fs::sync();
            let before = match self.step.before_it {
                Runs::None => 0,
                Runs::Once => 1,
                Runs::Warm => 2,
            };
            for _ in 0..before {
                shell.run(self.step.work, folder, &[])?;
            }
            let run = measure(system, || {
                let started = Instant::now();
                let said = shell.run(self.step.work, folder, &[])?;
                Ok(Done { time: started.elapsed(), check: u64::from(crc32c::crc32c(&said)) })
            })?;
            self.row.series[at].push(run, system);
        }
        if round == 0 && !self.step.check.is_empty() {
            self.check(shell, systems, folders)?;
        }
        Ok(())
    }

    /// Fails unless the step led to the same on every system.
    fn check(&mut self, shell: &Shell, systems: &[Box<dyn System + '_>], folders: &[PathBuf]) -> Result<()> {
        for (system, folder) in systems.iter().zip(folders) {
            let said = shell.run(self.step.check, folder, &[])?;
            let Some(first) = &self.checked else {
                self.checked = Some(said);
                continue;
            };
            if *first != said {
                let (first, said) = (String::from_utf8_lossy(first), String::from_utf8_lossy(&said));
                let differ = first.lines().zip(said.lines()).find(|(a, b)| a != b);
                let (a, b) = differ.unwrap_or(("one ends", "before the other"));
                return Err(format!(
                    "{}: {} does not lead to what {} leads to:\n{b}\ninstead of\n{a}",
                    self.row.name,
                    system.name(),
                    systems[0].name()
                )
                .into());
            }
        }
        Ok(())
    }

    fn finish(self, bench: &Bench<'_>) -> Result<Row> {
        self.row.agree()?;
        bench.tell(&self.row.label());
        Ok(self.row)
    }
}
