//! Projects: found from a directory, imported when they changed, in a line with a separate name; and commits
//! of them.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pfimg::audit::Log;
use pfimg::digest::Digest;
use pfimg::ops::import::project::{Project, Refreshed, refresh};
use pfimg::ops::import::{Options, Parent, from_commit};
use pfimg::store::Store;

use super::git::{commit, git, repository};
use super::support::{House, exact};
use crate::common::{Rng, wait_until};

/// A store to which projects are brought.
struct Line {
    house: House,
    store: Store,
}

impl Line {
    fn new() -> Self {
        let house = House::new();
        let store = Store::create(house.store()).unwrap();
        Self { house, store }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.house.dir.join(name)
    }

    /// Where `pfimg import` keeps its indices as well.
    fn options(&self) -> Options {
        Options {
            index_dir: Some(self.dir("cache/pfimg/imports")),
            jobs: NonZeroUsize::new(2).unwrap(),
            ..Options::new("", Log::off())
        }
    }

    #[track_caller]
    fn refresh(&self, dir: &Path) -> Refreshed {
        refresh(&self.store, &Project::find(dir).unwrap(), &self.options(), &()).unwrap()
    }

    fn parents(&self, image: &Digest) -> Vec<Digest> {
        self.store.image(image).unwrap().manifest.parents
    }

    fn tag(&self, name: &str) -> Digest {
        self.store.tags().get(name).unwrap()
    }

    fn images(&self) -> usize {
        self.house.images().len()
    }

    fn export(&self, image: &Digest, name: &str) -> PathBuf {
        let out = self.dir(name);
        self.house.pfimg(["export", &image.to_string(), out.to_str().unwrap()]).exits(0);
        out
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
    fs::write(dir.join(name), text).unwrap();
}

#[test]
fn a_changed_project_is_imported_in_a_line_and_an_unchanged_one_makes_no_image() {
    let line = Line::new();
    let dir = line.dir("shop");
    write(&dir, "src/a", "1");
    write(&dir, ".env", "key");
    let first = line.refresh(&dir);
    assert_eq!((first.name.as_str(), first.imported, first.files, first.bytes), ("shop", true, 2, 4));
    assert_eq!((line.parents(&first.image), line.tag("shop")), (vec![], first.image));
    let same = line.refresh(&dir.join("src/.."));
    assert_eq!((same.imported, same.image, line.images()), (false, first.image, 1));
    // Each kind of change makes an image, which comes from the last one.
    let mut last = first.image;
    let changes: [(&str, &dyn Fn()); 9] = [
        ("content", &|| write(&dir, "src/a", "2")),
        ("a new file", &|| write(&dir, "b", "")),
        ("a mode", &|| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(dir.join("b"), mode).unwrap();
        }),
        ("a link", &|| std::os::unix::fs::symlink("b", dir.join("l")).unwrap()),
        ("another target", &|| {
            fs::remove_file(dir.join("l")).unwrap();
            std::os::unix::fs::symlink("c", dir.join("l")).unwrap();
        }),
        ("a time", &|| fs::File::open(dir.join("b")).unwrap().set_modified(UNIX_EPOCH).unwrap()),
        ("another name of a file", &|| fs::hard_link(dir.join("b"), dir.join("same")).unwrap()),
        ("a name", &|| fs::rename(dir.join("b"), dir.join("c")).unwrap()),
        ("a deletion", &|| fs::remove_dir_all(dir.join("src")).unwrap()),
    ];
    for (what, change) in changes {
        // The image is unchanged also where the stamps alone tell it.
        wait_until("everything is older than the index", || {
            line.refresh(&dir);
            let dir = fs::metadata(&dir).unwrap().modified().unwrap();
            dir.elapsed().is_ok_and(|age| age.as_millis() > 300)
        });
        assert_eq!(line.refresh(&dir).image, last, "before {what}");
        change();
        let next = line.refresh(&dir);
        assert!(next.imported, "{what}");
        assert_eq!((line.parents(&next.image), line.tag("shop")), (vec![last], next.image), "{what}");
        last = next.image;
    }
    assert_eq!(line.images(), 10);
    let out = line.export(&last, "out");
    assert_eq!(exact(&out), exact(&dir));
    line.house.pfimg(["verify"]).exits(0);
}

