//! What a StatefulSet does next: pure. One at a time in order where the policy is OrderedReady, all at
//! once where it is Parallel; updates go from the highest ordinal down.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{history::REVISION_LABEL, pods};

/// What the set asks for, as numbers.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) start: i32,
    pub(super) replicas: i32,
    /// OrderedReady.
    pub(super) ordered: bool,
    /// `None` for OnDelete.
    pub(super) update: Option<Update>,
    pub(super) min_ready_seconds: i32,
    pub(super) current_revision: String,
    pub(super) update_revision: String,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    pub(super) partition: i32,
    pub(super) max_unavailable: i32,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Create { ordinal: i32, revision: String },
    Delete { pod: Arc<Pod>, why: &'static str },
}

/// The ordinal of a pod of this set; `None` for a pod of another name.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let canonical = digits == "0" || !digits.starts_with('0');
    let numeric = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if canonical && numeric {
        digits.parse().ok()
    } else {
        None
    }
}

pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION_LABEL).map_or("", String::as_str)
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

impl Wanted {
    fn in_range(&self, ordinal: i32) -> bool {
        (self.start..self.start + self.replicas).contains(&ordinal)
    }

    /// Below the partition pods keep the old revision, also when they are made anew. Every other pod is made
    /// as the set now says: with OnDelete that is how an update comes about.
    fn revision_for(&self, ordinal: i32) -> &str {
        let old = self
            .update
            .is_some_and(|update| ordinal < self.start + update.partition);
        if old {
            &self.current_revision
        } else {
            &self.update_revision
        }
    }
}

/// The acts that are due now.
pub(super) fn plan(wanted: &Wanted, pods: &[Arc<Pod>], now: Timestamp) -> Vec<Act> {
    let named = |pod: &Pod| ordinal(&wanted.name, &pod.name_any());
    let mut acts = Vec::new();
    let at = |wanted_ordinal: i32| pods.iter().find(|pod| named(pod) == Some(wanted_ordinal));
    let available = |pod: &Pod| {
        is_running_and_ready(pod) && pods::is_available(pod, wanted.min_ready_seconds, now)
    };

    for ordinal in wanted.start..wanted.start + wanted.replicas {
        let Some(pod) = at(ordinal) else {
            let revision = wanted.revision_for(ordinal).to_owned();
            acts.push(Act::Create { ordinal, revision });
            if wanted.ordered {
                return acts;
            }
            continue;
        };
        if pods::is_finished(pod) {
            if !pods::is_terminating(pod) {
                acts.push(Act::Delete {
                    pod: Arc::clone(pod),
                    why: "RecreatingTerminatedPod",
                });
            }
            if wanted.ordered {
                return acts;
            }
            continue;
        }
        if wanted.ordered && (pods::is_terminating(pod) || !available(pod)) {
            return acts;
        }
    }

    let mut condemned: Vec<_> = pods
        .iter()
        .filter_map(|pod| Some((named(pod)?, pod)))
        .filter(|(ordinal, _)| !wanted.in_range(*ordinal))
        .collect();
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    let unhealthy = condemned
        .iter()
        .rev()
        .map(|(_, pod)| *pod)
        .find(|pod| !is_running_and_ready(pod) || pods::is_terminating(pod));
    for (_, pod) in condemned {
        if pods::is_terminating(pod) {
            if wanted.ordered {
                return acts;
            }
            continue;
        }
        // The first one that is not well may go before those above it that are.
        let first_unhealthy = unhealthy.is_some_and(|first| Arc::ptr_eq(first, pod));
        if wanted.ordered && !is_running_and_ready(pod) && !first_unhealthy {
            return acts;
        }
        acts.push(Act::Delete {
            pod: Arc::clone(pod),
            why: "ScalingDown",
        });
        if wanted.ordered {
            return acts;
        }
    }
    let Some(update) = wanted.update else {
        return acts;
    };
    acts.extend(roll(wanted, update, pods, &available));
    acts
}

