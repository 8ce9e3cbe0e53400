//! A DaemonSet's status: nodes that should have a pod, have one, and have one that serves.

use k8s_openapi::api::apps::v1::DaemonSetStatus;

use super::{
    Round,
    nodes::{Want, target_node},
};
use crate::pods;

pub(super) fn status(round: &Round<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: round.set.metadata.generation,
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    for (node, want, pods) in &round.nodes {
        let scheduled = pods.iter().any(|pod| target_node(pod) == Some(node));
        if *want != Want::Run {
            status.number_misscheduled += i32::from(scheduled);
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += i32::from(scheduled);
        let live = || pods.iter().filter(|pod| !pods::is_terminating(pod));
        status.number_ready += i32::from(live().any(|pod| pods::is_ready(pod)));
        available += i32::from(
            live().any(|pod| pods::is_available(pod, round.min_ready_seconds, round.now)),
        );
        updated += i32::from(live().any(|pod| round.is_new(pod)));
    }
    let some = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}
