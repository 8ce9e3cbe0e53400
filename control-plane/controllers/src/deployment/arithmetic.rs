//! How many pods each ReplicaSet of a Deployment may have next: pure numbers, as upstream computes them.

use std::cmp::Reverse;

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};

use crate::int_or_percent::{Round, resolve};

/// What a Deployment asks for, resolved to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) rolling: bool,
}

/// The numbers of one ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// Seconds; only the order matters.
    pub(crate) created: i64,
    pub(crate) replicas: i32,
    pub(crate) available: i32,
    /// The annotation `max-replicas`: what the Deployment could have had when this size was chosen.
    pub(crate) max_replicas: Option<i32>,
}

/// A new size for one ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resize {
    pub(crate) name: String,
    pub(crate) replicas: i32,
}

impl Wanted {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        let rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate");
        if !rolling {
            return Self {
                replicas,
                max_surge: 0,
                max_unavailable: 0,
                rolling,
            };
        }
        let update = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = update
            .and_then(|u| u.max_surge.as_ref())
            .unwrap_or(&quarter);
        let unavailable = update
            .and_then(|u| u.max_unavailable.as_ref())
            .unwrap_or(&quarter);
        Self::rolling(replicas, surge, unavailable)
    }

    /// Surge rounds up, unavailability down; were both zero, a rollout could never take a step.
    pub(crate) fn rolling(replicas: i32, surge: &IntOrString, unavailable: &IntOrString) -> Self {
        let max_surge = resolve(surge, replicas, Round::Up).unwrap_or(0);
        let mut max_unavailable = resolve(unavailable, replicas, Round::Down).unwrap_or(0);
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self {
            replicas,
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            rolling: true,
        }
    }

    /// The most pods there may be at any time.
    pub(crate) fn max_total(&self) -> i32 {
        self.replicas + self.max_surge
    }

    fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }

    /// The next size of the newest ReplicaSet, which has `current` of `total` pods.
    pub(crate) fn new_size(&self, current: i32, total: i32) -> i32 {
        if !self.rolling {
            return self.replicas;
        }
        if current >= self.replicas {
            return self.replicas;
        }
        let room = (self.max_total() - total).max(0);
        current + room.min(self.replicas - current)
    }
}

fn total(sets: &[Set]) -> i32 {
    sets.iter().map(|set| set.replicas).sum()
}

/// Scale-downs of old ReplicaSets in a rolling update: first what is not available anyway, then as much
/// as availability allows.
pub(crate) fn shrink_old(wanted: Wanted, new: &Set, old: &[Set]) -> Vec<Resize> {
    let mut old: Vec<Set> = old.iter().filter(|set| set.replicas > 0).cloned().collect();
    old.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let before = old.clone();
    let all = total(&old) + new.replicas;
    let new_unavailable = new.replicas - new.available;
    let most = all - wanted.min_available() - new_unavailable;
    if most <= 0 {
        return Vec::new();
    }

    let mut removed = 0;
    for set in &mut old {
        let unhealthy = (set.replicas - set.available).max(0);
        let step = unhealthy.min(most - removed);
        set.replicas -= step;
        removed += step;
    }

    let available: i32 = old.iter().map(|set| set.available).sum::<i32>() + new.available;
    let mut surplus = available - wanted.min_available();
    for set in &mut old {
        let step = set.replicas.min(surplus).max(0);
        set.replicas -= step;
        surplus -= step;
    }

    let changed = old
        .into_iter()
        .zip(before)
        .filter(|(now, then)| now.replicas != then.replicas);
    changed
        .map(|(set, _)| Resize {
            name: set.name,
            replicas: set.replicas,
        })
        .collect()
}