fn roll(
    wanted: &Wanted,
    update: Update,
    pods: &[Arc<Pod>],
    available: &dyn Fn(&Pod) -> bool,
) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut replicas: Vec<_> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(&wanted.name, &pod.name_any())?, pod)))
        .filter(|(ordinal, _)| wanted.in_range(*ordinal))
        .collect();
    replicas.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    let present = i32::try_from(replicas.len()).unwrap_or(i32::MAX);
    let mut unavailable = (wanted.replicas - present).max(0);
    unavailable += i32::try_from(
        replicas
            .iter()
            .filter(|(_, pod)| pods::is_terminating(pod) || !available(pod))
            .count(),
    )
    .unwrap_or(i32::MAX);
    for (ordinal, pod) in replicas {
        if ordinal < wanted.start + update.partition {
            break;
        }
        if revision(pod) == wanted.update_revision || pods::is_terminating(pod) {
            continue;
        }
        let down_already = !available(pod);
        if !down_already && unavailable >= update.max_unavailable {
            break;
        }
        acts.push(Act::Delete {
            pod: Arc::clone(pod),
            why: "RollingUpdate",
        });
        unavailable += i32::from(!down_already);
        if unavailable >= update.max_unavailable {
            break;
        }
    }
    acts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Clone, Copy)]
    enum State {
        Ready,
        Starting,
        Leaving,
        Failed,
    }
    use State::{Failed, Leaving, Ready, Starting};

    fn pod(number: i32, revision: &str, state: State) -> Arc<Pod> {
        let (phase, ready) = match state {
            Ready | Leaving => ("Running", "True"),
            Starting => ("Pending", "False"),
            Failed => ("Failed", "False"),
        };
        let mut pod = json!({
            "metadata": {"name": format!("db-{number}"), "labels": {REVISION_LABEL: revision}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        });
        if matches!(state, Leaving) {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn wanted(replicas: i32, ordered: bool, partition: i32) -> Wanted {
        Wanted {
            name: "db".into(),
            start: 0,
            replicas,
            ordered,
            update: Some(Update {
                partition,
                max_unavailable: 1,
            }),
            min_ready_seconds: 0,
            current_revision: "old".into(),
            update_revision: "new".into(),
        }
    }

    fn shown(wanted: &Wanted, pods: &[Arc<Pod>]) -> Vec<String> {
        plan(wanted, pods, Timestamp::UNIX_EPOCH)
            .into_iter()
            .map(|act| match act {
                Act::Create { ordinal, revision } => format!("+{ordinal} {revision}"),
                Act::Delete { pod, .. } => format!("-{}", pod.name_any()),
            })
            .collect()
    }

    #[test]
    fn ordered_sets_go_one_by_one() {
        let set = wanted(3, true, 0);
        let nothing = Vec::<String>::new();
        assert_eq!(shown(&set, &[]), ["+0 new"]);
        assert_eq!(shown(&set, &[pod(0, "new", Starting)]), nothing);
        assert_eq!(shown(&set, &[pod(0, "new", Ready)]), ["+1 new"]);
        assert_eq!(shown(&set, &[pod(0, "new", Failed)]), ["-db-0"]);
        assert_eq!(shown(&set, &[pod(0, "new", Leaving)]), nothing);
        let four: Vec<_> = (0..5).map(|number| pod(number, "new", Ready)).collect();
        assert_eq!(shown(&set, &four), ["-db-4"]);
    }

    #[test]
    fn parallel_sets_do_all_at_once() {
        let set = wanted(3, false, 0);
        assert_eq!(
            shown(&set, &[pod(1, "new", Starting)]),
            ["+0 new", "+2 new"]
        );
        let more: Vec<_> = (0..5).map(|number| pod(number, "new", Ready)).collect();
        assert_eq!(shown(&set, &more), ["-db-4", "-db-3"]);
    }

    #[test]
    fn updates_go_from_the_top_and_stop_at_the_partition() {
        let old: Vec<_> = (0..3).map(|number| pod(number, "old", Ready)).collect();
        assert_eq!(shown(&wanted(3, true, 0), &old), ["-db-2"]);
        assert_eq!(shown(&wanted(3, true, 3), &old), [""; 0]);
        let half = [
            pod(0, "old", Ready),
            pod(1, "old", Ready),
            pod(2, "new", Ready),
        ];
        assert_eq!(shown(&wanted(3, true, 0), &half), ["-db-1"]);
        assert_eq!(shown(&wanted(3, true, 2), &half), [""; 0]);
        let gone = [pod(0, "old", Ready), pod(2, "new", Ready)];
        assert_eq!(
            shown(&wanted(3, true, 2), &gone),
            ["+1 old"],
            "below the partition: as it was"
        );
        assert_eq!(shown(&wanted(3, true, 1), &gone), ["+1 new"]);
        let starting = [
            pod(0, "old", Ready),
            pod(1, "old", Ready),
            pod(2, "new", Starting),
        ];
        assert_eq!(
            shown(&wanted(3, false, 0), &starting),
            [""; 0],
            "one may be missing, one is"
        );
    }

    #[test]
    fn on_delete_waits_for_the_user_and_then_makes_what_the_set_says() {
        let set = Wanted {
            update: None,
            ..wanted(3, true, 0)
        };
        let old: Vec<_> = (0..3).map(|number| pod(number, "old", Ready)).collect();
        assert_eq!(shown(&set, &old), [""; 0]);
        assert_eq!(shown(&set, &old[1..]), ["+0 new"]);
    }

    #[test]
    fn names_tell_ordinals() {
        assert_eq!(ordinal("db", "db-7"), Some(7));
        for name in ["db-", "db-07", "db-x", "other-1", "db-1-2", "db"] {
            assert_eq!(ordinal("db", name), None, "{name}");
        }
    }
}
