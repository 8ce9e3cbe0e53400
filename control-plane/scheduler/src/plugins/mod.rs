//! The plugins, one file each, under Kubernetes' names and in its default order: the first filter
//! that rejects a node names the reason.

mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{Namespace, ReplicationController, Service},
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use windlass_informers::{Informer, Informers};

use crate::{arguments::Arguments, framework::Plugin, pod::NamespaceLabels, storage::Storage};

/// What plugins look up besides nodes and pods.
pub(crate) trait Lookup: NamespaceLabels + Send + Sync {
    /// The selectors of the Services and the controller that a pod belongs to: who its like are.
    fn application(&self, pod: &k8s_openapi::api::core::v1::Pod) -> Option<Selector>;
}

/// All plugins, in Kubernetes' order.
pub(crate) fn plugins(
    lookup: Arc<dyn Lookup>,
    storage: Arc<dyn Storage>,
    arguments: &Arguments,
) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(scheduling_gates::SchedulingGates),
        Box::new(node_unschedulable::NodeUnschedulable),
        Box::new(node_name::NodeName),
        Box::new(taint_toleration::TaintToleration),
        Box::new(node_affinity::NodeAffinity {
            added: arguments.node_affinity.added_affinity.clone(),
        }),
        Box::new(node_ports::NodePorts),
        Box::new(node_resources_fit::NodeResourcesFit(arguments.fit.clone())),
        Box::new(volume_restrictions::VolumeRestrictions(Arc::clone(
            &storage,
        ))),
        Box::new(node_volume_limits::NodeVolumeLimits(Arc::clone(&storage))),
        Box::new(volume_binding::VolumeBinding(Arc::clone(&storage))),
        Box::new(volume_zone::VolumeZone(Arc::clone(&storage))),
        Box::new(dynamic_resources::DynamicResources(Arc::clone(&storage))),
        Box::new(pod_topology_spread::PodTopologySpread::new(
            Arc::clone(&lookup),
            arguments.spread.clone(),
        )),
        Box::new(inter_pod_affinity::InterPodAffinity::new(
            lookup,
            arguments.affinity.clone(),
        )),
        Box::new(
            node_resources_balanced_allocation::NodeResourcesBalancedAllocation(
                arguments.balance.clone(),
            ),
        ),
        Box::new(image_locality::ImageLocality),
    ]
}

/// Answers from the shared informers.
pub(crate) struct InformerLookup {
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    services: Arc<Informer<Service>>,
    controllers: Arc<Informer<ReplicationController>>,
    replica_sets: Arc<Informer<ReplicaSet>>,
    stateful_sets: Arc<Informer<StatefulSet>>,
}

impl InformerLookup {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            namespaces: informers.get(),
            services: informers.get(),
            controllers: informers.get(),
            replica_sets: informers.get(),
            stateful_sets: informers.get(),
        }
    }

    pub(crate) async fn synced(&self) {
        self.namespaces.synced().await;
        self.services.synced().await;
        self.controllers.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
    }
}

impl NamespaceLabels for InformerLookup {
    fn matches(&self, namespace: &str, selector: &Selector) -> bool {
        self.namespaces
            .get("", namespace)
            .is_some_and(|found| selector.matches(found.labels()))
    }
}

