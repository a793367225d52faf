//! The commands that look at a store: what they print is right and parses, and they exit as they should.

// Helpers of tests are tests, too.

mod damage;
mod demo;
mod json;
mod patch;
mod support;
mod usage;

use std::collections::BTreeSet;
use std::fs;

use self::support::{RealStore, command, digest, run, small};
use serde_json::{Value, json};

/// Does harm to an image, and says which image to look at then.
type Harm<'a> = Box<dyn Fn(&RealStore, &str) -> String + 'a>;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text"))
}

#[test]
fn images_are_listed_newest_first_with_agent_parents_and_tags() {
    let store = RealStore::new();
    let old = store.snapshot(1, &[]);
    let new = store.snapshot(2, &[&old]);
    store.tag("before", &format!("sha256:{old}\n"));
    let table = store.pfimg(&["images"]).exits(0);
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{}", table.stdout);
    assert_eq!(rows[0], ["IMAGE", "CREATED", "(UTC)", "AGENT", "PARENTS", "TAGS"]);
    let created = store.manifest(&new).created_at;
    let (day, time) = (created.format("%F").to_string(), created.format("%T").to_string());
    assert_eq!(rows[1], [&new[..12], &day, &time, "claude-code", "1.0", &old[..12], "latest"]);
    assert_eq!([rows[2][0], rows[2][5]], [&old[..12], "before"]);

    let json = store.pfimg(&["images", "--json"]).exits(0).json()["images"].clone();
    let expected = json!({
        "id": format!("sha256:{new}"), "created_at": store.manifest(&new).created_at,
        "agent": {"kind": "claude-code", "version": "1.0"}, "parents": [format!("sha256:{old}")], "tags": [],
        "latest": true,
    });
    assert_eq!(json[0], expected);
    assert_eq!((&json[1]["id"], &json[1]["tags"]), (&json!(format!("sha256:{old}")), &json!(["before"])));
    assert_eq!((&json[1]["latest"], json.as_array().unwrap().len()), (&json!(false), 2));
}

#[test]
fn stderr_names_damaged_markers_and_other_images_are_still_listed() {
    let store = RealStore::new();
    let (sound, mended, lost) = (store.snapshot(1, &[]), store.snapshot(2, &[]), store.snapshot(3, &[]));
    std::fs::write(store.marker(&mended), "x").unwrap();
    std::fs::write(store.marker(&lost), "x").unwrap();
    std::fs::remove_file(store.blob(&digest(&lost))).unwrap();
    std::fs::write(store.root().join("images/misnamed.json"), "{}").unwrap();
    for args in [&["images"][..], &["images", "--json"]] {
        let output = store.pfimg(args).exits(4);
        let listed = if args.len() > 1 { output.json()["images"].to_string() } else { output.stdout.clone() };
        for id in [&sound, &mended] {
            assert!(listed.contains(&id[..12]), "{listed}");
        }
        assert!(!listed.contains(&lost[..12]), "{listed}");
        for damaged in [&mended, &lost, "misnamed.json"] {
            let told = output.stderr.lines().filter(|line| line.contains(damaged)).count();
            assert_eq!(told, 1, "{damaged}: {}", output.stderr);
        }
        assert!(!output.stderr.contains(&sound), "{}", output.stderr);
    }
}

