//! The labels and annotations by which sandboxes and containers are found again.
//!
//! They are the kubelet's, so that `crictl` and log collectors show our pods as they
//! show any, and so that the agent can take over pods that a kubelet started.

/// On sandboxes and containers: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// On sandboxes and containers: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// On sandboxes and containers: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// On containers: the name in the pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// On containers: what they were made from.
pub(crate) const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// On containers: how often one of this name was started before.
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// On containers: where the last words are written.
pub(crate) const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// On containers: whether the log's end may serve as last words.
pub(crate) const TERMINATION_MESSAGE_POLICY: &str =
    "io.kubernetes.container.terminationMessagePolicy";
/// On containers: how long they get to stop, even when the pod is unknown by then.
pub(crate) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// On static pods: which manifest they were made from.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On mirror pods: which manifest they show.
pub(crate) const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// On sandboxes: where the pod came from.
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
