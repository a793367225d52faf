//! Credentials: which ones a run does not get, and how to pass them to it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::support::for_every_user;
use crate::common::cli::Run;

const KEYS: [(&str, &str); 9] = [
    ("AWS_ACCESS_KEY_ID", "K1"),
    ("AWS_PROFILE", "K2"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "/K3"),
    ("AZURE_STORAGE_KEY", "K4"),
    ("OCI_TOKEN", "K5"),
    ("HF_TOKEN", "K6"),
    ("OPENAI_API_KEY", "K7"),
    ("DB_PASSWORD", "K8"),
    ("CLIENT_SECRET", "K9"),
];

fn with_keys(run: Run) -> Run {
    let run = KEYS.iter().fold(run, |run, (name, value)| run.env(name, value));
    run.env("MY_VAR", "mine").env("PF_SESSION_SECRET", "00".repeat(32))
}

/// The variables of a command with a `K` in their value, or called mine.
const LIST: &str = "env | grep -E '=/?K[0-9]$|^MY_|^PF_SESSION' | sort | tr '\\n' ' '";

#[test]
fn variables_with_credentials_stay_outside_unless_they_are_named() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let shows = |options: &[&str]| {
            let args = [&["run"], options, &["a", "sh", "-c", LIST]].concat();
            with_keys(place.pfimg(&args)).run().exits(0)
        };
        let said = shows(&[]);
        assert_eq!(said.stdout, "MY_VAR=mine ");
        // One line names the variables and the option that passes them.
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        for word in [
            "AWS_ACCESS_KEY_ID, AWS_PROFILE, AZURE_STORAGE_KEY",
            "1 more",
            "--env NAME",
            "env NAME",
            "pfimg/run.conf",
        ] {
            assert!(said.stderr.contains(word), "{word}: {said:?}");
        }
        assert!(!said.stderr.contains("PF_SESSION_SECRET") && !said.stderr.contains("K1"), "{said:?}");
        assert_eq!(shows(&["--quiet"]).stderr, "");
        assert_eq!(place.run(&["a", "true"]).exits(0).stderr, "");
        let said =
            shows(&["--env", "HF_TOKEN", "--env", "aws_*", "--env", "NONE", "--env", "MY_VAR=other=1"]);
        assert_eq!(said.stdout, "AWS_ACCESS_KEY_ID=K1 AWS_PROFILE=K2 HF_TOKEN=K6 MY_VAR=other=1 ");
        assert!(!said.stderr.contains("AWS") && said.stderr.contains("OCI_TOKEN"), "{said:?}");
        // No option passes the secret of ledgers.
        assert_eq!(shows(&["--env", "PF_*", "-q"]).stdout, "MY_VAR=mine ");
        let said = place.run(&["--env", "PF_SESSION_SECRET", "a", "true"]).exits(2);
        assert!(said.stderr.contains("signs ledgers"), "{said:?}");
        assert!(place.run(&["--env", "=x", "a", "true"]).exits(2).stderr.contains("needs a name"));
        // Nor from the processes that run the command.
        let script =
            "cat /proc/1/environ /proc/self/environ 2>/dev/null | tr '\\0' '\\n' | grep -c '=K[0-9]'";
        let said = with_keys(place.pfimg(&["run", "-q", "a", "sh", "-c", script])).run();
        assert_eq!(said.stdout, "0\n");
    });
}

#[test]
fn a_file_of_settings_holds_options_for_every_run() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let config = place.outside("config");
        let shared = place.outside("shared");
        for folder in [&config, &format!("{config}/pfimg"), &shared] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::write(format!("{shared}/file"), "text").unwrap();
        let conf = format!("{config}/pfimg/run.conf");
        let run = |text: &str, args: &[&str]| {
            fs::write(&conf, text).unwrap();
            with_keys(place.pfimg(&[&["run"], args].concat())).env("XDG_CONFIG_HOME", &config).run()
        };
        let text = format!("# for my agent\nenv HF_TOKEN\nenv MY_VAR=set\n\nwrite {shared}\nquiet\n");
        let said = run(&text, &["a", "sh", "-c", &format!("{LIST}; echo new > {shared}/new")]).exits(0);
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("HF_TOKEN=K6 MY_VAR=set ", ""));
        assert_eq!(fs::read_to_string(format!("{shared}/new")).unwrap(), "new\n");
        // The command line comes first.
        let said = run(
            &text,
            &[
                "--env",
                "MY_VAR=typed",
                "--read",
                &shared,
                "a",
                "sh",
                "-c",
                &format!("{LIST}; rm {shared}/new"),
            ],
        );
        assert!(said.code != 0 && said.stdout == "HF_TOKEN=K6 MY_VAR=typed ", "{said:?}");
        let said = run(&format!("hide {shared}\n"), &["-q", "a", "ls", &shared]).exits(0);
        assert_eq!(said.stdout, "");
        let said = run("env A\n\nwriet /x\n", &["a", "true"]).exits(125);
        assert!(said.stderr.contains("run.conf, line 3: \"wriet\" is unknown"), "{said:?}");
        let said = run("read /no/such\n", &["a", "true"]).exits(125);
        assert!(said.stderr.contains("line 1: cannot find /no/such"), "{said:?}");
    });
}

