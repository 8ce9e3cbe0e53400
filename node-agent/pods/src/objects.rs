//! The ConfigMaps and Secrets that this node's pods refer to, and their tokens.
//!
//! Each object is watched by itself, by name, as long as a pod refers to it: the node may
//! see no others (the node authorizer), a change reaches the pods at once, and an idle
//! node asks the API server nothing.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Resource;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use windlass_volumes::{Error, Objects, Result, Token, TokenSpec};

use crate::model::{PodId, all_slots, spec};
use windlass_patience::Patience;

/// How long a start waits for an object's first state before it is tried again later.
const FIRST_STATE: Duration = Duration::from_secs(5);
/// No token is used for longer than this, however long it would last.
const TOKEN_MOST: SignedDuration = SignedDuration::from_hours(24);

/// The objects, shared by all pods of the node.
pub(crate) struct ObjectCache {
    client: kube::Client,
    config_maps: Watched<ConfigMap>,
    secrets: Watched<Secret>,
    tokens: Mutex<HashMap<TokenSpec, Token>>,
    /// This Node, as it was last seen.
    node: watch::Receiver<Option<Arc<Node>>>,
}

/// A pod's hold on its objects; they are let go when it is dropped.
pub(crate) struct Held {
    cache: Arc<ObjectCache>,
    uid: String,
    /// Rings when one of the objects changed.
    pub(crate) changed: Arc<Notify>,
}

impl ObjectCache {
    /// An empty cache.
    pub(crate) fn new(client: kube::Client, node: watch::Receiver<Option<Arc<Node>>>) -> Self {
        Self {
            config_maps: Watched::new(client.clone()),
            secrets: Watched::new(client.clone()),
            client,
            node,
            tokens: Mutex::default(),
        }
    }

    /// Begins to watch everything that `pod` refers to.
    pub(crate) fn hold(self: &Arc<Self>, pod: &Pod) -> Held {
        let id = PodId::of(pod);
        let changed = Arc::new(Notify::new());
        let references = References::of(pod);
        for name in references.config_maps {
            self.config_maps
                .hold(&id.namespace, &name, &id.uid, &changed);
        }
        for name in references.secrets {
            self.secrets.hold(&id.namespace, &name, &id.uid, &changed);
        }
        Held {
            cache: self.clone(),
            uid: id.uid,
            changed,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cache.config_maps.release(&self.uid);
        self.cache.secrets.release(&self.uid);
        self.cache
            .tokens
            .lock()
            .retain(|spec, _| spec.pod_uid != self.uid);
    }
}

#[async_trait]
impl Objects for ObjectCache {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>> {
        self.config_maps.get(namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>> {
        self.secrets.get(namespace, name).await
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        found
            .map(|found| found.map(Arc::new))
            .map_err(|error| Error::Cluster(format!("persistentvolumeclaim {name:?}: {error}")))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get_opt(name).await;
        found
            .map(|found| found.map(Arc::new))
            .map_err(|error| Error::Cluster(format!("persistentvolume {name:?}: {error}")))
    }

    async fn token(&self, spec: &TokenSpec) -> Result<Token> {
        let now = Timestamp::now();
        let known = self
            .tokens
            .lock()
            .get(spec)
            .filter(|token| token.renew_at > now)
            .cloned();
        if let Some(token) = known {
            return Ok(token);
        }
        let token = self.request_token(spec, now).await.map_err(|error| {
            Error::Cluster(format!(
                "token for service account {}: {error}",
                spec.service_account
            ))
        })?;
        self.tokens.lock().insert(spec.clone(), token.clone());
        Ok(token)
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        let found = api.get_opt(name).await;
        found
            .map(|found| found.map(Arc::new))
            .map_err(|error| Error::Cluster(format!("csidriver {name:?}: {error}")))
    }

    async fn attachment(&self, volume: &str, name: &str) -> Result<Option<VolumeAttachment>> {
        let mut node = self.node.clone();
        let listed = node.wait_for(|node| lists(node.as_deref(), volume));
        if tokio::time::timeout(FIRST_STATE, listed).await.is_err() {
            return Ok(None);
        }
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = api.get_opt(name).await;
        found.map_err(|error| Error::Cluster(format!("volumeattachment {name:?}: {error}")))
    }

    async fn expanded(&self, namespace: &str, claim: &str, capacity: &str) -> Result<()> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"status": {
            "capacity": {"storage": capacity},
            "conditions": [{"$patch": "delete", "type": "FileSystemResizePending"}],
        }});
        let params = PatchParams::default();
        let told = api
            .patch_status(claim, &params, &Patch::Strategic(patch))
            .await;
        told.map(drop)
            .map_err(|error| Error::Cluster(format!("persistentvolumeclaim {claim:?}: {error}")))
    }
}

/// Whether the Node's status says that the volume is attached.
fn lists(node: Option<&Node>, volume: &str) -> bool {
    let status = node.and_then(|node| node.status.as_ref());
    let attached = status.and_then(|status| status.volumes_attached.as_ref());
    attached.is_some_and(|all| all.iter().any(|known| known.name == volume))
}

impl ObjectCache {
    async fn request_token(&self, spec: &TokenSpec, now: Timestamp) -> kube::Result<Token> {
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: spec.audience.iter().cloned().collect(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(spec.pod_name.clone()),
                    uid: Some(spec.pod_uid.clone()),
                }),
                expiration_seconds: Some(spec.expiration_seconds),
            },
            status: None,
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &spec.namespace);
        let answer = accounts
            .create_token_request(&spec.service_account, &PostParams::default(), &request)
            .await?;
        let Some(status) = answer.status else {
            let problem = std::io::Error::other("the answer has no token");
            return Err(kube::Error::Service(problem.into()));
        };
        let lasts = status.expiration_timestamp.0.duration_since(now);
        // At four fifths of its life, as the kubelet does, so that a refusal can be retried.
        let renew_in = (lasts / 5 * 4).min(TOKEN_MOST);
        let renew_at = now.checked_add(renew_in).unwrap_or(now);
        Ok(Token {
            token: status.token,
            renew_at,
            expires_at: status.expiration_timestamp.0,
        })
    }
}

