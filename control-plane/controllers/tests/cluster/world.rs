//! A cluster of its own for each test, and ways to wait for what it becomes.

use std::{
    fmt::Debug,
    sync::{Arc, Once},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use windlass_apiserver::{
    ApiServer, Caches, Config,
    authn::{AccountKeys, Authenticator, CertificateAuthenticator, ServiceAccountTokens, UserInfo},
    authz::{Chain, PrivilegedGroup, Rbac},
};
use windlass_controllers::ControllersConfig;
use windlass_informers::Informers;
use windlass_scheduler::SchedulerConfig;
use windlass_store::{Embedded, EmbeddedOptions};

static CRYPTO: Once = Once::new();

/// Longer than anything here takes on a busy machine; reached only by a fault.
const PATIENCE: Duration = Duration::from_secs(30);
pub const NAMESPACE: &str = "default";

pub struct World {
    pub client: Client,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// A cluster with `nodes` hollow nodes.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, ControllersConfig::default()).await
    }

    pub async fn start_with(nodes: usize, config: ControllersConfig) -> Self {
        Self::start_through(nodes, config, |client| client).await
    }

    /// What controllers write goes by another client.
    pub async fn start_through(
        nodes: usize,
        config: ControllersConfig,
        through: impl FnOnce(Client) -> Client,
    ) -> Self {
        CRYPTO.call_once(|| {
            rustls::crypto::aws_lc_rs::default_provider()
                .install_default()
                .expect("first");
        });
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let server = serve(&dir, stop.clone()).await;
        let client = server.local_client(UserInfo::new("admin", &["system:masters"]));
        let informers = Informers::new(client.clone());
        let config = ControllersConfig {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            root_ca_pem: Some("the CA".to_owned()),
            ..config
        };
        tokio::spawn(windlass_controllers::run(
            through(client.clone()),
            Arc::clone(&informers),
            config,
            stop.clone(),
        ));
        tokio::spawn(windlass_scheduler::run(
            client.clone(),
            informers,
            SchedulerConfig::default(),
            stop.clone(),
        ));
        let world = Self {
            client,
            stop,
            _dir: dir,
        };
        for number in 0..nodes {
            world.add_node(&format!("n{number}")).await;
        }
        tokio::spawn(obey(world.client.clone(), world.stop.clone()));
        world
    }

    /// A ready node of 4 CPUs; it sends no heartbeats.
    pub async fn add_node(&self, name: &str) {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        api.create(&PostParams::default(), &from(node))
            .await
            .unwrap();
        self.heartbeat(name).await;
    }

    /// What a live node writes every few seconds.
    pub async fn heartbeat(&self, name: &str) {
        let now = jiff::Timestamp::now().to_string();
        let amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {"capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Hollow", "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(status);
        api.patch_status(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>()
            .create(&PostParams::default(), &from(object))
            .await
            .unwrap()
    }

    pub async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let patch = Patch::Merge(patch);
        self.api::<K>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap()
    }

    pub async fn delete<K>(&self, name: &str, params: DeleteParams)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>().delete(name, &params).await.unwrap();
    }

    /// Pods with this `app` label that are not on their way out.
    pub async fn pods(&self, app: &str) -> Vec<Pod> {
        let selected = ListParams::default().labels(&format!("app={app}"));
        let mut pods = self.api::<Pod>().list(&selected).await.unwrap().items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by_key(|pod| pod.name_any());
        pods
    }

    /// Waits until `test` is true of an object.
    pub async fn until<K>(&self, name: &str, test: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + 'static,
    {
        until(&self.api::<K>(), name, test).await
    }

    /// Waits until an object is gone.
    pub async fn gone<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api = self.api::<K>();
        eventually(&format!("{name} gone"), async || {
            api.get_opt(name).await.unwrap().is_none()
        })
        .await;
    }
}

pub fn from<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