#[test]
fn a_missing_image_is_made_again_and_the_line_continues_without_the_index() {
    let line = Line::new();
    let dir = line.dir("shop");
    write(&dir, "a", "1");
    let first = line.refresh(&dir).image;
    let no_index = || fs::remove_dir_all(line.dir("cache/pfimg/imports")).unwrap();
    no_index();
    assert_eq!(line.refresh(&dir).image, first, "the store remembers the line");
    write(&dir, "a", "2");
    no_index();
    let second = line.refresh(&dir).image;
    assert_eq!(line.parents(&second), [first]);
    fs::remove_file(line.dir("store/images").join(format!("{}.json", second.hex()))).unwrap();
    let again = line.refresh(&dir);
    assert!(again.imported && line.tag("shop") == again.image, "{again:?}");
    line.house.pfimg(["verify"]).exits(0);
}

#[test]
fn imports_by_hand_and_of_a_run_are_one_line() {
    let line = Line::new();
    let dir = line.dir("shop");
    let by_hand = |text: &str, args: &[&str]| {
        write(&dir, "a", text);
        let report = line.house.import(&dir, args);
        super::support::id(&report).parse::<Digest>().unwrap()
    };
    let first = by_hand("1", &["--tag", "shop"]);
    assert_eq!(line.refresh(&dir).image, first);
    write(&dir, "a", "2");
    let second = line.refresh(&dir).image;
    assert_eq!(line.parents(&second), [first]);
    let third = by_hand("3", &["--tag", "shop", "--force-tag"]);
    assert_eq!(line.parents(&third), [second]);
    // Without the tag it is still of the line.
    let fourth = by_hand("4", &[]);
    assert_eq!((line.parents(&fourth), line.tag("shop")), (vec![third], third));
    let fifth = by_hand("5", &[]);
    let refreshed = line.refresh(&dir);
    assert_eq!((refreshed.image, refreshed.imported, line.tag("shop")), (fifth, false, fifth));
    // Nor does the line end with the index.
    fs::remove_dir_all(line.dir("cache/pfimg/imports")).unwrap();
    let sixth = by_hand("6", &["--tag", "shop", "--force-tag"]);
    assert_eq!(line.parents(&sixth), [fifth]);
    // Made before the store remembered lines, known by the index.
    fs::remove_file(line.dir("store/refs/projects/shop")).unwrap();
    assert_eq!(line.refresh(&dir).name, "shop");
}

#[test]
fn folders_of_one_name_and_names_that_are_taken_get_lines_of_their_own() {
    let line = Line::new();
    let [a, b, c] = ["a/shop", "b/shop", "c/shop"].map(|name| line.dir(name));
    for dir in [&a, &b, &c] {
        write(dir, "file", dir.to_str().unwrap());
    }
    let of = |dir: &Path| {
        let refreshed = line.refresh(dir);
        assert_eq!((line.tag(&refreshed.name), refreshed.warnings), (refreshed.image, vec![]));
        (refreshed.name, refreshed.image)
    };
    let (first, second) = (of(&a), of(&b));
    assert_eq!((first.0.as_str(), second.0.as_str()), ("shop", "shop-2"));
    // Also where the contents are the same.
    write(&b, "file", a.to_str().unwrap());
    assert_eq!(of(&a), first);
    let third = of(&b);
    assert_eq!((third.0.as_str(), line.parents(&third.1)), ("shop-2", vec![second.1]));
    // A tag and a fork take their names as well.
    line.store.tags().set("shop-3", &second.1, false).unwrap();
    line.house.pfimg(["fork", "shop", "shop-4"]).exits(0);
    assert_eq!(of(&c).0, "shop-5");
    // A line whose file is empty belongs to no project.
    fs::write(line.dir("store/refs/projects/shop"), "").unwrap();
    assert_eq!(of(&a).0, "shop-6");
    assert_eq!((of(&b).0, of(&c).0), (third.0, "shop-5".into()));
    // A link to a folder is that folder.
    std::os::unix::fs::symlink(&b, line.dir("link")).unwrap();
    assert_eq!(of(&line.dir("link")).0, "shop-2");
}

