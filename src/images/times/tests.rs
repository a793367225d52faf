use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::store::manifest::tests::sample;
use crate::store::{Manifest, Size};
use crate::tree::NodeId;
use crate::tree::times_tests::{Model, Thing, models, naive, tree_bytes, whole};

struct Place {
    store: Arc<Store>,
    dir: tempfile::TempDir,
    trees: HashMap<Digest, Arc<Tree>>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(dir.path()).unwrap());
        Self { store, dir, trees: HashMap::new() }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn times(&self, kept: bool) -> Times {
        Times::new(Arc::clone(&self.store), kept.then(|| self.cache()))
    }

    /// Makes an image, a fixed point or not, as requested.
    fn image(&mut self, second: i64, model: &Model, parent: Option<Digest>, fixed: bool) -> Digest {
        let bytes = tree_bytes(model);
        let mut manifest = sample();
        manifest.world.fs = self.store.blobs().put(&bytes).unwrap();
        self.trees.insert(manifest.world.fs, Arc::new(Tree::parse(&bytes).unwrap()));
        manifest.created_at = DateTime::from_timestamp(second, 0).unwrap();
        manifest.parents = parent.into_iter().collect();
        for number in 0.. {
            manifest.agent.fingerprint = number.to_string();
            if is_fixed_point(&Digest::of(&manifest.to_bytes().unwrap())) == fixed {
                break;
            }
        }
        self.put(&manifest)
    }

    /// Stores a manifest without waiting for the disk.
    fn put(&self, manifest: &Manifest) -> Digest {
        let bytes = manifest.to_bytes().unwrap();
        let id = Digest::of(&bytes);
        std::fs::write(self.store.images().marker(&id), bytes).unwrap();
        id
    }

    fn tree(&self, image: &Digest) -> Arc<Tree> {
        Arc::clone(&self.trees[&self.store.image(image).unwrap().manifest.world.fs])
    }

    fn nodes(&self, times: &Times, image: &Digest) -> Arc<NodeTimes> {
        let read = |digest: &Digest| {
            let bytes = self.store.blobs().read(digest, Size::AtMost(1 << 20)).ok()?;
            Some(Arc::new(Tree::parse(&bytes).unwrap()))
        };
        times.nodes(image, &self.tree(image), &read).unwrap()
    }

    /// The time of a file at a path, in seconds.
    fn at(&self, times: &Times, image: &Digest, path: &str) -> i64 {
        let node = self.tree(image).resolve(path.as_bytes()).unwrap();
        self.nodes(times, image).at(node) / 1_000_000_000
    }

    fn remove(&self, image: &Digest) {
        std::fs::remove_file(self.store.images().marker(image)).unwrap();
    }
}

fn files(files: &[(&str, u8)]) -> Model {
    whole(files.iter().map(|(path, content)| ((*path).to_owned(), Thing::File(*content))).collect())
}

fn damage(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..crate::crashpack::failing::config() })]

    /// Without stored times, with those of an earlier run, with damaged ones, and in any order of questions.
    #[test]
    fn every_image_of_a_random_line_has_the_times_of_the_rule(
        line in proptest::collection::vec((0i64..1000, models(), proptest::bool::weighted(0.2)), 1..9),
        order in any::<proptest::sample::Index>(),
    ) {
        let mut place = Place::new();
        let mut ids: Vec<Digest> = Vec::new();
        // Oldest first here; the rule has the oldest last.
        for (second, model, fixed) in &line {
            ids.push(place.image(*second, model, ids.last().copied(), *fixed));
        }
        let all: Vec<(i64, Model)> =
            line.iter().map(|(second, model, _)| (second * 1_000_000_000, model.clone())).collect();
        for round in 0..4 {
            let times = place.times(round > 0);
            if round == 3 && place.cache().join("times").exists() {
                damage(&place.cache().join("times"));
            }
            let first = order.index(ids.len());
            for at in (first..ids.len()).chain(0..first) {
                // From the image back to the fixed point that ends its line, if there is one.
                let begin = (0..=at).rev().find(|at| line[*at].2).unwrap_or(0);
                let run: Vec<_> = all[begin..=at].iter().rev().cloned().collect();
                let nodes = place.nodes(&times, &ids[at]);
                let tree = place.tree(&ids[at]);
                for id in tree.nodes() {
                    let path = String::from_utf8(tree.path(id)).unwrap();
                    prop_assert_eq!(nodes.at(id), naive(&run, &path), "round {}, image {}: {}", round, at, path);
                }
            }
        }
    }
}

#[test]
fn the_first_image_costs_no_tree_and_its_child_one_and_equal_trees_none() {
    let mut place = Place::new();
    let (one, two) = (files(&[("a", 1), ("b", 1)]), files(&[("a", 1), ("b", 2)]));
    let a = place.image(1, &one, None, false);
    let b = place.image(2, &two, Some(a), false);
    let c = place.image(3, &two, Some(b), false);
    let times = place.times(false);
    assert_eq!((place.at(&times, &a, "a"), times.trees_read()), (1, 0));
    assert_eq!((place.at(&times, &c, "a"), place.at(&times, &c, "b"), times.trees_read()), (1, 2, 1));
    assert_eq!((place.at(&times, &b, "b"), times.trees_read()), (2, 2));
}