/// The template of a pod that does as its image says: see [`report`].
pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// Waits until `test` is true of an object, by watching it.
pub async fn until<K>(api: &Api<K>, name: &str, test: impl Fn(&K) -> bool) -> K
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut last = None;
    let waiting = async {
        let mut states = Box::pin(watcher::watch_object(api.clone(), name));
        while let Some(state) = states.next().await {
            let Ok(Some(object)) = state else { continue };
            if test(&object) {
                return object;
            }
            last = Some(object);
        }
        unreachable!("a watch resumes for ever")
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(object) => object,
        Err(_) => panic!(
            "{} {name} never became what it should: {last:#?}",
            K::kind(&())
        ),
    }
}

/// Waits for what no single object's watch tells.
pub async fn eventually(what: &str, test: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !test().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serve(dir: &TempDir, shutdown: CancellationToken) -> Arc<ApiServer> {
    let store = Embedded::open(&dir.path().join("store"), EmbeddedOptions::default())
        .await
        .unwrap();
    let resources: Vec<_> = windlass_api::registry::builtin()
        .into_iter()
        // Nothing is measured here but what a test says.
        .filter(|resource| resource.group != windlass_api::metrics::GROUP)
        .map(Arc::new)
        .collect();
    let caches = Caches::start(Arc::new(store), &resources, shutdown.clone())
        .await
        .unwrap();
    let authority = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
    let key = authority.signing_key.serialize_pem();
    let issuer = "https://kubernetes.default.svc";
    let keys = AccountKeys::read(&key, "").unwrap();
    let tokens = ServiceAccountTokens::new(keys, issuer, caches.clone());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.cert.der().clone()).unwrap();
    let rbac = Arc::new(Rbac::default());
    ApiServer::new(Config {
        caches,
        resources,
        authenticator: Arc::new(Authenticator::new(
            CertificateAuthenticator::new(roots).unwrap(),
            tokens,
        )),
        authorizer: Arc::new(Chain(vec![Arc::new(PrivilegedGroup), rbac.clone()])),
        rbac,
        service_cluster_ip_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        node_port_range: 30000..=32767,
        advertise_address: "192.0.2.1".parse().unwrap(),
        secure_port: 6443,
        node_tls: windlass_tls::any_server().with_no_client_auth(),
        front_proxy: None,
        audit: None,
        build: Default::default(),
        shutdown,
    })
    .await
    .unwrap()
}

/// Plays the agents of all nodes: reports bound pods as their image says, and ends those that are deleted.
async fn obey(client: Client, stop: CancellationToken) {
    let all: Api<Pod> = Api::all(client.clone());
    let mut changes = Box::pin(
        watcher::watcher(all, watcher::Config::default())
            .default_backoff()
            .applied_objects(),
    );
    let mut addresses = 0u16;
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        let Ok(pod) = change else { continue };
        let bound = pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.node_name.is_some());
        if !bound {
            continue;
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let fresh = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if leaving {
            let now = DeleteParams {
                grace_period_seconds: Some(0),
                ..Default::default()
            };
            // Whoever was faster is fine.
            let _ = api.delete(&name, &now).await;
        } else if matches!(fresh, None | Some("Pending")) {
            addresses += 1;
            let patch = Patch::Strategic(report(&pod, addresses));
            let _ = api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
        }
    }
}

/// `ok` runs and is ready, `unready` runs, `succeed` and `fail` end at once.
fn report(pod: &Pod, number: u16) -> Value {
    let image = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers[0].image.clone());
    let image = image.unwrap_or_default();
    let phase = match image.split(':').next().unwrap() {
        "succeed" => "Succeeded",
        "fail" => "Failed",
        _ => "Running",
    };
    let ready = if image.starts_with("ok") {
        "True"
    } else {
        "False"
    };
    let [high, low] = number.to_be_bytes();
    let address = format!("10.244.{high}.{low}");
    json!({"status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": ready,
            "lastTransitionTime": jiff::Timestamp::now().to_string()}]}})
}