#[test]
fn a_moved_tag_stays_on_its_new_image_with_a_warning() {
    let line = Line::new();
    let (dir, other) = (line.dir("shop"), line.dir("other"));
    write(&dir, "a", "1");
    write(&other, "a", "other");
    let (first, foreign) = (line.refresh(&dir).image, line.refresh(&other).image);
    line.store.tags().set("shop", &foreign, true).unwrap();
    write(&dir, "a", "2");
    let next = line.refresh(&dir);
    assert_eq!((line.tag("shop"), line.parents(&next.image)), (foreign, vec![first]));
    assert!(next.warnings.len() == 1 && next.warnings[0].contains("tag shop is on image"), "{next:?}");
    // An older image of the line counts as one of it, and a tag that was removed comes back.
    line.store.tags().set("shop", &first, true).unwrap();
    assert_eq!((line.refresh(&dir).warnings, line.tag("shop")), (vec![], next.image));
    line.store.tags().remove("shop").unwrap();
    assert_eq!((line.refresh(&dir).image, line.tag("shop")), (next.image, next.image));
}

#[test]
fn one_of_many_concurrent_refreshes_imports() {
    let line = Line::new();
    let dir = line.dir("shop");
    for n in 0..200 {
        write(&dir, &format!("d{}/f{n}", n % 7), &format!("{n}"));
    }
    let all: Vec<Refreshed> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| line.refresh(&dir))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.iter().filter(|refreshed| refreshed.imported).count(), 1);
    assert!(all.iter().all(|refreshed| refreshed.image == all[0].image && refreshed.name == "shop"));
    assert_eq!((line.images(), line.store.projects().names().unwrap()), (1, vec!["shop".to_owned()]));
}

#[test]
fn the_ignore_file_holds_for_a_project_and_options_of_the_caller_too() {
    let line = Line::new();
    let dir = line.dir("shop");
    for name in ["kept", "out.log", "mine", "target/x"] {
        write(&dir, name, name);
    }
    write(&dir, ".pfignore", "*.log\n!x\n");
    write(&dir, ".gitignore", "target\n");
    let mut options = Options { parent: Parent::None, ..line.options() };
    options.ignore.add("mine").unwrap();
    let refreshed = refresh(&line.store, &Project::at(&dir).unwrap(), &options, &()).unwrap();
    assert_eq!((refreshed.files, refreshed.warnings.len()), (4, 1));
    assert!(refreshed.warnings[0].contains("\"!x\" is not followed"), "{refreshed:?}");
    // A file that a new rule covers is missing in the next image, even if nothing else has changed.
    write(&dir, ".pfignore", "*.log\nkept\n");
    let next = refresh(&line.store, &Project::at(&dir).unwrap(), &options, &()).unwrap();
    assert!(next.imported && next.files == 3 && line.parents(&next.image) == [refreshed.image]);
}

#[test]
fn worktrees_and_submodules_are_projects_of_their_own_and_change_with_their_repository() {
    let line = Line::new();
    let (main, tree) = (line.dir("main"), line.dir("tree"));
    repository(&main, &[]);
    git(&main, &["worktree", "add", "-q", tree.to_str().unwrap(), "-b", "side"]);
    assert_eq!(Project::find(&tree.join("d")).unwrap(), Project { root: tree.clone(), name: "tree".into() });
    let first = line.refresh(&tree.join("d"));
    assert_eq!(line.refresh(&tree).image, first.image);
    let originals = (exact(&main), exact(&tree));
    commit(&main, "a", "2");
    assert_ne!(originals.0, exact(&main));
    let next = line.refresh(&tree);
    assert!(next.imported, "the commit is in the tree's repository as well");
    let out = line.export(&next.image, "out");
    assert_eq!(git(&out, &["log", "-1", "--format=%s", "main"]).trim(), "a is 2");
    assert_eq!(git(&out, &["status", "--porcelain"]), "");
    assert_eq!(originals.1, exact(&tree));
}