#[test]
fn an_empty_store_lists_nothing_and_a_path_that_is_not_a_store_is_bad_input() {
    let store = RealStore::new();
    let output = store.pfimg(&["images"]).exits(0);
    assert!(output.stdout.is_empty() && output.stderr.contains("no image"), "{}", output.stderr);
    assert_eq!(store.pfimg(&["images", "--json"]).exits(0).json(), json!({"images": [], "problems": []}));
    assert_eq!(store.pfimg(&["verify", "--json"]).exits(0).json()["findings"], json!([]));
    store.pfimg(&["show", "latest"]).exits(5);
    for args in [&["images"][..], &["verify"], &["show", "latest"]] {
        let output = run(command(args).args(["--store", "/nonexistent/store"])).exits(5);
        assert!(output.stderr.contains("/nonexistent/store"), "{}", output.stderr);
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_not_a_panic() {
    let store = RealStore::new();
    store.snapshot(1, &[]);
    for args in [&["images"][..], &["images", "--json"], &["show", "latest"], &["verify", "--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = command(args);
        let output = command.arg("--store").arg(store.root()).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{said}");
        assert!(said.contains("cannot write to stdout"), "{said}");
    }
}

#[test]
fn show_tells_every_layer_in_brief() {
    let store = RealStore::new();
    let parent = store.snapshot(1, &[]);
    let id = store.snapshot(2, &[&parent]);
    store.tag("now", &format!("sha256:{id}"));
    let manifest = store.manifest(&id);
    let json = store.pfimg(&["show", "--json", "now"]).exits(0).json();
    assert_eq!((text(&json["id"]), &json["latest"]), (format!("sha256:{id}").as_str(), &json!(true)));
    assert_eq!((&json["parents"], &json["tags"]), (&json!([format!("sha256:{parent}")]), &json!(["now"])));
    assert_eq!(json["agent"], serde_json::to_value(&manifest.agent).unwrap());
    let layers = &json["layers"];
    assert_eq!(text(&layers["model_base"]["text"]), "base-model-fingerprint:llama-3-8b@sha256:demo");
    assert_eq!(text(&layers["model_diff"]["kind"]), "full");
    let cache = &layers["cache"];
    assert_eq!(
        (&cache["pages"], &cache["page_bytes"], &cache["total_bytes"]),
        (&json!(2), &json!(64), &json!(256))
    );
    let tree = &layers["world_fs"];
    // The fixture's tree lists three files; their folder is implied.
    assert_eq!([&tree["files"], &tree["folders"], &tree["symlinks"]], [&json!(3), &json!(1), &json!(0)]);
    assert_eq!((&tree["content_bytes"], text(&tree["digest"])), (&json!(300), manifest.world.fs.as_str()));
    assert_eq!((text(&layers["world_env"]["cwd"]), &layers["world_env"]["vars"]), ("/sandbox", &json!(2)));
    assert_eq!(text(&layers["world_procs"]["kind"]), "unsupported");
    let effects = &layers["effects"];
    assert_eq!((&effects["entries"], text(&effects["chain"])), (&json!(6), "unchained"));
    assert_eq!(effects["classes"], json!({"pure": 4, "irreversible": 2}));
    assert_eq!(layers["trace"]["messages"], json!(3));
    assert_eq!(text(&layers["trace"]["first"]), "user: synthetic message #0 (seed 2)");

    let shown = store.pfimg(&["show", &id[..8]]).exits(0).stdout;
    for part in
        [id.as_str(), &parent, "latest, now", "2 pages of 2 × 64 B", "3 files", "2 irreversible, 4 pure"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("DAMAGED"), "{shown}");
}

#[test]
fn a_layer_that_is_damaged_is_shown_as_damaged_and_the_others_still() {
    let secret = b"secret of this test";
    let broken = support::ledger(secret, true).replace("tool_1", "tool_9");
    let blob = |pick: fn(&pf_core::manifest::Manifest) -> pf_core::digest::Digest256| -> Harm<'_> {
        Box::new(move |store, id| {
            std::fs::remove_file(store.blob(&pick(&store.manifest(id)))).unwrap();
            id.to_owned()
        })
    };
    let cases: Vec<(&str, &str, Harm<'_>)> = vec![
        ("model_base", "missing", blob(|m| m.model.base.clone())),
        ("model_diff", "missing", blob(|m| m.model.diff.clone())),
        ("cache", "missing", blob(|m| m.cache.manifest.clone())),
        ("world_fs", "missing", blob(|m| m.world.fs.clone())),
        ("world_env", "missing", blob(|m| m.world.env.clone())),
        ("world_procs", "missing", blob(|m| m.world.procs.clone())),
        ("effects", "missing", blob(|m| m.effects.ledger.clone())),
        ("trace", "missing", blob(|m| m.trace.messages.clone())),
        (
            "effects",
            "line 3",
            Box::new(|store, id| store.change(id, |m| m.effects.ledger = store.put(broken.as_bytes()))),
        ),
        (
            "trace",
            "line 2",
            Box::new(|store, id| store.change(id, |m| m.trace.messages = store.put(b"{}\nnope\n"))),
        ),
        ("world_env", "env.v1", Box::new(|store, id| store.change(id, |m| m.world.env = store.put(b"[]")))),
        (
            "model_base",
            "hash",
            Box::new(|store, id| {
                store.overwrite(&store.manifest(id).model.base, b"other");
                id.to_owned()
            }),
        ),
    ];
    let sound = RealStore::new();
    let sound_id = sound.snapshot(1, &[]);
    for (layer, why, harm) in cases {
        let store = sound.copy();
        let id = harm(&store, &sound_id);
        let json = store.pfimg(&["show", "--json", &id]).exits(4).json();
        for (name, part) in json["layers"].as_object().unwrap() {
            if name == layer {
                assert!(text(&part["damage"]).contains(why), "{layer}: {part}");
            } else {
                assert!(part.get("damage").is_none() && part["bytes"].is_u64(), "{layer}: {name}: {part}");
            }
        }
        let shown = store.pfimg(&["show", &id]).exits(4).stdout;
        assert_eq!(shown.lines().filter(|line| line.contains("DAMAGED")).count(), 1, "{shown}");
    }
}

#[test]
fn a_damaged_marker_is_mended_from_its_blob_but_not_passed_over() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    std::fs::write(store.marker(&id), "{}").unwrap();
    let output = store.pfimg(&["show", &id]).exits(4);
    assert!(
        output.stdout.contains("MARKER DAMAGED") && output.stdout.contains("3 files"),
        "{}",
        output.stdout
    );
    std::fs::remove_file(store.blob(&digest(&id))).unwrap();
    let output = store.pfimg(&["show", &id]).exits(4);
    assert!(output.stdout.is_empty() && output.stderr.contains(&id), "{}", output.stderr);
}

#[test]
fn a_newer_schema_is_bad_input_to_show_and_damage_to_verify() {
    let store = RealStore::new();
    let id = store.image_of(br#"{"schema_version":2}"#);
    let output = store.pfimg(&["show", &id]).exits(8);
    assert!(output.stderr.contains("schema version 2"), "{}", output.stderr);
    store.pfimg(&["verify"]).exits(4);
}

#[test]
fn a_fixture_equals_the_one_that_pf_core_makes_from_the_same_numbers() {
    let store = RealStore::new();
    let spec = small(7);
    let numbers = [
        ("--cache-pages", spec.cache_pages),
        ("--page-bytes", spec.page_bytes),
        ("--world-files", spec.world_files),
        ("--world-file-bytes", spec.world_file_bytes),
        ("--model-diff-bytes", spec.model_diff_bytes),
        ("--effects-entries", spec.effects_entries),
        ("--trace-messages", spec.trace_messages),
        ("--seed", 7),
    ];
    let numbers: Vec<String> = numbers.iter().map(|(name, number)| format!("{name}={number}")).collect();
    let mut args: Vec<&str> = numbers.iter().map(String::as_str).collect();
    args.insert(0, "fixture");
    let made = store.pfimg(&args).exits(0);
    let ours = made.stdout.trim().strip_prefix("sha256:").unwrap().to_owned();
    let theirs = store.snapshot(7, &[]);
    let layers = |id: &str| {
        let manifest = serde_json::to_value(store.manifest(id)).unwrap();
        ["model", "cache", "world", "effects", "trace"].map(|layer| manifest[layer].clone())
    };
    assert_eq!(layers(&ours), layers(&theirs));
    // Without numbers: pf-core's own.
    let ours = store.pfimg(&["fixture"]).exits(0).stdout.trim().strip_prefix("sha256:").unwrap().to_owned();
    let theirs = store.snapshot_of(&pf_core::fixture::FixtureSpec::default(), &[]);
    assert_eq!(layers(&ours), layers(&theirs));
}

#[test]
fn a_fixture_makes_the_store_and_takes_tag_and_parents() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/store");
    let fixture = |args: &[&str]| run(command(&[&["fixture"], args].concat()).arg("--store").arg(&root));
    let first = fixture(&["--tag", "a"]).exits(0).stdout.trim().to_owned();
    let second = fixture(&["--tag", "b", "--parent", "a", "--parent", "latest", "--seed", "1", "--json"])
        .exits(0)
        .json();
    let images =
        run(command(&["images", "--json"]).arg("--store").arg(&root)).exits(0).json()["images"].clone();
    assert_eq!(images[0]["id"], second["id"]);
    assert_eq!((&images[0]["parents"], &images[0]["tags"]), (&json!([first, first]), &json!(["b"])));
    run(command(&["verify"]).arg("--store").arg(&root)).exits(0);

    let before = images.as_array().unwrap().len();
    for (args, code) in [
        (&["--tag", "a"][..], 6),
        (&["--tag", "../a"], 2),
        (&["--tag", "latest"], 2),
        (&["--tag", "7"], 2),
        (&["--parent", "nobody"], 5),
        (&["--force"], 2),
        (&["--page-bytes", "1TiB"], 2),
    ] {
        fixture(args).exits(code);
    }
    let images =
        run(command(&["images", "--json"]).arg("--store").arg(&root)).exits(0).json()["images"].clone();
    assert_eq!(images.as_array().unwrap().len(), before, "a refused fixture wrote an image");
    let third = fixture(&["--tag", "a", "--force"]).exits(0).stdout;
    let tag = std::fs::read_to_string(root.join("refs/tags/a")).unwrap();
    assert_eq!(tag.trim(), third.trim());
}

#[test]
fn a_healthy_store_that_pf_wrote_has_no_findings_and_every_blob_is_read() {
    let store = RealStore::new();
    store.snapshot(1, &[]);
    let id = store.snapshot(2, &[]);
    store.change(&id, |m| m.effects.ledger = store.put(support::ledger(b"secret", true).as_bytes()));
    store.put(b"nothing refers to this");
    let json = store.pfimg(&["verify", "--json"]).exits(0).json();
    let payloads = store.payloads();
    assert_eq!(json["findings"], json!([]));
    assert_eq!(json["images"], json!(2));
    assert_eq!(json["blobs"], json!(payloads.len()));
    assert_eq!(json["bytes"], json!(payloads.values().sum::<u64>()));
    assert_eq!(json["ledgers"], json!({"verified": 1, "unverifiable": 0, "unchained": 1, "broken": 0}));
    let output = store.pfimg(&["verify"]).exits(0);
    assert_eq!((output.stdout.as_str(), output.stderr.lines().count()), ("", 1), "{}", output.stderr);
    assert!(
        output.stderr.contains("verified 2 images") && output.stderr.contains("no damage"),
        "{}",
        output.stderr
    );
}

#[test]
fn verify_of_an_image_reads_that_image_alone() {
    let store = RealStore::new();
    let (sound, damaged) = (store.snapshot(100, &[]), store.snapshot(200, &[]));
    std::fs::remove_file(store.blob(&store.file(&damaged, 0))).unwrap();
    store.tag("dangling", &format!("sha256:{}", "ab".repeat(32)));
    let json = store.pfimg(&["verify", "--json", &sound]).exits(0).json();
    assert_eq!((&json["findings"], &json["images"]), (&json!([]), &json!(1)));
    // Manifest, eight layers, three files, and four halves of pages.
    assert_eq!(json["blobs"], json!(1 + 8 + 3 + 4));
    store.pfimg(&["verify", &damaged[..10]]).exits(4);
    assert_eq!(store.pfimg(&["verify", "--json", &damaged, "latest"]).exits(4).json()["images"], json!(1));
    store.pfimg(&["verify", "nobody"]).exits(5);
}

#[test]
fn the_number_of_threads_changes_no_finding() {
    let store = RealStore::new();
    let mut harmed = BTreeSet::new();
    // Seeds; each pair of them shares files, under different names.
    let ids: Vec<String> = (0..6).map(|seed| store.snapshot(seed, &[])).collect();
    for id in ids {
        for (index, payload) in [(0, None), (1, Some(b"other"))] {
            let blob = store.file(&id, index);
            harmed.insert(blob.hex().to_owned());
            match payload {
                None => std::fs::remove_file(store.blob(&blob)).unwrap_or_default(),
                Some(payload) => store.overwrite(&blob, payload),
            }
        }
    }
    let one = store.pfimg(&["verify", "--jobs", "1"]).exits(4);
    let lines: BTreeSet<&str> = one.stdout.lines().collect();
    assert_eq!(lines.len(), harmed.len(), "{}", one.stdout);
    for jobs in ["2", "7"] {
        let many = store.pfimg(&["verify", "--jobs", jobs]).exits(4);
        assert_eq!((many.stdout, many.stderr), (one.stdout.clone(), one.stderr.clone()));
    }
    store.pfimg(&["verify", "--jobs", "0"]).exits(2);
}

#[test]
fn an_id_is_its_image_even_where_pf_tagged_another_one_with_it() {
    let store = RealStore::new();
    let (one, two) = (store.snapshot(1, &[]), store.snapshot(2, &[]));
    let said = store.pfimg(&["tag", &one, &two]).exits(2).stderr;
    assert!(said.contains("is the id of an image"), "{said}");
    fs::create_dir_all(store.root().join("refs/tags")).unwrap();
    fs::write(store.root().join("refs/tags").join(&two), format!("sha256:{one}\n")).unwrap();
    for name in [two.clone(), format!("sha256:{two}")] {
        let shown = store.pfimg(&["show", &name, "--json"]).exits(0).stdout;
        assert!(shown.contains(&two) && !shown.contains(&one), "{shown}");
    }
}

#[test]
fn the_operators_secret_verifies_a_ledger_that_nothing_else_can() {
    let store = RealStore::new();
    let id = store.snapshot(1, &[]);
    store.change(&id, |m| m.effects.ledger = store.put(support::ledger(b"kept", false).as_bytes()));
    let with = |secret: &str| {
        run(command(&["verify", "--json"]).arg("--store").arg(store.root()).env("PF_SESSION_SECRET", secret))
    };
    let codes = |output: support::Output| {
        let findings = output.json()["findings"].as_array().unwrap().clone();
        findings.iter().map(|finding| text(&finding["code"]).to_owned()).collect::<Vec<_>>()
    };
    let hex = data_encoding::HEXLOWER.encode(b"kept");
    assert_eq!(codes(with("").exits(0)), ["ledger-unverifiable"]);
    assert_eq!(codes(with(&hex).exits(0)), [""; 0]);
    assert_eq!(codes(with("00ff").exits(4)), ["ledger-chain-broken"]);
    let output = with("no hex").exits(2);
    assert!(
        output.stderr.contains("PF_SESSION_SECRET") && !output.stderr.contains("no hex"),
        "{}",
        output.stderr
    );
}
