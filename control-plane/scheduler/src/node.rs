//! A node with the pods that are on it or on their way to it, and the sums that plugins need.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt;

use crate::{
    kin::Groups,
    pod::{HostPort, PodInfo},
    resources::Resources,
};

/// See the module's documentation. Cheap to clone but for the list of pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    /// `None` while only pods of the node have been seen.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) name: String,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    /// `pods` by what selectors and terms can tell of them.
    pub(crate) groups: Groups,
    /// How many of `pods` make the node more or less welcome to others.
    pub(crate) with_wishes: usize,
    /// How many of `pods` have required anti-affinity, which newcomers must respect.
    pub(crate) with_anti_affinity: usize,
    pub(crate) allocatable: Resources,
    pub(crate) requested: Resources,
    pub(crate) scored: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    /// Sizes in bytes by image name.
    pub(crate) images: Arc<BTreeMap<String, i64>>,
}

impl NodeInfo {
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.name = node.name_any();
        self.allocatable = status
            .and_then(|status| status.allocatable.as_ref())
            .map(Resources::of)
            .unwrap_or_default();
        let images = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten();
        self.images = Arc::new(
            images
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or(0);
                    image
                        .names
                        .iter()
                        .flatten()
                        .map(move |name| (name.clone(), size))
                })
                .collect(),
        );
        self.node = Some(node);
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scored.add(&pod.scored);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.with_wishes += usize::from(pod.has_wishes());
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.groups.add(&pod);
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(at) = self.pods.iter().position(|pod| pod.uid == uid) else {
            return false;
        };
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.scored.subtract(&pod.scored);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|used| used == port) {
                self.host_ports.swap_remove(at);
            }
        }
        self.with_wishes -= usize::from(pod.has_wishes());
        self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        self.groups.remove(&pod);
        true
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.labels().get(key).map(String::as_str)
    }

    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.node.as_ref().map_or(&EMPTY, |node| node.labels())
    }

    pub(crate) fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
    }

    pub(crate) fn is_unschedulable(&self) -> bool {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
    }
}
