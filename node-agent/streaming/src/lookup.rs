//! What the server must know of pods, and whoever runs them implements.

use std::path::PathBuf;

use futures::future::BoxFuture;

/// Answers from memory: every request asks at least once.
pub trait PodLookup: Send + Sync + 'static {
    /// A container's instances. With a `uid` the pod must be that one and not a later one of its name.
    fn container(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
        container: &str,
    ) -> Result<ContainerInstances, LookupError>;

    /// The pod's sandbox.
    fn sandbox(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
    ) -> Result<Sandbox, LookupError>;

    /// Resolves once the container does not run (any more), at once for an unknown one: following its log
    /// ends then.
    fn finished(&self, container_id: &str) -> BoxFuture<'static, ()>;

    /// The pods of this node as API objects, for `/pods` and the names in metrics.
    fn pods(&self) -> Vec<serde_json::Value>;

    /// How full the pods' volumes are; this alone may take a while, since drivers are asked.
    fn volumes(&self) -> BoxFuture<'static, Vec<VolumeUsage>>;

    /// How the pods' probes were answered, in Prometheus' text format.
    fn probe_metrics(&self) -> String;
}

/// How full a volume of a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The pod's.
    pub namespace: String,
    /// The pod's.
    pub uid: String,
    /// The volume's name in the pod.
    pub name: String,
    /// The claim that it stands for, if it does.
    pub claim: Option<String>,
    pub bytes: VolumeRoom,
    pub inodes: VolumeRoom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeRoom {
    pub total: i64,
    pub available: i64,
    pub used: i64,
}

/// The runs of a container that a client may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerInstances {
    /// The last one created, running or not; `None` while there has been none.
    pub current: Option<ContainerInstance>,
    /// The one before it (kubectl's `--previous`).
    pub previous: Option<ContainerInstance>,
    /// Why there is no current one: `ContainerCreating`, `ImagePullBackOff`, ...
    pub waiting_reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInstance {
    /// The runtime's id.
    pub id: String,
    pub log_path: PathBuf,
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    pub ready: bool,
}

/// In the words that kubectl's users know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("pod {namespace}/{pod} does not run on this node")]
    NoPod { namespace: String, pod: String },
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { pod: String, container: String },
}
