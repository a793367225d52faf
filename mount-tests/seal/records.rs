//! What was recorded is in the next seal, whatever became of the names it had.

use pfimg::digest::Digest;
use pfimg::fork::{Fork, Ino};
use pfimg::layers::effects::Effects;

use super::layers::{effect, verify_ledger};
use super::support::{Place, append, dir, read, write};

fn take_away(fork: &Fork) {
    fork.set_guarded(false);
    for (folder, name, file) in
        [(Ino::EFFECTS, &b"effects"[..], &b"ledger.jsonl"[..]), (Ino::TRACE, b"trace", b"messages.jsonl")]
    {
        fork.unlink(folder, file).map(|gone| fork.forget(gone)).unwrap();
        fork.rmdir(Ino::TOP, name).map(|gone| fork.forget(gone)).unwrap();
    }
    assert_eq!((read(fork, "effects/ledger.jsonl"), read(fork, "trace/messages.jsonl")), (None, None));
}

/// Tools that an image's ledger names, and its trace.
fn recorded(place: &Place, image: &Digest) -> (Vec<String>, String) {
    let manifest = place.store.image(image).unwrap().manifest;
    let ledger = place.store.blobs().read_metadata(&manifest.effects.ledger).unwrap();
    let Effects::Ledger(ledger) = Effects::parse(&ledger).unwrap() else { panic!("no ledger") };
    let tools = ledger.entries.iter().map(|entry| entry.record().tool_id.clone()).collect();
    let trace = place.store.blobs().read_metadata(&manifest.trace.messages).unwrap();
    (tools, String::from_utf8(trace).unwrap())
}

fn notes(place: &Place) -> Vec<pfimg::ops::verify::Finding> {
    let options =
        pfimg::ops::verify::Options { images: None, jobs: std::num::NonZeroUsize::MIN, secret: None };
    let found = pfimg::ops::verify::verify(&place.store, &options, &()).unwrap().findings;
    found.into_iter().filter(|found| found.code.as_str().ends_with("-not-continued")).collect()
}

/// What becomes of a copy.
type Copy<'a> = &'a dyn Fn(&Fork);

const MESSAGE: &str = "{\"role\":\"user\",\"content\":\"hi\"}\n";

#[test]
fn appended_and_removed_records_are_in_the_next_seal_and_shown_again() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(tmp.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    append(&fork, "effects/ledger.jsonl", effect(1).as_bytes());
    place.seal(&fork);
    append(&fork, "effects/ledger.jsonl", effect(2).as_bytes());
    append(&fork, "trace/messages.jsonl", MESSAGE.as_bytes());
    let branch = registry.branch(&fork, "branch").unwrap();
    take_away(&fork);
    take_away(&branch);
    let sealed = place.seal(&fork);
    let whole = (vec!["t1".to_owned(), "t2".to_owned()], MESSAGE.to_owned());
    assert_eq!(recorded(&place, &sealed.image), whole);
    assert_eq!(verify_ledger(&place, &sealed.image), 2);
    assert_eq!(read(&fork, "trace/messages.jsonl").unwrap(), MESSAGE.as_bytes());
    assert_eq!(read(&fork, "effects/ledger.jsonl").unwrap().split(|b| *b == b'\n').count(), 4);
    // Nothing was appended since: there is no new image, and the names are still shown again.
    take_away(&fork);
    let again = place.seal(&fork);
    assert_eq!((again.image, again.new), (sealed.image, false));
    assert_eq!(read(&fork, "trace/messages.jsonl").unwrap(), MESSAGE.as_bytes());
    drop((fork, branch, registry));
    // A daemon that ended, by whatever signal, has left the same.
    let registry = place.registry();
    let branch = registry.get("branch").unwrap();
    assert_eq!(recorded(&place, &place.seal(&branch).image), whole);
    assert_eq!(notes(&place), []);
}