/// Spreads a change of `spec.replicas` in the middle of a rollout over the active ReplicaSets in
/// proportion to their sizes; the largest takes what rounding leaves over.
pub(crate) fn scale_proportionally(
    wanted: Wanted,
    status_replicas: i32,
    active: &[Set],
) -> Vec<Resize> {
    let allowed = if wanted.replicas > 0 {
        wanted.max_total()
    } else {
        0
    };
    let to_add = allowed - total(active);
    let mut sets: Vec<&Set> = active.iter().collect();
    if to_add >= 0 {
        sets.sort_by_key(|set| (Reverse(set.replicas), Reverse(set.created), &set.name));
    } else {
        sets.sort_by_key(|set| (Reverse(set.replicas), set.created, &set.name));
    }
    let mut added = 0;
    let mut sizes: Vec<Resize> = sets
        .iter()
        .map(|set| {
            let share = proportion(wanted, status_replicas, set, to_add, added);
            added += share;
            Resize {
                name: set.name.clone(),
                replicas: set.replicas + share,
            }
        })
        .collect();
    if to_add != 0
        && let Some(largest) = sizes.first_mut()
    {
        largest.replicas = (largest.replicas + to_add - added).max(0);
    }
    sizes
}

fn proportion(wanted: Wanted, status_replicas: i32, set: &Set, to_add: i32, added: i32) -> i32 {
    if set.replicas == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let share = fraction(wanted, status_replicas, set);
    let left = to_add - added;
    if to_add > 0 {
        share.min(left)
    } else {
        share.max(left)
    }
}

