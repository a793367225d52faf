//! Prunes images: keeps a few of those that forks were sealed as automatically, and removes the others.
//!
//! Images with a tag, base images of forks, and images that a running program or an apply needs are always kept. Only
//! markers are removed; blobs that only they refer to go with the next collection of garbage.

mod needed;
mod seals;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::fork;
use crate::ops::apply::forget_finished;
use crate::store::applies::State;
use crate::store::manifest::APPLY_AGENT;
use crate::store::{Manifest, Store};
use needed::{forget_discarded, needed_with, remove};

pub use needed::Reason;
pub use seals::{SealsRemoved, remove_seals};

/// How many images of each group to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The number of newest images.
    pub last: u32,
    /// The newest of each hour that has any, for this many hours.
    pub hourly: u32,
    /// The newest of each day (UTC) that has any, for this many days.
    pub daily: u32,
}

/// An image that may be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The image.
    pub image: Digest,
    /// The group that it is counted in: a fork, or with all images the agent.
    pub group: String,
    /// The time at which it was made.
    pub created_at: DateTime<Utc>,
    /// Why it is kept. Before [`plan`] only reasons that hold for every policy. If it is empty after
    /// [`plan`], the image is removed.
    pub kept: Vec<Reason>,
}

/// The period that a rule counts an image in.
type Period = fn(&Candidate) -> i64;

/// Decides which images of each group are kept: newest first, as restic counts. Sorted by group, newest
/// first.
pub fn plan(mut candidates: Vec<Candidate>, policy: Policy) -> Vec<Candidate> {
    let rules: [(Reason, u32, Period); 3] = [
        (Reason::Last, policy.last, |_| 0),
        (Reason::Hourly, policy.hourly, |c| c.created_at.timestamp().div_euclid(3600)),
        (Reason::Daily, policy.daily, |c| c.created_at.timestamp().div_euclid(86_400)),
    ];
    // Of equal times the greater id is the newer, as everywhere.
    candidates.sort_by(|a, b| {
        a.group.cmp(&b.group).then(b.created_at.cmp(&a.created_at)).then(b.image.cmp(&a.image))
    });
    for group in candidates.chunk_by_mut(|a, b| a.group == b.group) {
        for (reason, most, period) in rules {
            let mut left = most;
            let mut last = None;
            for candidate in group.iter_mut() {
                let this = Some(period(candidate));
                if left > 0 && (reason == Reason::Last || this != last) {
                    candidate.kept.push(reason);
                    left -= 1;
                }
                last = this;
            }
        }
    }
    for candidate in &mut candidates {
        candidate.kept.sort_unstable();
    }
    candidates
}

/// The result of pruning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether this is a dry run: nothing was removed.
    pub dry_run: bool,
    /// Every image that was considered, by group, newest first. Those without a reason to be kept were
    /// removed.
    pub images: Vec<Candidate>,
    /// How many were removed.
    pub removed: u64,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// The options of pruning.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The rules for keeping images.
    pub policy: Policy,
    /// The forks whose images to prune, also discarded ones; empty for all forks.
    pub forks: Vec<String>,
    /// Every image of the store, of any origin, counted by agent.
    pub all: bool,
    /// Whether finished applies are forgotten, so that their images count like others.
    pub forget_applies: bool,
    /// Whether this is a dry run: nothing is removed.
    pub dry_run: bool,
}

/// Removes images that the policy does not keep. `lineage` are images that forks descend from, apart from
/// their bases.
pub fn prune(store: &Store, options: &Options, lineage: &[Digest]) -> Result<Report> {
    if options.forget_applies && !options.dry_run {
        forget_finished(store)?;
    }
    let (candidates, notes) = candidates(store, options, lineage)?;
    let mut report =
        Report { dry_run: options.dry_run, images: plan(candidates, options.policy), removed: 0, notes };
    let doomed: Vec<Digest> =
        report.images.iter().filter(|image| image.kept.is_empty()).map(|image| image.image).collect();
    if options.dry_run {
        report.removed = doomed.len() as u64;
        report.notes.extend(kept_for_applies(&report));
        return Ok(report);
    }
    let (removed, back) = remove(store, &doomed)?;
    for image in &mut report.images {
        if let Some(reason) = back.get(&image.image) {
            image.kept.push(*reason);
        }
    }
    report.removed = removed.len() as u64;
    report.notes.extend(kept_for_applies(&report));
    forget_discarded(store)?;
    Ok(report)
}

