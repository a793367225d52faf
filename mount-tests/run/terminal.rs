//! Commands at a terminal, and signals between them and their caller.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::support::{Place, Running, clean_signals, processes_with};
use crate::common::cli::{Run, clean_command};
use crate::common::forks::world;
use crate::common::{PATIENCE, wait_until};

/// A shell at a separate terminal.
struct Shell {
    program: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    /// Output that was shown and not yet checked.
    rest: String,
    prompts: usize,
}

impl Shell {
    fn new(place: &Place) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let name = ptsname(&keys, Vec::new()).unwrap().into_string().unwrap();
        let terminal = || File::options().read(true).write(true).open(&name).unwrap();
        let mut command = clean_command(Path::new("setsid"));
        command.args(["--ctty", "--wait", "env", "--default-signal", "bash", "--norc", "--noprofile", "-i"]);
        command.env("PS1", "OUT> ").env("PF_STORE", place.store.root()).env("P", &place.program);
        // Lines as they are, without what an editor of lines paints.
        command.env("TERM", "dumb").env("INPUTRC", "/dev/null").env_remove("HISTFILE");
        let shell = command.stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
        let (send, shown) = channel();
        let keys = File::from(keys);
        let mut screen = keys.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = screen.read(&mut buffer) {
                if send.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut this = Self { program: shell, keys, shown, rest: String::new(), prompts: 0 };
        this.sees("OUT> ");
        this
    }

    /// Waits until something is shown.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        self.until(text);
    }

    /// Does the same, and returns what was shown before.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.rest.find(text) {
                return self.rest.drain(..at + text.len()).collect();
            }
            let left = until.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.shown.recv_timeout(left) else {
                panic!("{text:?} is not shown: {:?}", self.rest)
            };
            self.rest.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    #[track_caller]
    fn types(&mut self, keys: &str, then: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.sees(then);
    }
}

/// Reads the output of a shell, without earlier output.
impl Shell {
    #[track_caller]
    fn prompts(&mut self, prompt: &str) {
        self.sees(prompt);
        self.prompts += 1;
        // In two words, so that the typed text differs from the expected output.
        let mark = self.prompts;
        self.types(&format!("echo mark'-'{mark}\n"), &format!("mark-{mark}\r\n"));
        self.sees(prompt);
    }

