//! A roll back in the middle of a run: the seals of a fork in which an agent works, and paths of it restored.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use super::support::Place;
use crate::common::forks::{tag, world};
use crate::common::wait_until;

/// An agent that runs the lines that it reads.
const AGENT: &str = "#!/bin/sh\nwhile read -r line; do eval \"$line\"; echo done; done\n";

/// The lines of a table without their times, blanks as one.
fn table(text: &str) -> Vec<String> {
    let words = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        [&words[..1], &words[2..]].concat().join(" ")
    };
    text.lines().map(words).collect()
}

#[test]
fn an_agent_that_deleted_a_folder_is_rolled_back_while_it_runs() {
    let place = Place::sealing("idle:400ms", None, |mount| mount);
    tag(&place.store, "project", &place.image);
    let pfimg = |args: &[&str]| place.pfimg(args).run();
    // The project: four texts and a folder of 980.
    pfimg(&["fork", "project", "made"]).exits(0);
    let made = world(&place.mount, "made");
    fs::create_dir_all(made.join("docs/p")).unwrap();
    for n in 0..980 {
        fs::write(made.join(format!("docs/p/{n}.md")), format!("{n}")).unwrap();
    }
    pfimg(&["seal", "made"]).exits(0);
    pfimg(&["untag", "project"]).exits(0);
    let image = pfimg(&["tag", "made@1", "project"]).exits(0);
    drop(image);
    let agent = place.outside("my-agent");
    fs::write(&agent, AGENT).unwrap();
    fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let mut command = super::support::clean_signals(&place.program);
    command.args(["run", "docs@project", &agent]).env("PF_STORE", place.store.root());
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut orders, mut answers) =
        (running.stdin.take().unwrap(), BufReader::new(running.stdout.take().unwrap()));
    let mut order = |line: &str| {
        writeln!(orders, "{line}").unwrap();
        let mut said = String::new();
        answers.read_line(&mut said).unwrap();
        assert_eq!(said, "done\n", "{line}");
    };
    let sealed = |seals: usize| {
        wait_until("the fork is sealed", || {
            let rows = pfimg(&["seals", "docs", "--json"]).exits(0).json()["seals"].clone();
            let rows = rows.as_array().unwrap();
            rows.len() == seals + 2 && rows.last().unwrap()["changes"]["deleted"] == 0
        });
    };
    order("for n in README src/main.rs src/lib.rs bin/tool; do echo tidy >> $n; done");
    sealed(1);
    order("rm -r docs");
    sealed(2);
    order("echo more >> README");
    let text = pfimg(&["seals", "docs"]).exits(0).stdout;
    let id = pfimg(&["show", "project", "--json"]).exits(0).json()["id"].as_str().unwrap()[7..14].to_owned();
    assert_eq!(
        table(&text),
        [
            "NO AFTER CHANGES".to_owned(),
            format!("0 made of project ({id})"),
            "1 idle, in my-agent ~4".to_owned(),
            "2 idle, in my-agent -980 docs/".to_owned(),
            "* now ~1".to_owned(),
        ],
        "{text}"
    );
    let said = pfimg(&["restore", "docs@1", "--", "docs"]).exits(0);
    assert_eq!(said.stdout, "A docs/  (980 files)\n", "{said:?}");
    assert_eq!(
        said.stderr,
        "pfimg: docs/ of docs is as in seal 1; the state before this is seal 3. Undo: pfimg restore docs --undo\n"
    );
    // The agent sees it, and its last change stays.
    order(
        "[ $(ls docs/p | wc -l) = 980 ] && [ $(cat docs/p/7.md) = 7 ] && tail -n 1 README | grep -qx more || exit 9",
    );
    let back = pfimg(&["restore", "docs@0"]).exits(0);
    assert!(back.stderr.contains("docs is as in seal 0; the state before this is seal 4."), "{back:?}");
    order("cd . && ! grep -q tidy README || exit 9");
    let log = pfimg(&["seals", "docs"]).exits(0).stdout;
    assert_eq!(
        table(&log)[4..7],
        ["3 before restore of docs/ ~1", "4 before restore of 0 +980 docs/", "5 restored 0 ~4"]
            .map(str::to_owned),
        "{log}"
    );
    let log = pfimg(&["log", "docs"]).exits(0).stdout;
    for words in ["docs@3 (before restore of docs/)", "docs@4 (before restore of 0)", "docs@5 (restored 0)"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    drop(orders);
    assert!(running.wait().unwrap().success());
}

#[test]
fn a_run_first_seals_unsealed_changes_of_an_existing_fork_and_no_clean_one() {
    let place = Place::new();
    let pfimg = |args: &[&str]| place.pfimg(args).run();
    pfimg(&["fork", "before", "f"]).exits(0);
    let reasons = || {
        let rows = pfimg(&["seals", "f", "--json"]).exits(0).json()["seals"].clone();
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["after"].as_str().unwrap().to_owned()).skip(1).collect::<Vec<_>>()
    };
    place.run(&["f", "true"]).exits(0);
    assert_eq!(reasons(), ["now"]);
    fs::write(world(&place.mount, "f").join("mine"), "mine").unwrap();
    place.run(&["f", "/bin/rm", "mine"]).exits(0);
    assert_eq!(reasons(), ["before run of rm", "now"]);
    // Also with the command behind two dashes, and with --quiet.
    place.run(&["--quiet", "f", "--", "sh", "-c", "echo x > made"]).exits(0);
    assert_eq!(reasons(), ["before run of rm", "before run of sh", "now"]);
    pfimg(&["restore", "f@1", "--", "mine"]).exits(0);
    assert_eq!(fs::read(world(&place.mount, "f").join("mine")).unwrap(), b"mine");
    assert!(world(&place.mount, "f").join("made").exists());
}
