//! Measures workloads on several systems in turn (A B A B …), on a machine that other programs use too.

use std::fs;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::result::Result;
use crate::scratch::Scratch;
use crate::systems::{Memory, Requests, State, System, drop_page_cache, memory};

/// The share of a core that other programs may use on a machine that counts as quiet.
const QUIET: f64 = 0.10;

/// How long to watch the machine in order to find out whether it is quiet.
const LOOK: Duration = Duration::from_millis(200);

/// A clock tick of /proc in seconds.
const TICK: f64 = 0.01;

/// Work to be done in a tree.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    /// Done once on each system before anything is measured.
    pub(crate) prepare: fn(&Job<'_>) -> Result<()>,
    pub(crate) run: fn(&Job<'_>) -> Result<Done>,
}

/// Where work is done.
pub(crate) struct Job<'a> {
    pub(crate) system: &'a dyn System,
    pub(crate) scratch: &'a Scratch,
}

/// Work that was done.
pub(crate) struct Done {
    pub(crate) time: Duration,
    /// A value that must be the same on each system, for instance the number of lines of output.
    pub(crate) check: u64,
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) requests: Requests,
    /// CPU seconds of the daemon, and of all programs outside the bench.
    pub(crate) daemon_cpu: f64,
    pub(crate) foreign_cpu: f64,
    pub(crate) check: u64,
}

/// All measurements of one workload on one system.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) system: &'static str,
    pub(crate) runs: Vec<Run>,
    pub(crate) memory: Memory,
}

impl Series {
    pub(crate) fn new(system: &'static str) -> Self {
        Self { system, runs: Vec::new(), memory: Memory::default() }
    }

    /// Adds a measurement, and looks at the daemon's memory.
    pub(crate) fn push(&mut self, run: Run, system: &dyn System) {
        self.runs.push(run);
        self.memory = system.daemon().map_or_else(Memory::default, memory);
    }

    /// Whether the system counts requests at all.
    pub(crate) fn counts(&self) -> bool {
        self.system == "image" || self.system.starts_with("fork,")
    }

    pub(crate) fn seconds(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.seconds).collect()
    }

    pub(crate) fn median(&self) -> f64 {
        median(self.seconds())
    }

    /// Requests by kind: the median of each.
    pub(crate) fn requests(&self) -> Requests {
        let kinds = self.runs.iter().flat_map(|run| run.requests.keys());
        let count = |kind: &String| {
            let all = self.runs.iter().map(|run| run.requests.get(kind).copied().unwrap_or(0) as f64);
            median(all.collect()).round() as i64
        };
        kinds.map(|kind| (kind.clone(), count(kind))).filter(|(_, count)| *count != 0).collect()
    }
}

/// One workload on all systems. The others are compared with the first.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) series: Vec<Series>,
    /// Remarks.
    pub(crate) notes: Vec<String>,
}

/// Medians and pairs of one system against the first.
pub(crate) struct Ratio {
    pub(crate) of_medians: f64,
    pub(crate) paired: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Row {
    pub(crate) fn new(
        group: &'static str,
        name: &str,
        state: State,
        systems: &[Box<dyn System + '_>],
    ) -> Self {
        let series = systems.iter().map(|system| Series::new(system.name())).collect();
        Self { group, name: name.into(), state, series, notes: Vec::new() }
    }

    /// The name and the remarks.
    pub(crate) fn label(&self) -> String {
        let separator = if self.state.label().is_empty() { "" } else { ", " };
        format!("{}{separator}{}", self.name, self.state.label())
    }

    /// Fails unless every run on every system gave the same result.
    pub(crate) fn agree(&self) -> Result<()> {
        let first = self.series.iter().flat_map(|s| &s.runs).map(|run| run.check).next();
        for series in &self.series {
            if let Some(other) = series.runs.iter().find(|run| Some(run.check) != first) {
                return Err(format!(
                    "{}: {} does not give what {} gives: {:x}, not {:x}",
                    self.label(),
                    series.system,
                    self.series[0].system,
                    other.check,
                    first.unwrap_or(0)
                )
                .into());
            }
        }
        Ok(())
    }

    pub(crate) fn ratio(&self, of: usize) -> Ratio {
        let (base, other) = (self.series[0].seconds(), self.series[of].seconds());
        let pairs: Vec<f64> = base.iter().zip(&other).map(|(base, other)| other / base).collect();
        Ratio {
            of_medians: median(other) / median(base),
            least: pairs.iter().copied().fold(f64::INFINITY, f64::min),
            most: pairs.iter().copied().fold(0.0, f64::max),
            paired: median(pairs),
        }
    }

    /// The share of a core that other programs used during the measurement: the median over all runs.
    pub(crate) fn disturbance(&self) -> f64 {
        let runs = self.series.iter().flat_map(|series| &series.runs);
        median(runs.map(|run| run.foreign_cpu / run.seconds.max(TICK)).collect())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Measures.
pub(crate) struct Bench<'a> {
    pub(crate) scratch: &'a Scratch,
    pub(crate) runs: usize,
    pub(crate) progress: ProgressBar,
    /// How long to wait for quiet before a workload.
    pub(crate) patience: Duration,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(scratch: &'a Scratch, runs: usize, patience: Duration) -> Self {
        // Draws on stderr, and only if that is a terminal.
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed}] {msg}") {
            progress.set_style(style);
        }
        progress.enable_steady_tick(Duration::from_millis(500));
        Self { scratch, runs, progress, patience }
    }

