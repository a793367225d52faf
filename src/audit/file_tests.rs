//! Logs on disk: many programs that append, files that are set aside, and the remains of crashes and
//! vandalism.

use super::*;
use crate::audit::follow::{Follower, Report, last_lines};
use crate::audit::{Categories, OsSnapshot, rebuild_os_snapshot_from_events};

fn append(appender: &mut Appender, names: &[&str]) -> Head {
    let events: Vec<_> = names.iter().map(|name| (Utc::now(), note::fork_made(name, None))).collect();
    appender.append(&events).unwrap()
}

fn current(store: &Path) -> PathBuf {
    dir(store).join(CURRENT)
}

fn report(store: &Path) -> Report {
    Follower::new(store).catch_up().unwrap()
}

/// Everything in the log's files, folded at once.
fn rebuilt(store: &Path) -> OsSnapshot {
    let events: Vec<SessionEvent> = files(&dir(store))
        .unwrap()
        .iter()
        .flat_map(|path| {
            fs::read(path).unwrap().split(|b| *b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .filter_map(|line| chain::decode(&line).ok())
        .map(|(record, _)| record.event)
        .collect();
    rebuild_os_snapshot_from_events(&events)
}

#[test]
fn a_store_without_a_log_has_an_empty_one_and_reading_makes_none() {
    let store = tempfile::tempdir().unwrap();
    let report = report(store.path());
    assert_eq!((report.seq, report.events, report.broken), (0, 0, None));
    assert_eq!(last_lines(store.path(), 100), b"");
    assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
}

/// Tries again while another thread holds the lock for longer than the log waits, as the log of a mount does.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> T {
    let until = Instant::now() + Duration::from_mins(2);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) if error.kind() == ErrorKind::Io(Some(libc::EAGAIN)) && Instant::now() < until => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn concurrent_writers_make_one_chain_and_a_follower_equals_a_rebuild() {
    let store = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(store.path());
    std::thread::scope(|scope| {
        for who in 0..4 {
            let store = store.path();
            scope.spawn(move || {
                let mut appender = Appender { max_file: 4 << 10, ..Appender::new(store, "test") };
                for n in 0..50 {
                    let names = [&format!("{who}-{n}"), "shared"];
                    let events = names.map(|name| (Utc::now(), note::fork_made(name, None)));
                    patiently(|| appender.append(&events));
                }
            });
        }
        for _ in 0..50 {
            assert_eq!(patiently(|| follower.catch_up()).broken, None);
        }
    });
    let live = follower.catch_up().unwrap();
    assert_eq!((live.seq, live.events, live.broken.clone()), (400, 400, None));
    assert_eq!(live.snapshot.process_by_agent.len(), 201);
    assert_eq!(live.snapshot, rebuilt(store.path()));
    assert_eq!(report(store.path()), live);
    assert!(files(&dir(store.path())).unwrap().len() > 10, "it was never set aside");
}

#[test]
fn a_log_that_was_copied_without_its_lock_is_read_and_none_is_made() {
    let store = tempfile::tempdir().unwrap();
    append(&mut Appender::new(store.path(), "test"), &["a"]);
    fs::remove_file(dir(store.path()).join(LOCK)).unwrap();
    assert_eq!(report(store.path()).events, 1);
    assert!(!dir(store.path()).join(LOCK).exists());
}

#[test]
fn what_is_written_about_the_log_is_counted_and_kept_for_a_follower() {
    let store = tempfile::tempdir().unwrap();
    append(&mut Appender::new(store.path(), "test"), &["a", "b"]);
    let path = current(store.path());
    let whole = fs::read(&path).unwrap();
    // A torn end: the event says how many bytes were lost and their hash.
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    append(&mut Appender::new(store.path(), "test"), &["c"]);
    let text = fs::read_to_string(&path).unwrap();
    let healed: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let torn = &whole[first..whole.len() - 40];
    assert_eq!(healed["event"]["lost_bytes"], torn.len());
    assert_eq!(healed["event"]["sha256"], Digest::of(torn).hex());
    assert_eq!(healed["event"]["category"], "sched");
    // Two damaged lines at the end.
    let mut damaged = fs::read(&path).unwrap();
    damaged.extend_from_slice(b"one\ntwo\n");
    fs::write(&path, damaged).unwrap();
    append(&mut Appender::new(store.path(), "test"), &["d"]);
    let text = fs::read_to_string(&path).unwrap();
    let last: Vec<serde_json::Value> =
        text.lines().rev().take(2).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&last[1]["event"]["kind"], &last[1]["event"]["damaged_lines"]),
        (&json!("log_damaged"), &json!(2))
    );
    assert_eq!(last[0]["event"]["agent_id"], "d");
}