    /// Types a command that ends, and sees what it says.
    #[track_caller]
    fn does(&mut self, command: &str, says: &str, prompt: &str) {
        self.types(&format!("{command}\n"), "\n");
        self.sees(says);
        self.prompts(prompt);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

#[test]
fn a_terminal_is_the_commands_when_it_wants_it_and_the_shells_again() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    let mut shell = Shell::new(&place);
    let ready = world(&place.mount, "a").join("ready");
    let started = || {
        wait_until("it runs", || ready.exists());
        std::fs::remove_file(&ready).unwrap();
    };
    let sleep = "$P run a sh -c ': > ready; exec sleep 1000'";
    // Ctrl-C ends what runs, loops and scripts.
    shell.types(&format!("{sleep}\n"), "\n");
    started();
    shell.types(CTRL_C, "\n");
    shell.prompts("OUT> ");
    for script in [
        format!("for i in 1 2; do {sleep}; done; echo went-on"),
        format!("bash -c \"{sleep}; echo went-on\""),
    ] {
        shell.types(&format!("{script}\n"), "\n");
        started();
        shell.types(CTRL_C, "\n");
        shell.types("echo code $?\n", "code 130\r\n");
        shell.prompts("OUT> ");
    }
    // Ctrl-Z stops it, fg continues it.
    shell.types(
        "$P run a sh -c 'trap \"echo goes-on\" CONT; : > ready; while :; do sleep 0.02; done'\n",
        "\n",
    );
    started();
    shell.types(CTRL_Z, "Stopped");
    shell.prompts("OUT> ");
    shell.types("fg\n", "\r\ngoes-on");
    shell.types(CTRL_C, "\n");
    shell.prompts("OUT> ");
    // A shell in it has the terminal, with jobs, and can be suspended.
    shell.types("$P run a env PS1='IN> ' bash --norc --noprofile -i\n", "\n");
    shell.prompts("IN> ");
    shell.does("tty", "/dev/console", "IN> ");
    shell.types("sh -c ': > ready; exec sleep 1000'\n", "\n");
    started();
    shell.types(CTRL_Z, "Stopped");
    shell.prompts("IN> ");
    shell.does("kill -KILL %1", "\n", "IN> ");
    // Types only once the reading program has started: before that, shells use other terminal modes.
    let reads = "sh -c 'echo up-$((1 + 1)); read -r word; echo \"<$word>\"'";
    shell.types(&format!("{reads}\n"), "up-2");
    shell.types("typed\n", "<typed>");
    shell.prompts("IN> ");
    shell.types("suspend -f\n", "Stopped");
    shell.prompts("OUT> ");
    shell.types("fg\n", "\n");
    shell.prompts("IN> ");
    shell.types("exit 7\n", "OUT> ");
    shell.does("echo code $?", "code 7", "OUT> ");
    // One in the background that reads waits for the foreground.
    shell.types(&format!("$P run a {reads} &\n"), "up-2");
    // The job's output may come before or after the prompt, so this asks for another prompt.
    shell.types("\n", "\n");
    shell.prompts("OUT> ");
    shell.types("fg\n", "run a sh -c");
    shell.types("typed\n", "<typed>");
    shell.prompts("OUT> ");
    shell.types(&format!("$P run a {reads} | cat\n"), "up-2");
    shell.types("piped\n", "<piped>");
    shell.prompts("OUT> ");
    // Several commands that do not read do not use the terminal, even if it stops background processes that write.
    shell.does("(for i in 1 2 3; do $P run a sh -c \"echo one-$i\" & done; wait)", "one-3", "OUT> ");
    shell.does("stty tostop; $P run a echo told; stty -tostop", "told\r\n", "OUT> ");
    // With the terminal, all ends.
    shell.types("PFIMG_TEST_HANGS=up $P run a sh -c ': > ready; exec sleep 1000'\n", "\n");
    started();
    assert!(!processes_with("PFIMG_TEST_HANGS=up").is_empty());
    drop(shell);
    wait_until("it has ended", || processes_with("PFIMG_TEST_HANGS=up").is_empty());
}

#[test]
fn signals_reach_the_command_once_and_none_of_its_own_the_caller() {
    let place = Place::new();
    place.sh("a@before", "true").exits(0);
    // Signals to the command's own group do not reach the caller.
    let script = format!("{} run a sh -c 'kill -TERM 0; sleep 1000'; echo code $?", place.program.display());
    let said = Run::program(Path::new("/bin/sh"), ["-c", &script]).env("PF_STORE", place.store.root()).run();
    assert_eq!(said.exits(0).stdout, "code 143\n");
    // As timeout(1) sends them: to the process, and to its group.
    let count = "import signal, sys, time
counts = {}
def count(number, frame): counts[number] = counts.get(number, 0) + 1
for name in ('SIGTERM', 'SIGHUP', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGALRM'): signal.signal(getattr(signal, name), count)
open('ready', 'w')
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and len(counts) < int(sys.argv[2]): time.sleep(0.01)
time.sleep(0.2)
print(sorted(counts.items()))";
    let counted = |seconds: &str| {
        let program = place.program.to_str().unwrap();
        let timeout = [seconds, program, "run", "a", "python3", "-c", count, "30", "1"];
        let run = Run::program(Path::new("timeout"), timeout).env("PF_STORE", place.store.root());
        run.run().stdout
    };
    // timeout sends the two signals one after the other, and may be delayed between them. The program may be delayed before it counts.
    assert!(["0.5", "1", "2", "4", "8"].into_iter().any(|seconds| counted(seconds) == "[(15, 1)]\n"));
    std::fs::remove_file(world(&place.mount, "a").join("ready")).unwrap();
    let mut command = clean_signals(&place.program);
    command.args(["run", "a", "python3", "-c", count, "30", "6"]).env("PF_STORE", place.store.root());
    let mut run = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    wait_until("it runs", || world(&place.mount, "a").join("ready").exists());
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::USR1, Signal::USR2, Signal::ALARM] {
        run.signal(signal);
    }
    let mut said = String::new();
    run.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "[(1, 1), (2, 1), (10, 1), (12, 1), (14, 1), (15, 1)]\n");
    assert_eq!(run.code(), Some(0));
    // The caller sees that SIGINT ended the command, as without `pfimg run`.
    let mut run = place.spawn("a", ": > again; exec sleep 1000");
    wait_until("it runs", || world(&place.mount, "a").join("again").exists());
    run.signal(Signal::INT);
    assert_eq!(run.code(), None);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&run.0.wait().unwrap()), Some(libc::SIGINT));
    // A command that is stopped stops its caller's view of it, and continues with it.
    let mut run = place.spawn("a", "kill -STOP $$; exit 4");
    let state = |run: &Running| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.0.id())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    wait_until("it is stopped", || state(&run));
    run.signal(Signal::CONT);
    assert_eq!(run.code(), Some(4));
}

