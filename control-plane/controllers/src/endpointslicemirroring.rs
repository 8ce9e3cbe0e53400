//! EndpointSlice mirroring: what a user wrote into Endpoints of a Service without a selector, as slices,
//! because slices are all that the datapath reads.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::ResourceExt;
use windlass_informers::{Informer, Key};

use crate::{
    endpointslice::{
        desired::AddressType,
        plan::{Group, identity, ports_key},
        service_of,
        writer::{MANAGED_BY, SERVICE_NAME, Target},
    },
    runtime::{
        Context, Controller, Freshness, Outcome, Queue, Result, controller_ref, run_workers,
    },
    services,
};

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Upstream's `--mirroring-max-endpoints-per-subset`.
const MAX_PER_SUBSET: usize = 1000;

struct Mirroring {
    context: Context,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    freshness: Freshness<EndpointSlice>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (services, endpoints, slices) = context
        .synced::<(Service, Endpoints, EndpointSlice)>()
        .await;

    // Endpoints have their Service's name.
    let _of_services = queue.follow(&services);
    let _own = queue.follow(&endpoints);
    let _of_slices = queue.follow_to(&slices, |slice| service_of(slice, CONTROLLER));

    let controller = Arc::new(Mirroring {
        freshness: Freshness::new(Arc::clone(&slices)),
        context: context.clone(),
        services,
        endpoints,
        slices,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

impl Controller for Mirroring {
    type Key = Key;
    const NAME: &'static str = "endpointslicemirroring";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let mirrored = self.endpoints.by_key(key).filter(|endpoints| {
            let service = self.services.by_key(key);
            service.is_some_and(|service| wants_mirror(&service)) && may_mirror(endpoints)
        });
        if !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let existing: Vec<_> = self
            .slices
            .indexed(&key.to_string())
            .into_iter()
            .filter(|slice| service_of(slice, CONTROLLER).is_some())
            .collect();
        let existing = self.freshness.without_deleted(key, existing);
        if mirrored.is_none() && existing.is_empty() {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        }
        let target = Target {
            key,
            api: self.context.api(&key.namespace),
            owner: mirrored.as_deref().map(controller_ref).unwrap_or_default(),
            labels: mirrored
                .as_deref()
                .map(|e| labels(e, key))
                .unwrap_or_default(),
            trigger: None,
            freshness: &self.freshness,
        };
        for family in [AddressType::V4, AddressType::V6] {
            let mine: Vec<_> = existing
                .iter()
                .filter(|slice| slice.address_type == family.as_str())
                .cloned()
                .collect();
            let wanted = mirrored
                .as_deref()
                .map(|e| groups(e, family))
                .unwrap_or_default();
            if wanted.is_empty() {
                for slice in &mine {
                    target.delete(slice).await?;
                }
            } else {
                target.write(family, &mine, wanted).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn wants_mirror(service: &Service) -> bool {
    services::selector(service).is_none()
        && service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("ExternalName")
        && service.metadata.deletion_timestamp.is_none()
}

fn may_mirror(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(SKIP_LABEL).map(String::as_str) != Some("true")
        && !endpoints.annotations().contains_key(LEADER_ANNOTATION)
        && endpoints.metadata.deletion_timestamp.is_none()
}

fn labels(endpoints: &Endpoints, key: &Key) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels
}

fn groups(endpoints: &Endpoints, family: AddressType) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let unready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        let wanted: Vec<_> = ready
            .chain(unready)
            .filter(|(address, _)| AddressType::of(&address.ip) == Some(family))
            .take(MAX_PER_SUBSET)
            .map(|(address, ready)| endpoint(address, ready))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let group = groups.entry(ports_key(&ports)).or_insert_with(|| Group {
            ports,
            endpoints: BTreeMap::new(),
        });
        group.endpoints.extend(
            wanted
                .into_iter()
                .map(|endpoint| (identity(&endpoint), endpoint)),
        );
    }
    groups.into_values().collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subsets_become_groups_by_ports_and_family() {
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "db"},
            "subsets": [
                {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                    "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 5433}]}]}))
        .unwrap();
        let v4 = groups(&endpoints, AddressType::V4);
        assert_eq!(
            v4.iter()
                .map(|group| group.endpoints.len())
                .collect::<Vec<_>>(),
            [2, 1]
        );
        let v6 = groups(&endpoints, AddressType::V6);
        assert_eq!(v6.len(), 1);
        let ready: Vec<_> = v4[0]
            .endpoints
            .values()
            .map(|endpoint| endpoint.conditions.as_ref().unwrap().ready)
            .collect();
        assert_eq!(ready, [Some(true), Some(false)]);
    }
}