#[test]
fn remembered_times_save_reading_the_trees_of_the_line_and_later_images() {
    let mut place = Place::new();
    let mut ids: Vec<Digest> = Vec::new();
    for n in 0..20 {
        let model = files(&[("old", 0), ("new", n)]);
        ids.push(place.image(i64::from(n), &model, ids.last().copied(), false));
    }
    let times = place.times(true);
    place.nodes(&times, &ids[18]);
    assert_eq!(times.trees_read(), 18);
    let times = place.times(true);
    assert_eq!((place.at(&times, &ids[18], "old"), times.trees_read()), (0, 0));
    // Its child needs the tree before it, and no other.
    let times = place.times(true);
    assert_eq!((place.at(&times, &ids[19], "old"), times.trees_read()), (0, 1));
}

#[test]
fn a_parent_that_is_gone_or_whose_tree_is_ends_the_line_and_an_answer_stays() {
    let mut place = Place::new();
    let model = |n| files(&[("old", 0), ("new", n)]);
    let a = place.image(1, &model(1), None, false);
    let b = place.image(2, &model(2), Some(a), false);
    let c = place.image(3, &model(3), Some(b), false);
    let times = place.times(true);
    assert_eq!(place.at(&times, &c, "old"), 1);
    place.remove(&a);
    // This mount keeps its answers; another one sees the store's present state, with or without stored times.
    assert_eq!(place.at(&times, &c, "old"), 1);
    for kept in [true, false] {
        let times = place.times(kept);
        assert_eq!((place.at(&times, &c, "old"), place.at(&times, &b, "old")), (2, 2));
    }
    let digest = place.store.image(&b).unwrap().manifest.world.fs;
    std::fs::write(place.store.blobs().path(&digest), b"damaged").unwrap();
    assert_eq!(place.at(&place.times(false), &c, "old"), 3);
    place.remove(&b);
    assert_eq!(place.at(&place.times(true), &c, "old"), 3);
}

#[test]
fn a_line_longer_than_any_honest_one_ends_everywhere_and_neighbours_of_its_begin_agree() {
    let mut place = Place::new();
    let model = files(&[("a", 1)]);
    let mut ids: Vec<Digest> = Vec::new();
    for n in 0..i64::from(LONGEST) + 3 {
        ids.push(place.image(n, &model, ids.last().copied(), false));
    }
    let longest = LONGEST as usize;
    for order in [[longest + 2, longest, longest - 1], [longest - 1, longest, longest + 2]] {
        let times = place.times(false);
        for at in order {
            let want = if at < longest { 0 } else { at as i64 };
            assert_eq!(place.at(&times, &ids[at], "a"), want, "image {at}");
        }
    }
}

#[test]
fn layers_and_pages_have_the_time_of_the_image_in_which_their_bytes_appeared() {
    let place = Place::new();
    let put = |bytes: &[u8]| place.store.blobs().put(bytes).unwrap();
    let mut line: Vec<Digest> = Vec::new();
    let mut lists: HashMap<Digest, PageList> = HashMap::new();
    let page = |n: u8| Digest::of(&[n]);
    for (second, trace, pages) in [
        (1, "a", vec![(0, page(1), page(2))]),
        (2, "b", vec![(0, page(1), page(3)), (5, page(4), page(5))]),
        (3, "b", vec![(0, page(1), page(3)), (5, page(4), page(5))]),
        (4, "a", vec![(0, page(1), page(2)), (5, page(4), page(5))]),
    ] {
        let mut manifest = sample();
        manifest.trace.messages = put(trace.as_bytes());
        manifest.cache.manifest = put(format!("{pages:?}").as_bytes());
        lists.insert(manifest.cache.manifest, pages);
        manifest.created_at = DateTime::from_timestamp(second, 0).unwrap();
        manifest.parents = line.last().copied().into_iter().collect();
        while is_fixed_point(&Digest::of(&manifest.to_bytes().unwrap())) {
            manifest.agent.fingerprint.push('x');
        }
        line.push(place.put(&manifest));
    }
    let times = place.times(false);
    let layers = |at: usize| {
        let of = |file| times.layer(&line[at], file).unwrap() / 1_000_000_000;
        (of(LayerFile::TraceMessages), of(LayerFile::ModelBase))
    };
    assert_eq!([layers(3), layers(2), layers(1), layers(0)], [(4, 1), (2, 1), (2, 1), (1, 1)]);
    let pages = |at: usize, ix, key| {
        let found = times.pages(&line[at], &|digest| lists.get(digest).cloned()).unwrap();
        page_time(&found, ix, key).map(|time| time / 1_000_000_000)
    };
    assert_eq!((pages(3, 0, true), pages(3, 0, false), pages(3, 5, true)), (Some(1), Some(4), Some(2)));
    assert_eq!((pages(2, 0, false), pages(2, 5, false), pages(2, 6, true)), (Some(2), Some(2), None));
}

#[test]
fn odd_moments_are_cut_and_shown_as_they_are() {
    let place = Place::new();
    let parse = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
    let _ = &place;
    assert_eq!(nanoseconds(&parse("2400-01-01T00:00:00Z")), i64::MAX);
    assert_eq!(nanoseconds(&parse("1600-01-01T00:00:00Z")), i64::MIN);
    assert_eq!(nanoseconds(&parse("1969-12-31T23:59:59Z")), -1_000_000_000);
    let tree = Tree::parse(&tree_bytes(&BTreeMap::new())).unwrap();
    assert_eq!(tree.shown_mtime_ns(NodeId::ROOT, &NodeTimes::all(9)), 9);
}
