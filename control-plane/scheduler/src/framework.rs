//! The extension points of Kubernetes' scheduling framework, as far as they are used: PreEnqueue,
//! QueueSort, PreFilter with Filter, PreScore with Score and NormalizeScore, and queueing hints. Reserve and
//! PreBind have two users, `storage/` and `devices/`, and are calls of `scheduler.rs`; Bind is there too, PostFilter is
//! `preemption.rs`.
//!
//! A plugin is asked once for each pod to prepare (PreFilter, PreScore); what it returns judges the
//! nodes. A plugin that has nothing to say about a pod returns `None` and costs nothing.

use std::{collections::BTreeSet, sync::Arc};

use crate::{cache::Snapshot, event::Event, node::NodeInfo, pod::PodInfo};

pub(crate) const MAX_SCORE: i64 = 100;

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) plugin: &'static str,
    /// One entry for each thing that is missing, as shown to the user.
    pub(crate) reasons: Vec<String>,
    /// No pod that goes would change it, so preemption need not try.
    pub(crate) unresolvable: bool,
}

/// Judges nodes for one pod.
pub(crate) trait Filter: Send + Sync {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection>;
}

/// Rates nodes for one pod.
pub(crate) trait Score: Send + Sync {
    /// Any number; higher is better after [`Self::normalize`].
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings the numbers of all feasible nodes into 0..=100.
    fn normalize(&self, _nodes: &[Arc<NodeInfo>], _scores: &mut [i64]) {}
}

/// One plugin under its Kubernetes name.
pub(crate) trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// PreEnqueue: why the pod may not be tried at all yet.
    fn gate(&self, _pod: &PodInfo) -> Option<String> {
        None
    }

    /// PreFilter, where it concerns no node: why the pod fits none of them.
    fn refuse(&self, _pod: &PodInfo) -> Option<String> {
        None
    }

    /// PreFilter: the only nodes that come into question, where the pod names them.
    fn narrow(&self, _pod: &PodInfo) -> Option<BTreeSet<String>> {
        None
    }

    /// PreFilter.
    fn prepare_filter<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    /// PreScore, given the nodes that passed all filters.
    fn prepare_score<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How much the score counts.
    fn weight(&self) -> i64 {
        1
    }

    /// Queueing hint: whether `event` may make a pod schedulable that this plugin rejected.
    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool;
}

/// Scales scores so that the largest becomes 100; `reverse` makes low ones good.
pub(crate) fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max > 0 {
            *score = *score * MAX_SCORE / max;
        }
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}