#[test]
fn files_with_credentials_are_hidden_unless_they_are_named() {
    for_every_user(|place| {
        place.sh("a@before", "true").exits(0);
        let home = place.outside("home");
        let config = format!("{home}/moved");
        for folder in
            [".ssh", ".aws", ".gnupg", ".config/gcloud", ".docker", "moved/gh", ".mozilla/firefox", "docs"]
        {
            fs::create_dir_all(format!("{home}/{folder}")).unwrap();
        }
        let files = [
            (".ssh/id", "key"),
            (".aws/credentials", "key"),
            (".gnupg/pubring", "key"),
            (".config/gcloud/db", "key"),
            (".docker/config.json", "key"),
            (".docker/fine", "fine"),
            ("moved/gh/hosts.yml", "key"),
            (".netrc", "key"),
            (".git-credentials", "key"),
            (".mozilla/firefox/logins", "key"),
            (".npmrc", "//r/:_authToken=key"),
            ("sa.json", "key"),
            (".profile", "fine"),
            ("docs/text", "fine"),
            (".ssh/config", "Host x\n"),
        ];
        for (file, text) in files {
            fs::write(format!("{home}/{file}"), text).unwrap();
        }
        fs::set_permissions(format!("{home}/.gnupg"), fs::Permissions::from_mode(0o700)).unwrap();
        Run::program(
            Path::new("chown"),
            ["-R", &place.user.unwrap_or(rustix::process::geteuid().as_raw()).to_string(), &home],
        )
        .run()
        .exits(0);
        let run = |options: &[&str], script: &str| {
            let args = [&["run", "-q"], options, &["a", "sh", "-c", script]].concat();
            let run = place.pfimg(&args).env("HOME", &home).env("XDG_CONFIG_HOME", &config);
            run.env("GOOGLE_APPLICATION_CREDENTIALS", format!("{home}/sa.json")).run()
        };
        let every = files.map(|(file, _)| format!("{home}/{file}")).join(" ");
        let said = run(&[], &format!("cat {every}"));
        assert_eq!(said.stdout, "fine".repeat(3), "{said:?}");
        let said = run(&[], &format!("stat -c %a {home}/.gnupg; ls -A {home}/.ssh; echo x > {home}/.ssh/x"));
        assert!(said.stdout == "700\n" && said.code != 0, "{said:?}");
        // What is named is shown, and no more.
        let named = |path: &str| format!("{home}/{path}");
        let said = run(&["--read", &named(".ssh"), "--read", &named(".netrc")], &format!("cat {every}"));
        assert_eq!(said.stdout, "keyfinekeyfinefineHost x\n", "{said:?}");
        let said = run(
            &["--read", &named(".ssh/config")],
            &format!("ls -A {home}/.ssh; echo x >> {home}/.ssh/config"),
        );
        assert!(said.stdout == "config\n" && said.code != 0, "{said:?}");
        let said =
            run(&["--write", &named(".aws")], &format!("echo new > {home}/.aws/credentials; cat {every}"));
        assert!(said.stdout.starts_with("new\n"), "{said:?}");
        // Showing the folder around them does not show them, and a hidden folder does not reveal their names.
        assert_eq!(run(&["--write", &home], &format!("cat {every}")).stdout, "fine".repeat(3));
        // (The folder of a cache is hidden by its path, which has to be there.)
        assert_eq!(run(&["--hide", &home], &format!("ls -A {home}")).exits(0).stdout, ".cache\n");
        // With the variable comes the file.
        let said =
            run(&["--env", "GOOGLE_APPLICATION_CREDENTIALS"], "cat \"$GOOGLE_APPLICATION_CREDENTIALS\"");
        assert_eq!(said.exits(0).stdout, "key");
    });
}
