use super::*;

#[test]
fn a_small_tree_takes_no_gigabytes_of_what_is_unknown() {
    let zeros = format!("[0{}]", ",0".repeat(1 << 20));
    let entry = r#""path":"a","kind":"dir","mode":"0755""#;
    for tree in [
        format!(r#"{{"kind":"fs.tree.v1","x":{zeros},"entries":[]}}"#),
        format!(r#"{{"kind":"fs.tree.v1","root":{{"x":{zeros}}},"entries":[]}}"#),
        format!(r#"{{"kind":"fs.tree.v1","entries":[{{{entry},"x":{zeros}}}]}}"#),
    ] {
        let error = visit(tree.as_bytes(), &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("unknown"), "{error}");
    }
}

use proptest::prelude::*;

fn sample() -> FsTree {
    let mut file = Entry::new("src/a \"q\"\n.rs", Kind::File, 0o644);
    file.size = 3;
    file.blob = Some(Digest::of(b"abc"));
    let mut link = Entry::new("l", Kind::Symlink, 0o777);
    link.link_target = Some("src/a.rs".into());
    let mut odd = Entry::new("src/caf\u{fffd}", Kind::File, 0o4755);
    odd.blob = Some(Digest::of(b""));
    odd.name_b64 = Some(b"caf\xe9".to_vec());
    odd.mtime_ns = Some(-1);
    odd.uid = Some(0);
    odd.gid = Some(100);
    odd.hardlink = Some(7);
    odd.extra.insert("xattrs".into(), serde_json::json!({"user.a": "b"}));
    let fifo = Entry::new("pipe", Kind::Fifo, 0o600);
    let mut header = Header { root: Some(Root::default()), ..Header::default() };
    header.root.as_mut().unwrap().mode = Some("0750".into());
    header.extra.insert("comment".into(), "kept".into());
    FsTree {
        header,
        entries: vec![link, Entry::new("src", Kind::Dir, 0o755), file, odd],
        specials: vec![fifo],
    }
}

#[test]
fn a_tree_comes_back_as_it_was_with_the_keys_we_do_not_know() {
    let bytes = sample().to_bytes().unwrap();
    let back = FsTree::parse(&bytes).unwrap();
    assert_eq!(back, sample());
    assert_eq!(back.to_bytes().unwrap(), bytes);
}

#[test]
fn the_real_pf_reads_our_tree_and_we_read_its() {
    let theirs: pf_world::fs::FsTree = serde_json::from_slice(&sample().to_bytes().unwrap()).unwrap();
    assert_eq!(theirs.entries.len(), 4);
    let bytes = serde_json::to_vec(&theirs).unwrap();
    let back = FsTree::parse(&bytes).unwrap();
    assert_eq!(back.entries[2], sample().entries[2]);
    assert_eq!(back.to_bytes().unwrap(), bytes, "what pf wrote, we write the same");
}

#[test]
fn modes_are_octal_with_or_without_type_bits() {
    for (text, mode) in [("0644", 0o644), ("100644", 0o644), ("4755", 0o4755), ("0", 0), ("040755", 0o755)] {
        assert_eq!(parse_mode(text), Some(mode), "{text}");
    }
    for bad in ["", "-1", "0o644", "9", "rw-r--r--", "777777777", "+644", " 644"] {
        assert_eq!(parse_mode(bad), None, "{bad}");
    }
}

#[test]
fn hostile_paths_are_refused_with_a_reason() {
    let deep = "a/".repeat(10_000) + "a";
    let long = "x".repeat(256);
    for bad in ["", "/etc", "..", "a/../b", "a//b", "a/", "./a", "a\0b", &long, &deep] {
        assert!(refuse_path(bad).is_some(), "{bad:.40}");
    }
    let longest = "x".repeat(255);
    for good in ["a", "a b/c\nd", "...", "..a", "ü", &longest] {
        assert_eq!(refuse_path(good), None, "{good:.40}");
    }
}

#[test]
fn an_invalid_tree_is_an_error_with_the_reason() {
    for (text, why) in [
        ("", "EOF"),
        ("[]", "fs.tree.v1 object"),
        ("{}", "kind"),
        (r#"{"kind":"fs.tree.v1"}"#, "entries"),
        (r#"{"kind":"fs.tree.v2","entries":[]}"#, "fs.tree.v2"),
        (r#"{"kind":"fs.tree.v1","entries":[],"entries":[]}"#, "twice"),
        (r#"{"kind":"fs.tree.v1","entries":[{}]}"#, "path"),
        (r#"{"kind":"fs.tree.v1","entries":[{"path":"a","mode":"x","size":0,"kind":"dir"}]}"#, "octal"),
        (r#"{"kind":"fs.tree.v1","entries":[{"path":"a","mode":"0","size":0,"kind":"door"}]}"#, "door"),
        (r#"{"kind":"fs.tree.v1","entries":[{"path":"a","mode":"0","size":0,"kind":"fifo"}]}"#, "Fifo"),
        (r#"{"kind":"fs.tree.v1","entries":[]} x"#, "trailing"),
        (r#"{"kind":"fs.tree.v1","entries":[["a"]]}"#, "sequence"),
    ] {
        let error = FsTree::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

proptest! {
    #![proptest_config(crate::crashpack::failing::config())]
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = FsTree::parse(&bytes);
    }

    #[test]
    fn a_mutated_tree_is_read_or_refused_and_what_is_read_survives(at in any::<proptest::sample::Index>(), to in any::<u8>()) {
        let mut bytes = sample().to_bytes().unwrap();
        *at.get_mut(&mut bytes) = to;
        if let Ok(tree) = FsTree::parse(&bytes) {
            prop_assert_eq!(FsTree::parse(&tree.to_bytes().unwrap()).unwrap(), tree);
        }
    }
}
