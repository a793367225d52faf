//! Files with several names.

use super::entry::{Entry, Steps};
use super::held::{Here, same_entry};

/// A file of the fork with several names. At least one of them concerns the apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its names.
    pub paths: Vec<Vec<u8>>,
    /// The number of the file in the base that each name is of, if that has several names.
    pub base: Vec<Option<u64>>,
    /// The number of this group alone.
    pub number: u64,
}

/// Makes the names of one file in the fork one file here, where they hold the same in the end.
pub(super) fn link(group: &Group, here: &Here, steps: &mut Steps) {
    let after = |steps: &Steps, path: &[u8]| match steps.get(path) {
        Some((_, becomes)) => becomes.clone(),
        None => here.entry(path).cloned(),
    };
    let number_here = |path: &[u8]| match here.entry(path) {
        Some(Entry::File { links, .. }) => *links,
        _ => None,
    };
    let mut left: Vec<usize> = (0..group.paths.len()).collect();
    while let Some(first) = left.first().copied() {
        let of_first = after(steps, &group.paths[first]);
        let Some(of_first @ Entry::File { .. }) = of_first else {
            left.remove(0);
            continue;
        };
        let (alike, others): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|at| {
            after(steps, &group.paths[*at]).is_some_and(|entry| same_entry(&entry, &of_first))
        });
        left = others;
        // Names that were one file in the base and are two here were made two here: they stay so.
        let parted = |at: &usize| {
            let (a, b) = (&group.paths[first], &group.paths[*at]);
            let was_one = group.base[first].is_some() && group.base[first] == group.base[*at];
            let both = here.at(a).is_some() && here.at(b).is_some();
            let is_one = number_here(a).is_some() && number_here(a) == number_here(b);
            *at != first && was_one && both && !is_one
        };
        let alike: Vec<&Vec<u8>> =
            alike.iter().filter(|at| !parted(at)).map(|at| &group.paths[*at]).collect();
        let number = number_here(alike[0]);
        let is_one = number.is_some()
            && alike.iter().all(|path| !steps.contains_key(*path) && number_here(path) == number);
        if alike.len() < 2 || is_one {
            continue;
        }
        for path in alike {
            let was = here.entry(path).cloned();
            let (_, becomes) = steps.entry(path.clone()).or_insert_with(|| (was.clone(), was));
            if let Some(Entry::File { links, .. }) = becomes {
                *links = Some(group.number);
            }
        }
    }
}
