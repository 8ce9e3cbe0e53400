//! Mirror pods: the API's picture of the static pods, so that users see them and their logs.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};

use crate::labels;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// A mirror pod as the API has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uid: String,
    /// Which manifest it shows.
    hash: String,
    leaves: bool,
}

/// The manifest that an object of the API shows, if it is a mirror pod.
pub(crate) fn mirrored(pod: &Pod) -> Option<&String> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(labels::CONFIG_MIRROR)
}

pub(crate) fn key(pod: &Pod) -> Key {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

impl Mirror {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            uid: pod.metadata.uid.clone()?,
            hash: mirrored(pod)?.clone(),
            leaves: pod.metadata.deletion_timestamp.is_some(),
        })
    }

    pub(crate) fn shows(&self, pod: &Pod) -> bool {
        Some(&self.hash) == pod.metadata.uid.as_ref() && !self.leaves
    }
}

/// What is to be done so that the API shows exactly the static pods.
#[derive(Debug, PartialEq)]
pub(crate) struct Chores {
    create: Vec<Arc<Pod>>,
    delete: Vec<(Key, String)>,
}

impl Chores {
    pub(crate) fn find(pods: &HashMap<Key, Arc<Pod>>, mirrors: &HashMap<Key, Mirror>) -> Self {
        let stale = mirrors.iter().filter(|(key, mirror)| {
            let pod = pods.get(*key);
            pod.is_none_or(|pod| !mirror.shows(pod))
        });
        let missing = pods.iter().filter(|(key, _)| !mirrors.contains_key(*key));
        Self {
            create: missing.map(|(_, pod)| pod.clone()).collect(),
            delete: stale
                .map(|(key, mirror)| (key.clone(), mirror.uid.clone()))
                .collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }

    /// Does it; what fails is found again.
    pub(crate) async fn perform(self, client: kube::Client, node: Arc<Node>) {
        for ((namespace, name), uid) in self.delete {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: Some(uid),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            if let Err(error) = pods.delete(&name, &params).await {
                tracing::debug!(namespace, name, %error, "mirror pod not deleted");
            }
        }
        for pod in self.create {
            let mirror = mirror_of(&pod, &node);
            let (namespace, name) = key(&pod);
            let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            if let Err(error) = pods.create(&PostParams::default(), &mirror).await {
                tracing::debug!(namespace, name, %error, "mirror pod not created");
            }
        }
    }
}

fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let hash = pod.metadata.uid.clone().unwrap_or_default();
    annotations.insert(labels::CONFIG_MIRROR.to_owned(), hash);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_api_shows_exactly_the_static_pods() {
        let pod = |name: &str, uid: &str| -> Arc<Pod> {
            let metadata = json!({"name": name, "namespace": "n", "uid": uid});
            Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
        };
        let key = |name: &str| ("n".to_owned(), name.to_owned());
        let mirror = |uid: &str, hash: &str| Mirror {
            uid: uid.into(),
            hash: hash.into(),
            leaves: false,
        };
        let pods = ["shown", "changed", "new"].map(|name| (key(name), pod(name, "h2")));
        let mirrors = [
            (key("shown"), mirror("u1", "h2")),
            (key("changed"), mirror("u2", "h1")),
            (key("gone"), mirror("u3", "h1")),
        ];
        let mut chores = Chores::find(&pods.into(), &mirrors.into());
        chores.delete.sort();
        let names =
            |pods: &[Arc<Pod>]| -> Vec<_> { pods.iter().map(|pod| super::key(pod).1).collect() };
        assert_eq!(names(&chores.create), ["new"]);
        assert_eq!(
            chores.delete,
            [(key("changed"), "u2".into()), (key("gone"), "u3".into())]
        );
    }
}