#[test]
fn a_fork_that_was_copied_without_its_records_continues_those_of_its_image() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(&tmp.path().join("s"));
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    append(&fork, "effects/ledger.jsonl", (effect(1) + &effect(2)).as_bytes());
    append(&fork, "trace/messages.jsonl", MESSAGE.as_bytes());
    let source = place.seal(&fork);
    let manifest = read(&fork, "manifest.json").unwrap();
    let shown = read(&fork, "effects/ledger.jsonl").unwrap();
    let cut = shown.iter().position(|b| *b == b'\n').unwrap() + 1;
    let cases: [(Copy<'_>, &[&str], usize); 5] = [
        (&|_| (), &["t1", "t2"], 1),
        (&|copy| append(copy, "effects/ledger.jsonl", effect(1).as_bytes()), &["t1", "t2"], 1),
        (&|copy| append(copy, "effects/ledger.jsonl", &shown[..cut]), &["t1", "t2"], 1),
        (&|copy| append(copy, "effects/ledger.jsonl", effect(9).as_bytes()), &["t1", "t2", "t9"], 1),
        (&|copy| append(copy, "trace/messages.jsonl", b"{\"kind\":\"other\"}\n"), &["t1", "t2"], 2),
    ];
    for (number, (harm, tools, messages)) in cases.into_iter().enumerate() {
        let copy = registry.create(&format!("copy{number}"), None).unwrap();
        write(&copy, "manifest.json", &manifest);
        write(&copy, "world/fs/a", number.to_string().as_bytes());
        harm(&copy);
        let sealed = place.seal(&copy).image;
        assert_eq!(place.store.image(&sealed).unwrap().manifest.parents, [source.image]);
        let (found, trace) = recorded(&place, &sealed);
        assert_eq!(
            (found, trace.lines().count()),
            (tools.iter().map(|t| (*t).to_owned()).collect(), messages)
        );
        assert!(trace.starts_with(MESSAGE), "{number}: {trace}");
        assert_eq!(verify_ledger(&place, &sealed), tools.len());
        assert_eq!(read(&copy, "trace/messages.jsonl").unwrap(), trace.as_bytes(), "{number}");
    }
    assert_eq!(notes(&place), []);
}

#[test]
fn records_from_before_a_restore_stay_in_a_listed_seal() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Place::new(tmp.path());
    let registry = place.registry();
    let fork = registry.create("f", Some(place.fixture(1))).unwrap();
    write(&fork, "world/fs/a", b"1");
    let first = place.seal(&fork).image;
    append(&fork, "effects/ledger.jsonl", effect(7).as_bytes());
    take_away(&fork);
    let undone = place.sealer(None).seal_everything(&fork).unwrap().image;
    let restored = place.sealer(None).restore(&registry, "f", &fork, &first).unwrap();
    assert!(recorded(&place, &undone).0.contains(&"t7".to_owned()));
    let seals: Vec<Digest> = restored.seals().unwrap().iter().map(|seal| seal.image).collect();
    assert_eq!(seals, [first, undone]);
    append(&restored, "effects/ledger.jsonl", effect(8).as_bytes());
    let third = place.seal(&restored).image;
    let tools = recorded(&place, &third).0;
    assert!(tools.contains(&"t8".to_owned()) && !tools.contains(&"t7".to_owned()), "{tools:?}");
    assert_eq!(place.store.image(&third).unwrap().manifest.parents, [first]);
    assert_eq!(notes(&place), []);
    // Where the list cannot be kept, the fork stays as it is.
    let uid = restored.uid().to_owned();
    let list = tmp.path().join("forks/seals").join(&uid);
    std::fs::remove_file(&list).unwrap();
    std::fs::create_dir(&list).unwrap();
    let refused = place.sealer(None).restore(&registry, "f", &restored, &first).unwrap_err();
    assert!(refused.to_string().contains("list of seals"), "{refused}");
    assert_eq!(registry.get("f").unwrap().uid(), uid);
    assert!(restored.lookup(dir(&restored, "world/fs"), b"a").is_ok());
}