#[test]
fn an_image_of_a_commit_stands_there_and_is_clean_and_the_project_stays_as_it_is() {
    let line = Line::new();
    let dir = line.dir("shop");
    repository(&dir, &[]);
    fs::write(dir.join(".gitattributes"), "*.crlf text eol=crlf\n").unwrap();
    fs::write(dir.join("x.crlf"), "1\n2\n").unwrap();
    git(&dir, &["add", "-A"]);
    git(&dir, &["commit", "-q", "-m", "attributes"]);
    git(&dir, &["tag", "old"]);
    git(&dir, &["branch", "side"]);
    commit(&dir, "a", "2");
    commit(&dir, "new", "");
    // Half done, and dirty.
    fs::write(dir.join("a"), "3").unwrap();
    git(&dir, &["add", "a"]);
    fs::write(dir.join(".git/MERGE_HEAD"), git(&dir, &["rev-parse", "old"])).unwrap();
    fs::write(dir.join("untracked"), "").unwrap();
    line.refresh(&dir);
    let original = exact(&dir);
    let project = Project::find(&dir).unwrap();
    let from = |dir: &Project, rev: &str| from_commit(&line.store, dir, rev, &line.options(), &());
    for (rev, head, stands) in
        [("old", "HEAD", "old"), ("HEAD~1", "HEAD", "main~1"), ("side", "refs/heads/side", "side")]
    {
        let report = from(&project, rev).unwrap();
        assert!(report.new && report.reports.is_empty(), "{report:?}");
        assert_eq!(line.parents(&report.image), []);
        let out = line.export(&report.image, &format!("out-{stands}"));
        assert_eq!(git(&out, &["status", "--porcelain"]), "", "{rev}");
        assert_eq!(git(&out, &["rev-parse", "--symbolic-full-name", "HEAD"]).trim(), head);
        assert_eq!(git(&out, &["rev-parse", "HEAD"]), git(&dir, &["rev-parse", stands]));
        assert_eq!(git(&out, &["for-each-ref"]), git(&dir, &["for-each-ref"]));
        assert!(!out.join("untracked").exists() && !out.join("new").exists());
        assert_eq!(fs::read(out.join("x.crlf")).unwrap(), b"1\r\n2\r\n");
        assert!(!out.join(".git/MERGE_HEAD").exists());
        git(&out, &["fsck", "--strict"]);
        commit(&out, "a", "in the copy");
    }
    // The objects were known from the import before.
    for (rev, why) in [
        ("none", "has no commit \"none\""),
        ("--help", "is not the name of a commit"),
        ("", "is not the name of a commit"),
        ("old:a", "has no commit"),
    ] {
        let error = from(&project, rev).unwrap_err().to_string();
        assert!(error.contains(why), "{rev}: {error}");
    }
    assert_eq!(exact(&dir), original);
    assert_eq!(line.tag("shop"), line.refresh(&dir).image);
    // Of a worktree, by its own HEAD.
    git(&dir, &["worktree", "add", "-q", line.dir("tree").to_str().unwrap(), "side"]);
    let tree = Project::find(&line.dir("tree")).unwrap();
    let out = line.export(&from(&tree, "HEAD").unwrap().image, "out-tree");
    assert_eq!(git(&out, &["status", "--porcelain", "--branch"]), "## side\n");
    assert_eq!(git(&out, &["worktree", "list"]).lines().count(), 1);
    // Submodules are as after a clone.
    let library = line.dir("library");
    repository(&library, &[]);
    git(&dir, &["reset", "-q", "--hard"]);
    git(&dir, &["submodule", "--quiet", "add", library.to_str().unwrap(), "sub"]);
    git(&dir, &["commit", "-q", "-m", "sub"]);
    let out = line.export(&from(&project, "HEAD").unwrap().image, "out-sub");
    assert_eq!((git(&out, &["status", "--porcelain"]), out.join("sub/a").exists()), (String::new(), false));
    git(&out, &["submodule", "--quiet", "update", "--init"]);
    assert_eq!((git(&out, &["status", "--porcelain"]), out.join("sub/a").exists()), (String::new(), true));
    commit(&out.join("sub"), "a", "in the copy");
    // No repository, no commit.
    let error = from(&Project::at(&line.dir("cache")).unwrap(), "HEAD").unwrap_err().to_string();
    assert!(error.contains("not a git repository"), "{error}");
}

