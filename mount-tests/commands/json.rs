//! `--json` on every command: one object on stdout, whether it succeeds or fails.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::support::{Output, RealStore, command, run};

/// The one object on stdout, with the right envelope.
#[track_caller]
fn envelope(output: &Output, name: Option<&str>) -> Value {
    let whole: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("not one object ({e}): {}\n{}", output.stdout, output.stderr));
    let object = whole.as_object().unwrap();
    assert_eq!(object["pfimg"], 1, "{whole}");
    assert_eq!(object["command"].as_str(), name, "{whole}");
    assert_eq!(object.len(), 3, "{whole}");
    let both = (object.contains_key("result"), object.contains_key("error"));
    assert!(both.0 != both.1, "{whole}");
    whole
}

/// The kind of the error, whose parts are all there.
#[track_caller]
fn kind(output: &Output, name: Option<&str>) -> String {
    let whole = envelope(output, name);
    let error = whole["error"].as_object().unwrap_or_else(|| panic!("no error: {whole}"));
    assert_eq!(error.keys().collect::<Vec<_>>(), ["hint", "kind", "message", "path"], "{whole}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && !message.contains('\n'), "{whole}");
    assert!(error["hint"].is_null() || error["hint"].is_string(), "{whole}");
    assert!(output.stderr.contains(message.split(':').next().unwrap()), "{whole}: {}", output.stderr);
    error["kind"].as_str().unwrap().to_owned()
}

/// A command with what it is run with: once as it should be, with its exit code; and once so that it fails, with the exit code and the
/// kind of the error.
type Case<'a> = (&'a str, Vec<&'a str>, i32, Vec<&'a str>, i32, &'a str);

#[test]
fn every_command_prints_one_object_with_json_on_a_good_input_and_on_a_bad_one() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (mnt, project, out, none) = (path("mnt"), path("project"), path("out"), path("none"));
    for folder in [&mnt, &project] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(dir.path().join("project/file"), "x").unwrap();
    let pack = concat!(env!("CARGO_MANIFEST_DIR"), "/mount-tests/golden/crashpack/first");
    // In an order in which each finds what it needs.
    let cases: Vec<Case<'_>> = vec![
        ("images", vec![], 0, vec!["--store", &none], 5, "not-a-store"),
        ("tag", vec![&id, "first"], 0, vec![&id, "7"], 2, "invalid-input"),
        ("cp", vec!["first", "second"], 0, vec!["first", "second"], 6, "exists"),
        ("tags", vec![], 0, vec!["--store", &project], 5, "not-a-store"),
        ("untag", vec!["second"], 0, vec!["second"], 5, "not-found"),
        ("show", vec!["first"], 0, vec!["frist"], 5, "not-found"),
        ("log", vec![], 0, vec!["nothing"], 5, "not-found"),
        ("verify", vec![], 0, vec!["nothing"], 5, "not-found"),
        ("audit", vec![], 0, vec!["--events", &none], 5, "not-found"),
        ("replay", vec![pack], 1, vec![&none], 5, "not-found"),
        ("import", vec![&project, "--tag", "project"], 0, vec![&none], 5, "not-found"),
        ("export", vec!["project", &out], 0, vec!["project", &project], 7, "not-empty"),
        ("fixture", vec!["--world-files", "1"], 0, vec!["--tag", "project"], 6, "exists"),
        ("mount", vec![&mnt], 0, vec![&project], 7, "not-empty"),
        ("status", vec![&mnt], 0, vec![&project], 5, "not-found"),
        // The command's own output is its own.
        ("run", vec!["--help"], 0, vec!["b@nothing", "--", "true"], 125, "not-found"),
        ("output", vec!["--help"], 0, vec!["nothing"], 5, "not-found"),
        ("fork", vec!["project", "a"], 0, vec!["project", "a"], 6, "exists"),
        ("mv", vec!["a", "b"], 0, vec!["a", "b"], 5, "not-found"),
        ("forks", vec![], 0, vec!["--store", &none], 5, "not-a-store"),
        ("diff", vec!["b"], 0, vec!["a"], 5, "not-found"),
        ("seal", vec!["b"], 0, vec!["a"], 5, "not-found"),
        ("apply", vec!["b", &project], 0, vec!["a"], 5, "not-found"),
        ("seals", vec!["b"], 0, vec!["a"], 5, "not-found"),
        ("restore", vec!["b@0"], 0, vec!["b@9"], 5, "not-found"),
        ("discard", vec!["b"], 0, vec!["b"], 5, "not-found"),
        ("umount", vec![&mnt], 0, vec![&project], 5, "not-found"),
        ("prune", vec!["--keep-last", "1"], 0, vec![], 2, "invalid-input"),
        ("gc", vec!["--dry-run"], 0, vec!["--grace", "soon"], 2, "usage"),
        ("demo", vec![], 0, vec!["more"], 2, "usage"),
    ];
    let named: BTreeSet<String> = cases.iter().map(|case| case.0.to_owned()).collect();
    let definition = pfimg::cli::definition();
    let shown = definition.get_subcommands().filter(|command| !command.is_hide_set());
    let all: BTreeSet<String> = shown.map(|command| command.get_name().to_owned()).collect();
    assert_eq!(named, all, "a command is not in this test");
    let json = |name: &str, args: &[&str]| {
        let mut pfimg = command(&[name, "--json"]);
        // The cache and the log of the mount.
        for variable in ["XDG_CACHE_HOME", "XDG_STATE_HOME"] {
            pfimg.env(variable, dir.path().join("own"));
        }
        run(pfimg.args(args).env("PF_STORE", store.root()))
    };
    for (name, good, code, bad, bad_code, bad_kind) in cases {
        let output = json(name, &good).exits(code);
        let whole = envelope(&output, Some(name));
        assert!(whole["result"].is_object(), "{whole}");
        let output = json(name, &bad).exits(bad_code);
        assert_eq!(kind(&output, Some(name)), bad_kind, "{name} {bad:?}");
        let output = json(name, &["--no-such-option"]).exits(2);
        assert_eq!(kind(&output, Some(name)), "usage", "{name}");
    }
}