#[test]
fn runs_side_by_side_have_a_live_line_each_and_all_end_by_ctrl_c() {
    let place = Place::new();
    for fork in ["a", "b"] {
        place.sh(&format!("{fork}@before"), "true").exits(0);
    }
    let mut shell = Shell::new(&place);
    let command = "TERM=xterm $P run a b -- sh -c 'echo works-in-$PFIMG_FORK; while [ ! -e go ]; do sleep 0.01; done; exit 3'";
    let typed = format!("{command}\n");
    shell.types(&typed, "works-in-b");
    for fork in ["a", "b"] {
        std::fs::write(world(&place.mount, fork).join("go"), "").unwrap();
    }
    shell.sees("2 runs in ");
    shell.sees("largest exit code 3. Output: pfimg output a");
    shell.prompts("OUT> ");
    for fork in ["a", "b"] {
        std::fs::remove_file(world(&place.mount, fork).join("go")).unwrap();
    }
    shell.types(&format!("for i in 1 2; do {command}; done; echo went'-'on\n"), "works-in-b");
    shell.types(CTRL_C, "largest exit code 130");
    shell.sees("OUT> ");
    assert!(!shell.rest.contains("went-on"), "{}", shell.rest);
    shell.does("echo $?", "130", "OUT> ");
}

#[test]
fn a_comparison_goes_through_a_pager_and_has_colours_at_a_terminal_alone() {
    let place = Place::new();
    place.sh("a@before", "echo 1 > new").exits(0);
    let mut shell = Shell::new(&place);
    shell.does("PFIMG_PAGER='sed s/^/paged:/' PAGER=false $P diff a", "paged:A new\r\n", "OUT> ");
    shell.does("echo '<'; PFIMG_PAGER='sed s/^/paged:/' $P diff a --no-pager", "<\r\nA new\r\n", "OUT> ");
    shell.does(
        "echo '<'; PFIMG_PAGER='sed s/^/paged:/' $P diff a 2> /dev/null | cat",
        "<\r\nA new\r\n",
        "OUT> ",
    );
    // The same by default, where all fits on the screen.
    shell.does("TERM=xterm $P diff a --stat", "1 file changed, 1 insertion(+)", "OUT> ");
    // A pager that reads nothing makes no failure.
    shell.does("GIT_PAGER=true $P diff a -p; echo code $?", "code 0", "OUT> ");
    let coloured = "\x1b[1mdiff --git a/new b/new\x1b[m";
    shell.does("env -u NO_COLOR TERM=xterm $P diff a -p --no-pager", coloured, "OUT> ");
    let plain = "<\r\ndiff --git a/new b/new\r\n";
    shell.does("echo '<'; TERM=xterm $P diff a -p --no-pager", plain, "OUT> ");
}

#[test]
fn a_quiet_run_shows_no_progress_at_a_terminal() {
    let place = Place::new();
    let mut shell = Shell::new(&place);
    let project = place.outside("project");
    // Large enough that the import takes a while.
    let many = "for n in $(seq 4000); do echo $n > $n; done";
    shell.does(&format!("mkdir {project} && cd {project} && {many}; echo made'-'it"), "made-it", "OUT> ");
    for (options, is_shown) in [("-q", false), ("", true)] {
        // In two words, so that the typed text differs from the expected output.
        shell.types(&format!("touch *; TERM=xterm $P run {options} -- true; echo it'-'ended\n"), "\n");
        let before = shell.until("it-ended");
        assert_eq!(before.contains("files and directories found"), is_shown, "{options}: {before:?}");
        shell.prompts("OUT> ");
    }
}
