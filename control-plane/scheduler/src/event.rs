//! What happened in the cluster that may make a waiting pod schedulable.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A node came, or changed in a way that scheduling looks at.
    Node(Arc<Node>),
    /// A pod was bound, or a bound pod changed its labels.
    PodPlaced(Arc<Pod>),
    /// A pod left its node or finished there.
    PodGone(Arc<Pod>),
    /// Labels or spec of a waiting pod were changed.
    PodChanged,
    /// A claim, a volume, a class or the limits of a driver changed.
    Storage,
    /// Labels of a namespace changed, which affinity terms may select by.
    Namespace,
}

/// Whether a node's change can matter to scheduling; heartbeats do not.
pub(crate) fn matters(old: &Node, new: &Node) -> bool {
    let status = |node: &Node| {
        let status = node.status.as_ref();
        (
            status.and_then(|status| status.allocatable.clone()),
            status.and_then(|status| status.images.as_ref().map(Vec::len)),
        )
    };
    let spec = |node: &Node| {
        let spec = node.spec.as_ref();
        (
            spec.and_then(|spec| spec.unschedulable),
            spec.and_then(|spec| spec.taints.clone()),
        )
    };
    old.labels() != new.labels() || spec(old) != spec(new) || status(old) != status(new)
}