#[test]
fn a_follower_says_where_categories_come_from_and_which_events_are_faulty() {
    let store = tempfile::tempdir().unwrap();
    let mut appender = Appender::new(store.path(), "test");
    append(&mut appender, &["a"]);
    let mut follower = Follower::new(store.path());
    let read = follower.catch_up().unwrap();
    assert_eq!((read.tally.categories, read.faults.count), (Categories::Said, 0));
    let event = |event: serde_json::Value| (Utc::now(), serde_json::from_value(event).unwrap());
    let events = [
        event(json!({"kind": "page_in", "turn": 1})),
        event(json!({"kind": "suspended", "turn": 1, "category": "sched"})),
    ];
    appender.append(&events).unwrap();
    let read = follower.catch_up().unwrap();
    assert_eq!(read.tally.categories, Categories::Inferred);
    let told: Vec<String> = read.faults.first.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["line 2: page_in: \"entry_count\" is missing", "line 3: suspended: \"reason\" is missing"]
    );
    assert_eq!(read.snapshot.page_in_count, 1, "what can be read counts");
    assert_eq!(read, report(store.path()));
}

#[test]
fn a_violation_and_its_pack_are_named_by_a_follower() {
    let store = tempfile::tempdir().unwrap();
    let violation = (Utc::now(), note::violation("seal", "f", "gone", Some("seal-1")));
    Appender::new(store.path(), "test").append(&[violation]).unwrap();
    fs::create_dir_all(crash_dir(store.path()).join("seal-1")).unwrap();
    let read = report(store.path());
    assert_eq!((read.violations.count, read.violations.newest[0].turn), (1, 1));
    assert_eq!((read.packs.count, read.packs.newest), (1, vec!["seal-1".to_owned()]));
}

#[test]
fn one_file_of_a_log_begins_where_its_name_says() {
    let store = tempfile::tempdir().unwrap();
    let mut appender = Appender { max_file: 2 << 10, ..Appender::new(store.path(), "test") };
    for _ in 0..12 {
        append(&mut appender, &["a"]);
    }
    let files = files(&dir(store.path())).unwrap();
    assert!(files.len() > 2);
    for path in &files {
        let bytes = fs::read(path).unwrap();
        assert!(verify(path, &bytes).unwrap().is_ok(), "{}", path.display());
        let cut = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let broken = verify(path, &bytes[cut..]).unwrap().unwrap_err();
        assert_eq!((&broken.file, broken.line), (path, 1));
        // Alone, under another name, only the first file is whole.
        let elsewhere = tempfile::tempdir().unwrap();
        let whole = verify(&elsewhere.path().join("copy"), &bytes).unwrap().is_ok();
        assert_eq!(whole, path == &files[0]);
        let shown = elsewhere.path().join(".pfimg/events.jsonl");
        assert!(verify(&shown, &bytes).unwrap().is_ok(), "a mount shows the newest lines");
    }
}

#[test]
fn a_torn_end_is_reported_and_the_next_writer_keeps_cuts_and_notes_it() {
    let store = tempfile::tempdir().unwrap();
    append(&mut Appender::new(store.path(), "test"), &["a", "b"]);
    let whole = fs::read(current(store.path())).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in second + 1..whole.len() - 1 {
        fs::write(current(store.path()), &whole[..end]).unwrap();
        let mut follower = Follower::new(store.path());
        assert_eq!(follower.catch_up().unwrap().broken.unwrap().line, 2, "cut at {end}");
        if end % 16 != 0 {
            continue;
        }
        append(&mut Appender::new(store.path(), "test"), &["c"]);
        let healed = follower.catch_up().unwrap();
        assert_eq!((healed.broken, healed.events), (None, 3), "cut at {end}");
        let text = fs::read_to_string(current(store.path())).unwrap();
        let note: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(note["event"]["kind"], "log_healed");
        let kept = dir(store.path()).join(note["event"]["kept"].as_str().unwrap());
        assert_eq!(fs::read(kept).unwrap(), &whole[second..end]);
    }
    // A line that lacks only its line feed loses nothing.
    fs::write(current(store.path()), &whole[..whole.len() - 1]).unwrap();
    append(&mut Appender::new(store.path(), "test"), &["c"]);
    let report = report(store.path());
    assert_eq!((report.broken, report.seq), (None, 3));
}