#[test]
fn the_command_imports_a_commit_under_a_tag_and_the_line_of_the_folder_stays() {
    let line = Line::new();
    let dir = line.dir("shop");
    repository(&dir, &[]);
    git(&dir, &["tag", "old"]);
    commit(&dir, "a", "2");
    let path = dir.to_str().unwrap();
    let by_hand = line.house.pfimg(["import", path, "--tag", "shop"]).exits(0).stdout;
    let made =
        line.house.pfimg(["import", path, "--from-commit", "old", "--tag", "then", "--json"]).exits(0).json();
    let image: Digest = made["image"].as_str().unwrap().parse().unwrap();
    assert_eq!((line.tag("then"), line.parents(&image), &made["new"]), (image, vec![], &true.into()));
    let out = line.export(&image, "out");
    assert_eq!(git(&out, &["status", "--porcelain"]), "");
    assert_eq!(git(&out, &["rev-parse", "HEAD"]), git(&dir, &["rev-parse", "old"]));
    // The next import of the folder continues the last one of the folder.
    fs::write(dir.join("a"), "3").unwrap();
    let next: Digest = line.house.pfimg(["import", path]).exits(0).stdout.trim().parse().unwrap();
    assert_eq!(line.parents(&next), [by_hand.trim().parse().unwrap()]);
    let wrong = line.house.pfimg(["import", path, "--from-commit", "none"]).exits(5).stderr;
    assert!(wrong.contains("has no commit \"none\""), "{wrong}");
    line.house.pfimg(["import", path, "--from-commit", "old", "--no-parent"]).exits(2);
}

/// One change of a folder that its stamps may hardly show.
fn change(rng: &mut Rng, dir: &Path) {
    let name = |rng: &mut Rng| dir.join(format!("d{}/f{}", rng.below(3), rng.below(4)));
    let (path, other) = (name(rng), name(rng));
    let old = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + rng.below(2));
    let touch = |path: &Path| {
        fs::File::open(path).and_then(|file| file.set_modified(old)).ok();
    };
    match rng.below(9) {
        // Of one length, and with one time.
        0 | 1 => {
            let _ = fs::write(&path, format!("{:04}", rng.below(10_000)));
            touch(&path);
        }
        2 => {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(*rng.pick(&[0o600, 0o644]));
            let _ = fs::set_permissions(&path, mode);
        }
        3 => drop(fs::rename(&path, &other)),
        4 => drop(fs::remove_file(&path)),
        5 => drop(fs::hard_link(&path, &other)),
        6 => drop(std::os::unix::fs::symlink(format!("t{}", rng.below(2)), &path)),
        7 => {
            let folder = path.parent().unwrap().join("sub");
            let _ = if folder.exists() { fs::remove_dir(&folder) } else { fs::create_dir(&folder) };
            touch(path.parent().unwrap());
        }
        _ => touch(path.parent().unwrap()),
    }
}

#[test]
fn a_refresh_after_any_change_equals_an_import_without_an_index() {
    let line = Line::new();
    for seed in 0..4 {
        let again = "cargo test --test cli maintenance::project::whatever".to_owned();
        let _program = crate::common::failing::Program { what: "a refreshed project", seed, again };
        let mut rng = Rng::new(seed);
        let dir = line.dir(&format!("project-{seed}"));
        for folder in ["d0", "d1", "d2"] {
            write(&dir, &format!("{folder}/f0"), "0000");
        }
        if seed % 2 == 1 {
            repository(&dir, &[]);
            git(
                &dir,
                &["worktree", "add", "-q", line.dir(&format!("tree-{seed}")).to_str().unwrap(), "-b", "side"],
            );
        }
        let mut images = std::collections::HashSet::new();
        for step in 0..60 {
            change(&mut rng, &dir);
            if rng.chance(50) {
                continue;
            }
            let refreshed = line.refresh(&dir);
            let whole = Options { parent: Parent::None, ..Options::new(&dir, Log::off()) };
            let fresh = pfimg::ops::import::import(&line.store, &whole, &()).unwrap();
            let tree = |image: &Digest| line.store.image(image).unwrap().manifest.world.fs;
            assert_eq!(tree(&refreshed.image), tree(&fresh.image), "seed {seed}, step {step}");
            assert_eq!(refreshed.imported, images.insert(refreshed.image), "seed {seed}, step {step}");
        }
    }
}
