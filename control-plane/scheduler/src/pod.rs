//! A pod as the scheduler sees it: everything that plugins ask for again and again, worked out once.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, PodAffinityTerm, PodSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use windlass_informers::Key;

use crate::{
    kin::Kin,
    resources::{Resources, pod_requests},
};

/// A port that a pod wants on its node's own addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub(crate) ip: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

const ANY: &str = "0.0.0.0";

impl HostPort {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// A pod affinity or anti-affinity term with its selectors parsed.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
    selector: Option<Selector>,
    pub(crate) topology_key: String,
    /// Of preferred terms.
    pub(crate) weight: i64,
}

impl Term {
    fn new(term: &PodAffinityTerm, weight: i64, own_namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        // Neither list nor selector: the pod's own namespace (field doc of PodAffinityTerm).
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(parsed),
            selector: term.label_selector.as_ref().and_then(parsed),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    /// Whether the term selects a pod; `namespace_labels` knows the labels of namespaces.
    pub(crate) fn matches(&self, pod: &Pod, namespace_labels: &dyn NamespaceLabels) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        // An absent selector selects nothing, an empty one everything.
        let Some(selector) = &self.selector else {
            return false;
        };
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.selects_all() || namespace_labels.matches(namespace, selector)
            });
        in_namespace && selector.matches(pod.labels())
    }
}

/// Labels of namespaces, for terms that select namespaces by them.
pub(crate) trait NamespaceLabels {
    fn matches(&self, namespace: &str, selector: &Selector) -> bool;
}

pub(crate) fn parsed(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) kin: Kin,
    pub(crate) priority: i32,
    pub(crate) requests: Resources,
    /// As `requests`, with defaults for what is not asked for: what scores count with.
    pub(crate) scored: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) affinity: Vec<Term>,
    pub(crate) anti_affinity: Vec<Term>,
    pub(crate) preferred_affinity: Vec<Term>,
    pub(crate) preferred_anti_affinity: Vec<Term>,
}

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> Arc<Self> {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let namespace = pod.namespace().unwrap_or_default();
        let affinity = spec
            .affinity
            .as_ref()
            .and_then(|all| all.pod_affinity.as_ref());
        let anti = spec
            .affinity
            .as_ref()
            .and_then(|all| all.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            terms
                .into_iter()
                .flatten()
                .map(|term| Term::new(term, 0, &namespace))
                .collect()
        };
        let preferred = |terms: Option<&Vec<_>>| -> Vec<Term> {
            let terms: Option<&Vec<k8s_openapi::api::core::v1::WeightedPodAffinityTerm>> = terms;
            terms
                .into_iter()
                .flatten()
                .map(|term| Term::new(&term.pod_affinity_term, i64::from(term.weight), &namespace))
                .collect()
        };
        Arc::new(Self {
            key: Key::of(pod.as_ref()),
            uid: pod.uid().unwrap_or_default(),
            kin: Kin::of(&pod),
            priority: spec.priority.unwrap_or(0),
            requests: pod_requests(&pod, false),
            scored: pod_requests(&pod, true),
            host_ports: host_ports(spec),
            affinity: required(affinity.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            anti_affinity: required(anti.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred_affinity: preferred(affinity.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred_anti_affinity: preferred(anti.and_then(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            pod,
        })
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.key.namespace
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether it makes its node more or less welcome to others; required anti-affinity refuses them instead.
    pub(crate) fn has_wishes(&self) -> bool {
        !self.affinity.is_empty()
            || !self.preferred_affinity.is_empty()
            || !self.preferred_anti_affinity.is_empty()
    }

    pub(crate) fn nominated_node(&self) -> Option<&str> {
        let status = self.pod.status.as_ref()?;
        status
            .nominated_node_name
            .as_deref()
            .filter(|name| !name.is_empty())
    }
}

/// The node a pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// Its containers will not run again, so it holds nothing of its node.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty());
            Some(HostPort {
                ip: ip.unwrap_or_else(|| ANY.to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}
