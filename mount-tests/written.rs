//! The tests as a whole: every file is compiled, and the documents name tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::checkout::{files, top};

const PROGRAMS: [&str; 4] = ["engine", "mount", "cli", "long"];

/// The modules that a file declares: the names in `mod NAME;`. One with a `#[path]` lies elsewhere, and is left out.
fn modules(text: &str) -> impl Iterator<Item = &str> {
    let before = std::iter::once("").chain(text.lines());
    let declared = before.zip(text.lines()).filter(|(before, _)| !before.trim_start().starts_with("#[path"));
    declared.filter_map(|(_, line)| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
}

/// Adds a file and all the files of its modules. `place` is the directory that holds its modules.
fn follow(file: &Path, place: &Path, reached: &mut BTreeSet<PathBuf>) {
    if !reached.insert(file.to_owned()) {
        return;
    }
    for module in modules(&fs::read_to_string(top().join(file)).unwrap()) {
        let (plain, folder) = (place.join(format!("{module}.rs")), place.join(module).join("mod.rs"));
        let file = if top().join(&plain).exists() { plain } else { folder };
        follow(&file, &place.join(module), reached);
    }
}

#[test]
fn every_test_file_belongs_to_a_program() {
    let mut reached = BTreeSet::new();
    for program in PROGRAMS {
        follow(
            &Path::new("mount-tests").join(format!("{program}.rs")),
            Path::new("mount-tests"),
            &mut reached,
        );
    }
    let forgotten: Vec<_> = files("mount-tests", "rs").difference(&reached).cloned().collect();
    assert!(
        forgotten.is_empty(),
        "no `mod` line names these files, so cargo never compiles them: {forgotten:?}"
    );

    let manifest = fs::read_to_string(top().join("Cargo.toml")).unwrap();
    let declared = manifest.matches("[[test]]").count();
    assert_eq!(declared, PROGRAMS.len(), "Cargo.toml declares test programs that this list does not name");
}

/// The words between backticks that look like a path of modules: `forks::back::a_restore_keeps_what_was_sealed`.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| {
        word.contains("::")
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':')
    })
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let sources: Vec<(PathBuf, String)> = ["mount-tests", "src"]
        .into_iter()
        .flat_map(|dir| files(dir, "rs"))
        .map(|path| (path.clone(), fs::read_to_string(top().join(path)).unwrap()))
        .collect();
    let text = fs::read_to_string(top().join("docs/SEMANTICS.md")).unwrap();
    let mut count = 0;
    for name in named(&text) {
        count += 1;
        let (modules, last) = name.rsplit_once("::").unwrap();
        let declared = [format!("fn {last}("), format!("mod {last} {{")];
        let exists = sources.iter().any(|(path, text)| {
            let path = path.with_extension("");
            let parts: BTreeSet<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
            modules.split("::").all(|module| module == "tests" || parts.contains(module))
                && declared.iter().any(|declared| text.contains(declared))
        });
        assert!(exists, "docs/SEMANTICS.md names `{name}`, which no file declares");
    }
    assert!(count > 300, "only {count} tests are found in docs/SEMANTICS.md");
}
