//! EndpointSlice: which addresses stand behind each Service that has a selector.

pub(crate) mod desired;
pub(crate) mod plan;
mod topology;
pub(crate) mod writer;

use std::{collections::BTreeMap, sync::Arc};

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;
use parking_lot::Mutex;
use windlass_informers::{Change, Informer, Key};

use self::{
    desired::{address_types, groups, trigger_time},
    writer::{MANAGED_BY, SERVICE_NAME, Target},
};
use crate::{
    runtime::{
        Context, Controller, Freshness, Outcome, Queue, Result, controller_ref, run_workers,
    },
    services::{self, HEADLESS_LABEL},
};

const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

struct EndpointSlices {
    context: Context,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    freshness: Freshness<EndpointSlice>,
    /// The newest pod change that each Service's slices have told of.
    told: Mutex<AHashMap<Key, Timestamp>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (services, pods, nodes, slices) = context
        .synced::<(Service, Pod, Node, EndpointSlice)>()
        .await;

    let _own = queue.follow(&services);
    let _of_pods = services::follow_pods(&queue, &services, &pods);
    let _of_slices = queue.follow_to(&slices, |slice| service_of(slice, CONTROLLER));
    let (of_nodes, view, on_node) = (Arc::clone(&queue), Arc::clone(&services), Arc::clone(&pods));
    let _of_nodes = nodes.on_change(move |change| {
        let zone = |node: &Node| node.labels().get(ZONE_LABEL).cloned();
        let moved = match change {
            Change::Updated { old, new } => zone(old) != zone(new),
            Change::Added(_) | Change::Deleted(_) => true,
        };
        if moved {
            for pod in on_node.indexed(&change.object().name_any()) {
                for key in services::concerned(&Change::Added(&pod), &view) {
                    of_nodes.add(key);
                }
            }
            // Every zone's share of the CPU is another now.
            let sharing = view.list();
            for service in sharing
                .iter()
                .filter(|service| topology::wants_hints(service))
            {
                of_nodes.add(Key::of(service.as_ref()));
            }
        }
    });

    let controller = Arc::new(EndpointSlices {
        freshness: Freshness::new(Arc::clone(&slices)),
        context: context.clone(),
        services,
        pods,
        nodes,
        slices,
        told: Mutex::new(AHashMap::new()),
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

/// The Service of a slice that `manager` writes.
pub(crate) fn service_of(slice: &EndpointSlice, manager: &str) -> Option<Key> {
    let labels = slice.labels();
    if labels.get(MANAGED_BY).map(String::as_str) != Some(manager) {
        return None;
    }
    Some(Key::new(
        slice.namespace().unwrap_or_default(),
        labels.get(SERVICE_NAME)?,
    ))
}

/// A slice carries its Service's labels beside the three that tie it to Service and controller.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS_LABEL);
    if services::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels
}

impl Controller for EndpointSlices {
    type Key = Key;
    const NAME: &'static str = "endpointslice";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(service) = self.services.by_key(key) else {
            // Its slices go with it by their ownerReference.
            self.freshness.forget(key);
            self.told.lock().remove(key);
            return Ok(Outcome::Done);
        };
        if service.metadata.deletion_timestamp.is_some() || !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let existing: Vec<_> = self
            .slices
            .indexed(&key.to_string())
            .into_iter()
            .filter(|slice| service_of(slice, CONTROLLER).is_some())
            .filter(|slice| slice.metadata.deletion_timestamp.is_none())
            .collect();
        let mut existing = self.freshness.without_deleted(key, existing);
        existing.sort_by_key(|slice| slice.name_any());

        let selected = services::selected(&service, &self.pods);
        let since = self.told.lock().get(key).copied().unwrap_or(Timestamp::MIN);
        let trigger = trigger_time(&selected, since);
        let target = Target {
            key,
            api: self.context.api(&key.namespace),
            owner: controller_ref(service.as_ref()),
            labels: labels(&service),
            trigger,
            freshness: &self.freshness,
        };
        if services::selector(&service).is_none() {
            // The selector was removed: somebody else answers for this Service now.
            for slice in &existing {
                target.delete(slice).await?;
            }
            return Ok(Outcome::Done);
        }
        let families = address_types(&service);
        for slice in &existing {
            if !families
                .iter()
                .any(|family| family.as_str() == slice.address_type)
            {
                target.delete(slice).await?;
            }
        }
        let nodes = || self.nodes.list();
        let shares = topology::wants_hints(&service)
            .then(|| topology::shares(nodes().iter().map(Arc::as_ref)))
            .flatten();
        for family in families {
            let mine: Vec<_> = existing
                .iter()
                .filter(|slice| slice.address_type == family.as_str())
                .cloned()
                .collect();
            let mut wanted = groups(&service, &selected, family, |node| self.zone_of(node));
            if let Some(shares) = &shares {
                for group in &mut wanted {
                    topology::give_hints(group, shares);
                }
            }
            target.write(family, &mine, wanted).await?;
        }
        if let Some(at) = trigger {
            self.told.lock().insert(key.clone(), at);
        }
        Ok(Outcome::Done)
    }
}

impl EndpointSlices {
    fn zone_of(&self, node: &str) -> Option<String> {
        self.nodes.get("", node)?.labels().get(ZONE_LABEL).cloned()
    }
}