    pub(crate) fn say(&self, what: impl Into<String>) {
        self.progress.set_message(what.into());
    }

    /// Prints a line with the time since the start.
    pub(crate) fn tell(&self, what: &str) {
        let line = format!("[{:>4} s] {what}", self.progress.elapsed().as_secs());
        self.progress.suspend(|| eprintln!("{line}"));
    }

    /// Waits until other programs do not use the machine, or until the patience is used up.
    pub(crate) fn wait_for_quiet(&self, patience: &mut Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < *patience {
            self.scratch.go_on()?;
            // Not /proc/loadavg: for a minute after a workload it shows that workload.
            let before = busy();
            std::thread::sleep(LOOK);
            if (busy() - before) / LOOK.as_secs_f64() < QUIET {
                break;
            }
        }
        *patience = patience.saturating_sub(started.elapsed());
        Ok(())
    }

    /// Measures a workload on each system in turn, in several rounds.
    pub(crate) fn compare(
        &self,
        group: &'static str,
        systems: &mut [Box<dyn System + '_>],
        workload: &Workload,
    ) -> Result<Row> {
        let mut row = Row::new(group, workload.name, workload.state, systems);
        let label = row.label();
        for system in systems.iter_mut() {
            self.say(format!("{label}: preparing {}", system.name()));
            system.reset(State::Warm)?;
            let job = Job { system: &**system, scratch: self.scratch };
            (workload.prepare)(&job)?;
            if workload.state == State::Warm {
                // What was read for the first time has its access times asked for once more by the next pass.
                (workload.run)(&job)?;
            }
        }
        let mut patience = self.patience;
        for round in 0..self.runs {
            self.say(format!("{label}: waiting for quiet"));
            self.wait_for_quiet(&mut patience)?;
            for at in turns(systems.len(), round) {
                let system = &mut systems[at];
                self.scratch.go_on()?;
                self.say(format!("{label}: {} {}/{}", system.name(), round + 1, self.runs));
                if workload.state == State::Unmounted {
                    // What lies on the disk below is cached then, whatever was run before.
                    system.reset(workload.state)?;
                    (workload.run)(&Job { system: &**system, scratch: self.scratch })?;
                }
                system.reset(workload.state)?;
                if workload.state.drops_page_cache() && !drop_page_cache() && row.notes.is_empty() {
                    row.notes
                        .push("only root may empty the page cache: what lies on the disk was cached".into());
                }
                let job = Job { system: &**system, scratch: self.scratch };
                if workload.state == State::Warm {
                    // Each time: during a pause, caches lose pages to other programs.
                    (workload.run)(&job)?;
                }
                let run = measure(job.system, || (workload.run)(&job))?;
                row.series[at].push(run, job.system);
            }
        }
        row.agree()?;
        self.tell(&row.label());
        Ok(row)
    }
}

/// The order in which systems are measured. Each round starts with another one, so that none always follows the same one.
pub(crate) fn turns(systems: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..systems).map(move |n| (n + round) % systems)
}

/// Measures one piece of work on one system.
pub(crate) fn measure(system: &dyn System, work: impl FnOnce() -> Result<Done>) -> Result<Run> {
    // Asking for the counters costs requests itself.
    let one = system.requests()?;
    let two = system.requests()?;
    let asking = difference(&one, &two, &Requests::new());
    let cpu = |pid: Option<u32>| pid.map_or(0.0, |pid| process_cpu(&pid.to_string(), false));
    let (daemon, ours, all) = (cpu(system.daemon()), process_cpu("self", true), busy());
    let done = work()?;
    let all = busy() - all;
    let ours = process_cpu("self", true) - ours;
    let daemon_cpu = cpu(system.daemon()) - daemon;
    let requests = difference(&two, &system.requests()?, &asking);
    Ok(Run {
        seconds: done.time.as_secs_f64(),
        requests,
        daemon_cpu,
        foreign_cpu: (all - ours - daemon_cpu).max(0.0),
        check: done.check,
    })
}

/// The requests between two readings of the counters, without those of one reading.
fn difference(before: &Requests, after: &Requests, asking: &Requests) -> Requests {
    let at = |all: &Requests, kind: &str| all.get(kind).copied().unwrap_or(0);
    after
        .iter()
        .map(|(kind, count)| (kind.clone(), count - at(before, kind) - at(asking, kind)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// CPU seconds of all cores since boot.
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq
    [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum::<f64>() * TICK
}

/// CPU seconds of a process, if wanted with those of children that have ended.
pub(crate) fn process_cpu(pid: &str, children: bool) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold spaces.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields = rest.split_whitespace().skip(11).take(if children { 4 } else { 2 });
    fields.flat_map(str::parse::<f64>).sum::<f64>() * TICK
}