#[test]
fn json_may_stand_before_the_command_and_an_unknown_command_is_an_error_as_well() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    let pfimg = |args: &[&str]| run(command(args).env("PF_STORE", store.root()));
    let whole = envelope(&pfimg(&["--json", "images"]).exits(0), Some("images"));
    assert!(whole["result"]["images"][0]["id"].as_str().unwrap().contains(&id));
    let store_option = store.root().to_str().unwrap();
    envelope(&pfimg(&["--store", store_option, "--json", "unmount", "/"]).exits(5), Some("umount"));
    for args in [&["--json"][..], &["--json", "imagse"], &["imagse", "--json"]] {
        assert_eq!(kind(&pfimg(args).exits(2), None), "usage", "{args:?}");
    }
    let near = envelope(&pfimg(&["--json", "imagse"]).exits(2), None);
    assert!(near["error"]["hint"].as_str().unwrap().contains("images"), "{near}");
    let help = envelope(&pfimg(&["show", "--json", "--help"]).exits(0), Some("show"));
    assert!(help["result"]["text"].as_str().unwrap().contains("Usage: pfimg show"), "{help}");
    // Behind the end of options it is a word as any other.
    let said = pfimg(&["show", "--", "--json"]).exits(5);
    assert!(said.stdout.is_empty() && said.stderr.contains("\"--json\""), "{}", said.stderr);
}

#[test]
fn an_error_names_its_path_and_similar_names() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    let pfimg = |args: &[&str]| run(command(args).env("PF_STORE", store.root()));
    pfimg(&["tag", &id, "project"]).exits(0);
    pfimg(&["fork", "project", "try-1"]).exits(0);
    let error = |args: &[&str]| {
        let name = args.first().copied();
        envelope(&pfimg(&[args, &["--json"]].concat()), name)["error"].clone()
    };
    let none = error(&["images", "--store", "/no/such/store"]);
    assert_eq!((&none["path"], &none["kind"]), (&"/no/such/store".into(), &"not-a-store".into()), "{none}");
    let mistyped = format!("{}{}", &id[..9], if id.as_bytes()[9] == b'0' { '1' } else { '0' });
    for (args, near) in [
        (&["show", "projcet"][..], "did you mean \"project\"?"),
        (&["show", "try1"], "did you mean \"try-1\"?"),
        (&["diff", "try-2"], "did you mean \"try-1\"?"),
        (&["discard", "tyr-1"], "did you mean \"try-1\"?"),
        (&["seal", "Try-1"], "did you mean \"try-1\"?"),
        (&["mv", "try_1", "x"], "did you mean \"try-1\"?"),
        (&["restore", "try-3@0"], "did you mean \"try-1\"?"),
        (&["untag", "projekt"], "did you mean \"project\"?"),
        (&["fork", "proj", "x"], "did you mean \"project\"?"),
        (&["show", &mistyped], &format!("did you mean \"{}\"?", &id[..12])),
    ] {
        let said = error(args);
        assert_eq!(said["kind"], "not-found", "{args:?}: {said}");
        assert!(said["hint"].as_str().unwrap().starts_with(near), "{args:?}: {said}");
    }
    let far = error(&["show", "something-else"]);
    assert!(!far["hint"].as_str().unwrap().contains("did you mean"), "{far}");
}