impl Lookup for InformerLookup {
    fn application(&self, pod: &k8s_openapi::api::core::v1::Pod) -> Option<Selector> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut labels = std::collections::BTreeMap::new();
        for service in self.services.in_namespace(&namespace) {
            let selector = service
                .spec
                .as_ref()
                .and_then(|spec| spec.selector.as_ref());
            let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
                continue;
            };
            if selector
                .iter()
                .all(|(key, value)| pod.labels().get(key) == Some(value))
            {
                labels.extend(selector.clone());
            }
        }
        let mut application: Selector = labels.into_iter().collect();
        let owner = pod
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true));
        let of_owner = owner.and_then(|owner| {
            let parsed = |selector: &_| crate::pod::parsed(selector);
            match owner.kind.as_str() {
                "ReplicationController" => {
                    let found = self.controllers.get(&namespace, &owner.name)?;
                    Some(found.spec.as_ref()?.selector.clone()?.into_iter().collect())
                }
                "ReplicaSet" => {
                    let found = self.replica_sets.get(&namespace, &owner.name)?;
                    parsed(&found.spec.as_ref()?.selector)
                }
                "StatefulSet" => {
                    let found = self.stateful_sets.get(&namespace, &owner.name)?;
                    parsed(&found.spec.as_ref()?.selector)
                }
                _ => None,
            }
        });
        if let Some(selector) = of_owner {
            application.extend(selector);
        }
        (!application.selects_all()).then_some(application)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        resource::v1::ResourceClaim,
        storage::v1::{CSINode, StorageClass},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cache::Snapshot,
        framework::{MAX_SCORE, Rejection},
        node::NodeInfo,
        pod::PodInfo,
    };

    /// A node of 4 CPUs and 8 GiB with these labels and whatever else `more` says.
    pub(crate) fn node(name: &str, labels: Value, more: Value, pods: &[Arc<PodInfo>]) -> NodeInfo {
        let mut object = json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            for (inner, value) in value.as_object().into_iter().flatten() {
                object[key][inner] = value.clone();
            }
        }
        let mut info = NodeInfo::named(name);
        info.set_node(Arc::new(serde_json::from_value(object).unwrap()));
        pods.iter().for_each(|pod| info.add(Arc::clone(pod)));
        info
    }

    /// A pod with one container unless `spec` says otherwise.
    pub(crate) fn pod(name: &str, labels: Value, mut spec: Value) -> Arc<PodInfo> {
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let object = json!({
            "metadata": {"name": name, "uid": name, "namespace": "ns", "labels": labels},
            "spec": spec,
        });
        PodInfo::new(Arc::new(serde_json::from_value(object).unwrap()))
    }

    /// Fixed answers.
    #[derive(Default)]
    pub(crate) struct Fixed {
        pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
        pub(crate) application: Option<Selector>,
    }

    impl NamespaceLabels for Fixed {
        fn matches(&self, namespace: &str, selector: &Selector) -> bool {
            self.namespaces
                .get(namespace)
                .is_some_and(|labels| selector.matches(labels))
        }
    }

    impl Lookup for Fixed {
        fn application(&self, _pod: &k8s_openapi::api::core::v1::Pod) -> Option<Selector> {
            self.application.clone()
        }
    }

    /// Fixed claims, volumes and classes.
    #[derive(Default)]
    pub(crate) struct Disks {
        claims: Vec<Arc<PersistentVolumeClaim>>,
        volumes: Vec<Arc<PersistentVolume>>,
        classes: Vec<Arc<StorageClass>>,
    }

    impl Disks {
        pub(crate) fn new(claims: &[Value], volumes: &[Value], classes: &[Value]) -> Self {
            Self {
                claims: all(claims),
                volumes: all(volumes),
                classes: all(classes),
            }
        }
    }

    fn all<K: serde::de::DeserializeOwned>(objects: &[Value]) -> Vec<Arc<K>> {
        let parse = |object: &Value| Arc::new(serde_json::from_value(object.clone()).unwrap());
        objects.iter().map(parse).collect()
    }

    fn named<K: ResourceExt>(objects: &[Arc<K>], name: &str) -> Option<Arc<K>> {
        objects
            .iter()
            .find(|object| object.name_any() == name)
            .cloned()
    }

    impl Storage for Disks {
        fn claim(&self, _namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
            named(&self.claims, name)
        }

        fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
            named(&self.volumes, name)
        }

        fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
            self.volumes.clone()
        }

        fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
            named(&self.classes, name)
        }

        fn drivers(&self, _node: &str) -> Option<Arc<CSINode>> {
            None
        }

        fn resource_claim(&self, _namespace: &str, _name: &str) -> Option<Arc<ResourceClaim>> {
            None
        }

        fn devices(&self) -> crate::devices::Inventory {
            crate::devices::Inventory::default()
        }

        fn is_promised(&self, _volume: &str, _claim_uid: Option<&str>) -> bool {
            false
        }
    }

    /// All plugins with their defaults, over fixed answers.
    pub(crate) fn default_plugins() -> Vec<Box<dyn Plugin>> {
        plugins(
            Arc::new(Fixed::default()),
            Arc::new(Disks::default()),
            &Arguments::default(),
        )
    }

    /// The rejection of each node, in order; `None` where it passes.
    pub(crate) fn filtered(
        plugin: &dyn Plugin,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Vec<Option<Rejection>> {
        let filter = plugin.prepare_filter(pod, snapshot);
        snapshot
            .nodes
            .iter()
            .map(|node| filter.as_ref().and_then(|filter| filter.filter(node).err()))
            .collect()
    }

    /// First reasons only.
    pub(crate) fn reasons(
        plugin: &dyn Plugin,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Vec<Option<String>> {
        let first = |rejection: Rejection| rejection.reasons[0].clone();
        filtered(plugin, pod, snapshot)
            .into_iter()
            .map(|found| found.map(first))
            .collect()
    }

    /// Normalised scores, in order.
    pub(crate) fn scored(plugin: &dyn Plugin, pod: &PodInfo, snapshot: &Snapshot) -> Vec<i64> {
        let Some(score) = plugin.prepare_score(pod, snapshot, &snapshot.nodes) else {
            return vec![0; snapshot.nodes.len()];
        };
        let mut scores: Vec<_> = snapshot
            .nodes
            .iter()
            .map(|node| score.score(node))
            .collect();
        score.normalize(&snapshot.nodes, &mut scores);
        assert!(
            scores.iter().all(|score| (0..=MAX_SCORE).contains(score)),
            "{scores:?}"
        );
        scores
    }
}
