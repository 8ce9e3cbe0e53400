//! Endpoints (core/v1): the older form of EndpointSlices, one object for a Service, kept for clients that
//! still read it. At most 1000 addresses.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{Informer, Key};

use crate::{
    endpointslice::desired::{AddressType, address_types},
    pods,
    runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, delete, patch, run_workers},
    services::{self, HEADLESS_LABEL},
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MAX_ADDRESSES: usize = 1000;

struct EndpointsController {
    context: Context,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (services, pods, endpoints) = context.synced::<(Service, Pod, Endpoints)>().await;

    let _own = queue.follow(&services);
    let _of_pods = services::follow_pods(&queue, &services, &pods);
    // They have their Service's name.
    let _of_endpoints = queue.follow(&endpoints);

    let controller = Arc::new(EndpointsController {
        context: context.clone(),
        services,
        pods,
        endpoints,
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

impl Controller for EndpointsController {
    type Key = Key;
    const NAME: &'static str = "endpoints";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let api = self.context.api::<Endpoints>(&key.namespace);
        let existing = self.endpoints.by_key(key);
        let Some(service) = self.services.by_key(key) else {
            // Endpoints without a Service may be someone's own (a leader election of old); ours say so.
            if let Some(existing) = existing.filter(|existing| is_ours(existing)) {
                delete(&api, existing.as_ref()).await?;
            }
            return Ok(Outcome::Done);
        };
        if services::selector(&service).is_none() {
            return Ok(Outcome::Done);
        }
        let wanted = desired(&service, &services::selected(&service, &self.pods));
        match existing {
            Some(existing) => {
                let mut updated = existing.as_ref().clone();
                updated.subsets = wanted.subsets;
                updated.metadata.labels = wanted.metadata.labels;
                let truncated = wanted.metadata.annotations.unwrap_or_default();
                let annotations = updated.metadata.annotations.get_or_insert_default();
                annotations.remove(OVER_CAPACITY);
                annotations.extend(truncated);
                if annotations.is_empty() {
                    updated.metadata.annotations = None;
                }
                patch(&api, existing.as_ref(), &updated).await?;
            }
            None => {
                let created = api
                    .create(&PostParams::default(), &wanted)
                    .await
                    .doing(|| format!("create endpoints {key}"));
                match created {
                    Err(error) if !error.is_namespace_terminating() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(Outcome::Done)
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_BY).map(String::as_str) == Some(CONTROLLER)
}

fn desired(service: &Service, selected: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS_LABEL);
    if services::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    let (subsets, truncated) = subsets(service, selected);
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: truncated
                .then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..Default::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Addresses grouped by the ports they share; whether some did not fit.
fn subsets(service: &Service, selected: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = address_types(service)
        .first()
        .copied()
        .unwrap_or(AddressType::V4);
    let publish = services::publishes_not_ready(service);
    let mut groups: BTreeMap<Vec<PortKey>, EndpointSubset> = BTreeMap::new();
    let mut room = MAX_ADDRESSES;
    let mut truncated = false;
    // Ready ones first, so that it is the others that are cut off.
    let (ready, unready): (Vec<_>, Vec<_>) = selected
        .iter()
        .partition(|pod| publish || pods::is_ready(pod));
    for (pod, ready) in ready
        .into_iter()
        .map(|pod| (pod, true))
        .chain(unready.into_iter().map(|pod| (pod, false)))
    {
        if pods::is_finished(pod) || (pods::is_terminating(pod) && !publish) {
            continue;
        }
        let Some(address) = address(service, pod, family) else {
            continue;
        };
        if room == 0 {
            truncated = true;
            break;
        }
        room -= 1;
        let ports = ports(service, pod);
        let subset = groups
            .entry(ports.iter().map(port_key).collect())
            .or_insert_with(|| EndpointSubset {
                ports: (!ports.is_empty()).then_some(ports),
                ..Default::default()
            });
        let list = if ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    (groups.into_values().collect(), truncated)
}

type PortKey = (String, i32, String);

fn port_key(port: &EndpointPort) -> PortKey {
    (
        port.name.clone().unwrap_or_default(),
        port.port,
        port.protocol.clone().unwrap_or_default(),
    )
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let resolved = ports.into_iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: services::target_port(pod, port)?,
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    resolved.collect()
}

fn address(service: &Service, pod: &Pod, family: AddressType) -> Option<EndpointAddress> {
    let ip = services::addresses(pod)
        .into_iter()
        .find(|ip| AddressType::of(ip) == Some(family))?;
    Some(EndpointAddress {
        ip: ip.to_owned(),
        hostname: services::hostname(pod, service),
        node_name: pods::node_name(pod).map(ToOwned::to_owned),
        target_ref: Some(services::target_ref(pod)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(number: usize, ready: bool, port: i32) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "ns", "uid": format!("u{number}")},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "http"}]}}))
        .unwrap()
    }

    #[test]
    fn pods_with_other_ports_make_another_subset_and_unready_ones_another_list() {
        let (subsets, truncated) = subsets(
            &service(),
            &[pod(1, true, 80), pod(2, false, 80), pod(3, true, 81)],
        );
        assert!(!truncated);
        let shape: Vec<_> = subsets
            .iter()
            .map(|subset| {
                (
                    subset.ports.as_ref().unwrap()[0].port,
                    subset.addresses.as_ref().map_or(0, Vec::len),
                    subset.not_ready_addresses.as_ref().map_or(0, Vec::len),
                )
            })
            .collect();
        assert_eq!(shape, [(80, 1, 1), (81, 1, 0)]);
    }

    #[test]
    fn beyond_a_thousand_addresses_unready_ones_are_cut_off_and_it_says_so() {
        let pods: Vec<_> = (0..1200)
            .map(|number| pod(number, number >= 700, 80))
            .collect();
        let endpoints = desired(&service(), &pods);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 500);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 500);
        assert_eq!(
            endpoints
                .annotations()
                .get(OVER_CAPACITY)
                .map(String::as_str),
            Some("truncated")
        );
    }
}