/// A remark on images that stay only because an apply can be taken back.
fn kept_for_applies(report: &Report) -> Option<String> {
    let number = report.images.iter().filter(|image| image.kept == [Reason::Applied]).count();
    let images = if number == 1 { "1 image stays".to_owned() } else { format!("{number} images stay") };
    (number > 0)
        .then(|| format!("{images} so that `pfimg apply --undo` works; --forget-applies removes them"))
}

/// Images that applies made to keep what they change. Reads every manifest, if there was an apply at all.
fn of_applies(store: &Store, mut ids: Vec<Digest>) -> Vec<Digest> {
    if !store.root().join("refs").join("applies").is_dir() {
        return Vec::new();
    }
    ids.retain(|id| store.image(id).is_ok_and(|image| !image.manifest.may_be_latest()));
    ids
}

/// The images to consider, each with the reasons that hold for every policy.
fn candidates(store: &Store, options: &Options, lineage: &[Digest]) -> Result<(Vec<Candidate>, Vec<String>)> {
    let for_applies = if options.forget_applies {
        store.applies().images_of(State::is_unfinished)?
    } else {
        store.applies().images()?
    };
    let (mut needed, mut notes) = (needed_with(store, for_applies)?, Vec::new());
    for id in lineage {
        let reasons = needed.entry(*id).or_default();
        if !reasons.contains(&Reason::ForkBase) {
            reasons.push(Reason::ForkBase);
        }
    }
    let mut seals = fork::references(store.root())?.seals;
    for gone in fork::discarded(store.root())? {
        seals.entry(gone.name).or_default().extend(gone.seals);
    }
    if let Some(unknown) = options.forks.iter().find(|name| !seals.contains_key(*name)) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no fork {unknown:?}"))
            .with_hint("list the forks with `pfimg forks`"));
    }
    let ids = store.images().ids(&mut |_| {})?;
    let groups: Vec<(Digest, Option<String>)> = if options.all {
        ids.into_iter().map(|id| (id, None)).collect()
    } else {
        let there: HashSet<Digest> = ids.iter().copied().collect();
        let mut seen = HashSet::new();
        let kept_by_applies = if options.forks.is_empty() { of_applies(store, ids) } else { Vec::new() };
        seals
            .into_iter()
            .filter(|(name, _)| options.forks.is_empty() || options.forks.contains(name))
            .flat_map(|(name, images)| images.into_iter().map(move |image| (image, Some(name.clone()))))
            .chain(kept_by_applies.into_iter().map(|image| (image, None)))
            .filter(|(image, _)| there.contains(image) && seen.insert(*image))
            .collect()
    };
    let mut candidates = Vec::new();
    for (image, fork) in groups {
        let manifest: Manifest = match store.image(&image) {
            Ok(found) => found.manifest,
            // An image that cannot be read is not counted, and stays.
            Err(error) => {
                notes
                    .push(Error::from(error).context(format_args!("cannot prune image {image}")).to_string());
                continue;
            }
        };
        let group = match fork {
            Some(name) => name,
            // The text of each names its apply.
            None if manifest.agent.kind == APPLY_AGENT => APPLY_AGENT.to_owned(),
            None => format!("{} {}", manifest.agent.kind, manifest.agent.fingerprint),
        };
        let kept = needed.get(&image).cloned().unwrap_or_default();
        candidates.push(Candidate { image, group, created_at: manifest.created_at, kept });
    }
    Ok((candidates, notes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(group: &str, minutes: i64, kept: &[Reason]) -> Candidate {
        let created_at = DateTime::from_timestamp(1_800_000_000 / 86_400 * 86_400 + minutes * 60, 0).unwrap();
        let image = Digest::of(format!("{group} {minutes}").as_bytes());
        Candidate { image, group: group.into(), created_at, kept: kept.to_vec() }
    }

    /// Minutes of the kept images, newest first.
    fn kept(minutes: &[i64], policy: Policy) -> Vec<i64> {
        let planned = plan(minutes.iter().map(|at| candidate("f", *at, &[])).collect(), policy);
        let start = 1_800_000_000 / 86_400 * 86_400;
        planned
            .iter()
            .filter(|c| !c.kept.is_empty())
            .map(|c| (c.created_at.timestamp() - start) / 60)
            .collect()
    }

    #[test]
    fn each_rule_keeps_the_images_that_it_describes() {
        const DAY: i64 = 1440;
        let minutes = [0, 10, 59, 60, 70, 119, 300, DAY - 1, DAY, DAY + 30, 3 * DAY, 3 * DAY + 1];
        let none = Policy::default();
        for (policy, expected) in [
            (none, vec![]),
            (Policy { last: 1, ..none }, vec![3 * DAY + 1]),
            (Policy { last: 3, ..none }, vec![3 * DAY + 1, 3 * DAY, DAY + 30]),
            (Policy { last: 99, ..none }, minutes.iter().rev().copied().collect()),
            (Policy { hourly: 2, ..none }, vec![3 * DAY + 1, DAY + 30]),
            (Policy { hourly: 99, ..none }, vec![3 * DAY + 1, DAY + 30, DAY - 1, 300, 119, 59]),
            // Days without any do not count.
            (Policy { daily: 2, ..none }, vec![3 * DAY + 1, DAY + 30]),
            (Policy { daily: 9, ..none }, vec![3 * DAY + 1, DAY + 30, DAY - 1]),
            (Policy { last: 2, hourly: 1, daily: 3 }, vec![3 * DAY + 1, 3 * DAY, DAY + 30, DAY - 1]),
        ] {
            assert_eq!(kept(&minutes, policy), expected, "{policy:?}");
        }
    }

    #[test]
    fn groups_are_counted_separately_and_needed_images_are_kept_in_addition() {
        let planned = plan(
            vec![
                candidate("a", 1, &[]),
                candidate("a", 2, &[Reason::Tagged]),
                candidate("a", 3, &[]),
                candidate("b", 1, &[]),
                candidate("b", 2, &[Reason::ForkBase]),
            ],
            Policy { last: 1, ..Policy::default() },
        );
        let shown: Vec<_> = planned.iter().map(|c| (c.group.as_str(), c.kept.clone())).collect();
        assert_eq!(
            shown,
            [
                ("a", vec![Reason::Last]),
                ("a", vec![Reason::Tagged]),
                ("a", vec![]),
                ("b", vec![Reason::Last, Reason::ForkBase]),
                ("b", vec![]),
            ]
        );
    }

    #[test]
    fn the_greater_id_is_newer_at_equal_times() {
        let mut twins = [candidate("f", 1, &[]), candidate("f", 1, &[])];
        twins[1].image = Digest::of(b"other");
        let greater = twins[0].image.max(twins[1].image);
        let planned = plan(twins.to_vec(), Policy { last: 1, ..Policy::default() });
        assert!(planned[0].image == greater && !planned[0].kept.is_empty() && planned[1].kept.is_empty());
    }

    proptest! {
        #![proptest_config(crate::crashpack::failing::config())]

        #[test]
        fn no_rule_keeps_more_than_it_says_and_the_newest_is_kept_if_any_is(
            minutes in proptest::collection::vec(0i64..20_000, 1..60), last in 0u32..5, hourly in 0u32..5, daily in 0u32..5,
        ) {
            let mut minutes = minutes;
            minutes.sort_unstable();
            minutes.dedup();
            let policy = Policy { last, hourly, daily };
            let planned = plan(minutes.iter().map(|at| candidate("f", *at, &[])).collect(), policy);
            for (reason, most) in [(Reason::Last, last), (Reason::Hourly, hourly), (Reason::Daily, daily)] {
                let count = planned.iter().filter(|c| c.kept.contains(&reason)).count();
                prop_assert!(count <= most as usize && (count > 0) == (most > 0));
            }
            prop_assert_eq!(!planned[0].kept.is_empty(), last + hourly + daily > 0);
        }
    }
}