fn fraction(wanted: Wanted, status_replicas: i32, set: &Set) -> i32 {
    if wanted.replicas == 0 {
        return -set.replicas;
    }
    // Without the annotation the rollout's size before the change is the best estimate.
    let base = set
        .max_replicas
        .filter(|max| *max != 0)
        .unwrap_or(status_replicas);
    if base == 0 {
        return 0;
    }
    let grown = f64::from(set.replicas) * f64::from(wanted.max_total()) / f64::from(base);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "pod counts are far below 2^31"
    )]
    let rounded = grown.round() as i32;
    rounded - set.replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, created: i64, replicas: i32, available: i32) -> Set {
        Set {
            name: name.into(),
            created,
            replicas,
            available,
            max_replicas: None,
        }
    }

    fn wanted(replicas: i32, max_surge: i32, max_unavailable: i32) -> Wanted {
        Wanted {
            replicas,
            max_surge,
            max_unavailable,
            rolling: true,
        }
    }

    fn sizes(resizes: Vec<Resize>) -> Vec<(String, i32)> {
        resizes
            .into_iter()
            .map(|resize| (resize.name, resize.replicas))
            .collect()
    }

    #[test]
    fn surge_rounds_up_unavailability_down_and_both_zero_is_mended() {
        let percent = |text: &str| IntOrString::String(text.into());
        let cases = [
            (10, percent("25%"), percent("25%"), (3, 2)),
            (3, percent("25%"), percent("25%"), (1, 0)),
            (1, percent("25%"), percent("25%"), (1, 0)),
            (5, IntOrString::Int(0), percent("10%"), (0, 1)),
            (2, IntOrString::Int(0), IntOrString::Int(5), (0, 2)),
            (0, percent("25%"), percent("25%"), (0, 0)),
        ];
        for (replicas, surge, unavailable, expected) in cases {
            let wanted = Wanted::rolling(replicas, &surge, &unavailable);
            assert_eq!(
                (wanted.max_surge, wanted.max_unavailable),
                expected,
                "{replicas}"
            );
        }
    }

    #[test]
    fn the_new_set_grows_as_far_as_surge_allows() {
        let cases = [
            // (wanted, current, total) -> next
            (wanted(10, 3, 2), 0, 10, 3),
            (wanted(10, 3, 2), 3, 11, 5),
            (wanted(10, 3, 2), 3, 13, 3),
            (wanted(10, 3, 2), 8, 8, 10),
            (wanted(10, 0, 1), 0, 10, 0),
            (wanted(3, 1, 0), 0, 0, 3),
            (wanted(3, 1, 0), 5, 5, 3),
            (
                Wanted {
                    rolling: false,
                    ..wanted(4, 0, 0)
                },
                0,
                0,
                4,
            ),
        ];
        for (wanted, current, total, expected) in cases {
            assert_eq!(
                wanted.new_size(current, total),
                expected,
                "{wanted:?} {current}/{total}"
            );
        }
    }

    #[test]
    fn old_sets_shrink_unhealthy_first_and_never_below_availability() {
        // 10 wanted, 2 may be missing: new 3 (none available), old 10 available -> two may go.
        let resizes = shrink_old(
            wanted(10, 3, 2),
            &set("new", 9, 3, 0),
            &[set("old", 1, 10, 10)],
        );
        assert_eq!(sizes(resizes), [("old".to_owned(), 8)]);
        // As new pods become available, old ones go.
        let resizes = shrink_old(
            wanted(10, 3, 2),
            &set("new", 9, 5, 5),
            &[set("old", 1, 8, 8)],
        );
        assert_eq!(sizes(resizes), [("old".to_owned(), 3)]);
        // Unhealthy pods of an old set go although availability is at its limit.
        let resizes = shrink_old(
            wanted(10, 3, 0),
            &set("new", 9, 3, 3),
            &[set("a", 1, 2, 0), set("b", 2, 8, 7)],
        );
        assert_eq!(sizes(resizes), [("a".to_owned(), 0), ("b".to_owned(), 7)]);
        // Nothing may go while the new set is not available and none may be missing.
        assert!(
            shrink_old(
                wanted(3, 1, 0),
                &set("new", 9, 1, 0),
                &[set("old", 1, 3, 3)]
            )
            .is_empty()
        );
        // Maximum unavailability counts new pods that are not available yet.
        assert!(
            shrink_old(
                wanted(10, 3, 2),
                &set("new", 9, 5, 0),
                &[set("old", 1, 8, 8)]
            )
            .is_empty()
        );
    }

    #[test]
    fn a_rollout_step_by_step_keeps_its_bounds_and_ends() {
        let wanted = wanted(10, 3, 2);
        let (mut new, mut old) = (set("new", 2, 0, 0), set("old", 1, 10, 10));
        for step in 0.. {
            assert!(step < 20, "the rollout does not end");
            new.replicas = wanted.new_size(new.replicas, new.replicas + old.replicas);
            assert!(new.replicas + old.replicas <= wanted.max_total());
            for resize in shrink_old(wanted, &new, std::slice::from_ref(&old)) {
                old.replicas = resize.replicas;
                old.available = resize.replicas;
            }
            assert!(new.available + old.available >= 8);
            if new.replicas == 10 && old.replicas == 0 {
                break;
            }
            new.available = new.replicas;
        }
    }

    #[test]
    fn scaling_in_mid_rollout_is_proportional() {
        let annotated = |name: &str, created, replicas, max| Set {
            max_replicas: Some(max),
            ..set(name, created, replicas, replicas)
        };
        // Upstream's example: 10 -> 15 with surge 3 (of 13): 8 and 5 become 11 and 7.
        let resizes = scale_proportionally(
            wanted(15, 3, 2),
            13,
            &[annotated("old", 1, 8, 13), annotated("new", 2, 5, 13)],
        );
        assert_eq!(
            sizes(resizes),
            [("old".to_owned(), 11), ("new".to_owned(), 7)]
        );
        // Down to zero takes everything.
        let resizes = scale_proportionally(
            wanted(0, 0, 0),
            13,
            &[annotated("old", 1, 8, 13), annotated("new", 2, 5, 13)],
        );
        assert_eq!(
            sizes(resizes),
            [("old".to_owned(), 0), ("new".to_owned(), 0)]
        );
        // The sum is always exactly what is allowed.
        for replicas in 1..40 {
            let wanted = wanted(replicas, 3, 1);
            let sets = [
                annotated("a", 1, 7, 13),
                annotated("b", 2, 4, 13),
                annotated("c", 3, 2, 13),
            ];
            let sum: i32 = scale_proportionally(wanted, 13, &sets)
                .iter()
                .map(|r| r.replicas)
                .sum();
            assert_eq!(sum, replicas + 3);
        }
    }
}