/// The names of a pod's ConfigMaps and Secrets.
#[derive(Debug, Default, PartialEq, Eq)]
struct References {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

impl References {
    fn of(pod: &Pod) -> Self {
        let mut names = Self::default();
        for volume in spec(pod).volumes.iter().flatten() {
            if let Some(source) = &volume.config_map {
                names.config_maps.insert(source.name.clone());
            }
            if let Some(name) = volume
                .secret
                .as_ref()
                .and_then(|it| it.secret_name.as_ref())
            {
                names.secrets.insert(name.clone());
            }
            let projected = volume
                .projected
                .iter()
                .flat_map(|it| it.sources.iter().flatten());
            let csi = volume.csi.as_ref();
            let secret = csi.and_then(|it| it.node_publish_secret_ref.as_ref());
            names.secrets.extend(secret.map(|it| it.name.clone()));
            for projection in projected {
                names
                    .config_maps
                    .extend(projection.config_map.iter().map(|it| it.name.clone()));
                names
                    .secrets
                    .extend(projection.secret.iter().map(|it| it.name.clone()));
            }
        }
        for slot in all_slots(pod) {
            for from in slot.container.env_from.iter().flatten() {
                names
                    .config_maps
                    .extend(from.config_map_ref.iter().map(|it| it.name.clone()));
                names
                    .secrets
                    .extend(from.secret_ref.iter().map(|it| it.name.clone()));
            }
            for from in slot
                .container
                .env
                .iter()
                .flatten()
                .filter_map(|it| it.value_from.as_ref())
            {
                names
                    .config_maps
                    .extend(from.config_map_key_ref.iter().map(|it| it.name.clone()));
                names
                    .secrets
                    .extend(from.secret_key_ref.iter().map(|it| it.name.clone()));
            }
        }
        let pull_secrets = spec(pod).image_pull_secrets.iter().flatten();
        names.secrets.extend(pull_secrets.map(|it| it.name.clone()));
        names.config_maps.remove("");
        names.secrets.remove("");
        names
    }
}

/// Namespace and name.
type Key = (String, String);

/// All watched objects of one kind.
struct Watched<K> {
    client: kube::Client,
    entries: Mutex<HashMap<Key, Entry<K>>>,
}

struct Entry<K> {
    /// Pods that refer to the object, by uid.
    holders: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    /// Outer none: not known yet. Inner none: there is no such object.
    state: watch::Receiver<Option<Option<Arc<K>>>>,
    task: AbortHandle,
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    fn new(client: kube::Client) -> Self {
        Self {
            client,
            entries: Mutex::default(),
        }
    }

    fn hold(&self, namespace: &str, name: &str, uid: &str, changed: &Arc<Notify>) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self.entries.lock();
        let entry = entries
            .entry(key)
            .or_insert_with(|| self.watch(namespace, name));
        entry.holders.lock().insert(uid.to_owned(), changed.clone());
    }

    fn release(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut holders = entry.holders.lock();
            holders.remove(uid);
            !holders.is_empty()
        });
    }

    fn watch(&self, namespace: &str, name: &str) -> Entry<K> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let holders: Arc<Mutex<HashMap<String, Arc<Notify>>>> = Arc::default();
        let (sender, state) = watch::channel(None);
        let (told, name) = (holders.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            let mut stream = watch_object(api, &name)
                .backoff(Patience::default())
                .boxed();
            loop {
                match stream.try_next().await {
                    Ok(Some(object)) => {
                        sender.send_replace(Some(object.map(Arc::new)));
                        for changed in told.lock().values() {
                            changed.notify_one();
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(%error, name, kind = %K::kind(&()), "watch interrupted");
                    }
                }
            }
        });
        Entry {
            holders,
            state,
            task: task.abort_handle(),
        }
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let state = self
            .entries
            .lock()
            .get(&key)
            .map(|entry| entry.state.clone());
        let kind = K::kind(&()).to_lowercase();
        let unknown = |why: &str| Error::Cluster(format!("{kind} {name:?}: {why}"));
        let Some(mut state) = state else {
            // Not one of a held pod: rare enough to ask directly.
            let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
            let found = api
                .get_opt(name)
                .await
                .map_err(|error| unknown(&error.to_string()))?;
            return Ok(found.map(Arc::new));
        };
        let known = tokio::time::timeout(FIRST_STATE, state.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(object)) => Ok(object.clone().flatten()),
            _ => Err(unknown("the API server did not tell yet")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_refer_to_an_object_is_seen() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "imagePullSecrets": [{"name": "s-pull"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "c-volume"}},
                {"name": "b", "secret": {"secretName": "s-volume"}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "c-projected"}}, {"secret": {"name": "s-projected"}},
                ]}},
            ],
            "containers": [{"name": "x",
                "envFrom": [{"configMapRef": {"name": "c-from"}}, {"secretRef": {"name": "s-from"}}],
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c-key", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}},
                ],
            }],
        }}))
        .unwrap();
        let names = References::of(&pod);
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            list(&names.config_maps),
            "c-from c-key c-projected c-volume"
        );
        assert_eq!(
            list(&names.secrets),
            "s-from s-key s-projected s-pull s-volume"
        );
    }
}
