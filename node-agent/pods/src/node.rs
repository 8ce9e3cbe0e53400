//! What all pods of this node share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod, Service};
use kube::runtime::reflector::Store;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use windlass_cri::Runtime;
use windlass_cri::v1::PodSandboxConfig;
use windlass_volumes::{Context, Csi};

use crate::admission::Ledger;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::devices::Devices;
use crate::drain::EndpointDrain;
use crate::launch::dns::{self, NodeResolver};
use crate::launch::pulled::PulledImages;
use crate::launch::{sandbox, service_env, user_namespace};
use crate::model::{PodId, host_network, is_static, spec};
use crate::objects::ObjectCache;
use crate::probe::Results;
use crate::recorder::Recorder;
use crate::snapshot::Sandbox;

/// How long a start waits for the first list of Services.
const SERVICES: Duration = Duration::from_secs(5);

/// The node, its runtime and its connections, as every pod's worker sees them.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) runtime: Runtime,
    /// What container ids begin with in the API.
    pub(crate) runtime_name: String,
    pub(crate) client: kube::Client,
    pub(crate) recorder: Recorder,
    pub(crate) objects: Arc<ObjectCache>,
    /// The drivers of the node's volumes.
    pub(crate) csi: Arc<Csi>,
    /// The drivers of the node's devices.
    pub(crate) devices: Devices,
    pub(crate) services: Store<Service>,
    pub(crate) cgroups: Cgroups,
    pub(crate) drain: Arc<dyn EndpointDrain>,
    /// What pods hold of the node.
    pub(crate) ledger: Ledger,
    /// The Node object as it was last seen.
    pub(crate) object: watch::Receiver<Option<Arc<NodeObject>>>,
    /// Who may run which image.
    pub(crate) pulled: PulledImages,
    /// The users that pods have of their own.
    pub(crate) users: user_namespace::Ranges,
    /// Limits how many images are pulled at once.
    pub(crate) pulls: Semaphore,
    /// Limits how many sandboxes and containers are being started at once: beyond a few
    /// per core they only slow each other down.
    pub(crate) starts: Semaphore,
    /// How this node's probes were answered.
    pub(crate) probe_results: Arc<Results>,
    /// Which pod a sandbox or container belongs to.
    pub(crate) owners: Mutex<HashMap<String, String>>,
}

impl Node {
    /// The configuration of a pod's sandbox with this number.
    pub(crate) async fn sandbox_config(&self, pod: &Pod, attempt: u32) -> PodSandboxConfig {
        let text = tokio::fs::read_to_string(&self.config.resolv_conf)
            .await
            .unwrap_or_default();
        let dns = dns::config(pod, &self.config, &NodeResolver::parse(&text));
        let cgroup = self.cgroups.path(pod);
        let users = user_namespace::of(pod, &self.config.pod_folder(&PodId::of(pod).uid));
        sandbox::config(pod, attempt, &self.config, dns, cgroup, users)
    }

    /// Sets up (or refreshes) all volumes of a pod; the error names the volume.
    pub(crate) async fn set_up_volumes(
        &self,
        pod: &Pod,
    ) -> Result<HashMap<String, windlass_volumes::Mounted>, String> {
        let folder = self.config.pod_folder(&PodId::of(pod).uid);
        let objects: &ObjectCache = &self.objects;
        let context = Context {
            pod,
            folder: &folder,
            objects,
            node: &self.config.node,
            csi: &self.csi,
        };
        let mut mounted = HashMap::new();
        // Images are the runtime's to mount.
        let volumes = spec(pod).volumes.iter().flatten();
        for volume in volumes.filter(|volume| volume.image.is_none()) {
            let done = windlass_volumes::set_up(&context, volume)
                .await
                .map_err(|error| {
                    format!(
                        "MountVolume.SetUp failed for volume {:?} : {error}",
                        volume.name
                    )
                })?;
            mounted.insert(volume.name.clone(), done);
        }
        Ok(mounted)
    }

    /// Gives back what a pod holds of the node in its folder: devices and volumes, and the folder itself.
    pub(crate) async fn take_down(&self, uid: &str) -> Result<(), String> {
        let pods = self.config.pods_folder();
        self.devices.unprepare(&pods, uid).await?;
        windlass_volumes::take_down(&self.csi, &pods.join(uid))
            .await
            .map_err(|error| error.to_string())
    }

    /// The addresses of a pod in this sandbox.
    pub(crate) fn pod_ips(&self, pod: &Pod, sandbox: &Sandbox) -> Vec<String> {
        if host_network(pod) {
            self.config.node.ips.clone()
        } else {
            sandbox.ips.clone()
        }
    }

    /// The variables that tell a pod of the cluster's Services.
    pub(crate) async fn service_variables(
        &self,
        pod: &Pod,
    ) -> Result<std::collections::BTreeMap<String, String>, String> {
        // A static pod may be what the API server waits for.
        let is_static = is_static(pod);
        let patience = if is_static { Duration::ZERO } else { SERVICES };
        let ready = tokio::time::timeout(patience, self.services.wait_until_ready()).await;
        if !matches!(ready, Ok(Ok(()))) && !is_static {
            return Err(
                "services have not yet been read at least once, cannot construct \
                        the environment"
                    .to_owned(),
            );
        }
        let services = self.services.state();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let links = spec(pod).enable_service_links.unwrap_or(true);
        Ok(service_env::variables(
            services.iter().map(AsRef::as_ref),
            namespace,
            links,
        ))
    }
}