#[test]
fn a_flipped_byte_is_named_by_file_and_line_and_appending_does_not_hide_it() {
    let store = tempfile::tempdir().unwrap();
    let mut appender = Appender { max_file: 2 << 10, ..Appender::new(store.path(), "test") };
    for _ in 0..12 {
        append(&mut appender, &["a"]);
    }
    let files = files(&dir(store.path())).unwrap();
    assert!(files.len() >= 3);
    for path in &files {
        let whole = fs::read(path).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            fs::write(path, &changed).unwrap();
            let broken = report(store.path()).broken.unwrap();
            let line = whole[..at].split(|byte| *byte == b'\n').count() as u64;
            assert_eq!((&broken.file, broken.line), (path, line), "byte {at}: {}", broken.fault);
        }
        fs::write(path, &whole).unwrap();
    }
    assert_eq!(report(store.path()).broken, None);
    // The last line, which the next one follows.
    let path = current(store.path());
    let mut changed = fs::read(&path).unwrap();
    let at = changed.len() - 100;
    changed[at] ^= 1;
    fs::write(&path, &changed).unwrap();
    let before = report(store.path()).broken.unwrap();
    append(&mut Appender::new(store.path(), "test"), &["b"]);
    assert_eq!(report(store.path()).broken.unwrap(), before);
}

#[test]
fn a_followed_file_that_is_cut_or_removed_is_read_again() {
    let store = tempfile::tempdir().unwrap();
    let mut appender = Appender { max_file: 1 << 10, ..Appender::new(store.path(), "test") };
    for _ in 0..10 {
        append(&mut appender, &["a"]);
    }
    let mut follower = Follower::new(store.path());
    assert_eq!(follower.catch_up().unwrap().broken, None);
    let first = files(&dir(store.path())).unwrap().remove(0);
    fs::remove_file(&first).unwrap();
    let broken = follower.catch_up().unwrap().broken.unwrap();
    assert_eq!((broken.line, broken.file != first), (1, true));
    assert!(broken.fault.contains("instead of 1"), "{}", broken.fault);
}

#[test]
fn a_lock_that_is_never_released_stops_only_the_log() {
    let store = tempfile::tempdir().unwrap();
    append(&mut Appender::new(store.path(), "test"), &["a"]);
    let held = lock_to_append(&dir(store.path()), Sharing::Private).unwrap();
    let events = vec![(Utc::now(), note::fork_made("b", None))];
    let error = Appender::new(store.path(), "test").append(&events).unwrap_err();
    assert!(error.to_string().contains("audit log"), "{error}");
    drop(held);
    append(&mut Appender::new(store.path(), "test"), &["b"]);
    assert_eq!(report(store.path()).seq, 2);
}

#[test]
fn the_last_lines_are_whole_lines_that_a_stranger_can_check() {
    let store = tempfile::tempdir().unwrap();
    append(&mut Appender::new(store.path(), "test"), &["a", "b", "c"]);
    let all = fs::read(current(store.path())).unwrap();
    assert_eq!(last_lines(store.path(), 1 << 20), all);
    let some = last_lines(store.path(), all.len() as u64 - 1);
    assert!(all.ends_with(&some) && some.len() < all.len());
    let mut lines = some.split(|byte| *byte == b'\n');
    let (record, hash) = chain::decode(lines.next().unwrap()).unwrap();
    assert_eq!(record.seq, 2);
    let rest = &some[some.iter().position(|byte| *byte == b'\n').unwrap() + 1..];
    assert_eq!(chain::verify(Head { seq: 2, hash }, rest).unwrap().seq, 3);
}

#[test]
fn the_last_lines_begin_in_the_file_that_was_set_aside_as_long_as_the_newest_has_only_begun() {
    let store = tempfile::tempdir().unwrap();
    let mut appender = Appender { max_file: 2000, ..Appender::new(store.path(), "test") };
    for n in 0..20 {
        append(&mut appender, &[&format!("f{n}")]);
    }
    let files = files(&dir(store.path())).unwrap();
    assert!(files.len() > 3, "{files:?}");
    let all: Vec<u8> = files.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(last_lines(store.path(), 1 << 20), all);
    for max in 0..all.len() {
        let some = last_lines(store.path(), max as u64);
        assert!(all.ends_with(&some) && some.len() <= max, "{max}");
        let before = all.len() - some.len();
        assert_eq!(all[before - 1], b'\n', "{max}");
        // Exactly one line is left out, the one that does not fit whole.
        let line = all[..before - 1].iter().rev().position(|b| *b == b'\n').unwrap_or(before - 1) + 1;
        assert!(max < some.len() + line + 1, "{max}");
    }
}
