//! What the watches have told, and which Services have to be looked at again for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{ObjectReference, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Resource as _, ResourceExt as _, runtime::watcher::Event};
use windlass_datapath::ServiceWrite;

use super::{
    compile::{DesiredPort, EndpointState, Policy, PortKey, compile},
    health::HealthCheck,
    host_ports::{self, HostPort},
    parse::{ServiceName, ServiceSpec, SliceSpec},
    source::Source,
    tables::Tables,
};

/// A slice by namespace and name.
type SliceName = (String, String);

/// What the watches have told.
pub(super) struct Observed {
    services: Source<ServiceName, ServiceSpec>,
    slices: Source<SliceName, (ServiceName, SliceSpec)>,
    /// Slices by Service.
    slices_of: HashMap<ServiceName, BTreeSet<SliceName>>,
    /// Services whose tables may be out of date.
    dirty: BTreeSet<ServiceName>,
    /// Services that claim a frontend of another, to be tried when one goes.
    contested: BTreeSet<ServiceName>,
    host_ports: BTreeMap<ServiceName, Vec<HostPort>>,
    /// The zone of this node.
    zone: Option<String>,
    /// Services that a balancer asks this node about.
    health_checks: BTreeMap<ServiceName, HealthCheck>,
    /// Sets of local endpoints that are empty while others are not.
    without_local: BTreeSet<PortKey>,
    seen: Seen,
}

/// What the watches have told since the last time that somebody asked.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) service_changes: u64,
    pub(super) endpoint_changes: u64,
    /// When what changed the endpoints happened, as the EndpointSlice controller says.
    pub(super) triggers: Vec<Timestamp>,
    /// Slices with addresses that must not be endpoints.
    pub(super) refused: Vec<(ObjectReference, Vec<IpAddr>)>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "short-lived: read from one watch, taken at once"
)]
pub(super) enum Change {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
}

impl Observed {
    pub(super) fn new() -> Self {
        Self {
            services: Source::new(),
            slices: Source::new(),
            slices_of: HashMap::new(),
            dirty: BTreeSet::new(),
            contested: BTreeSet::new(),
            host_ports: BTreeMap::new(),
            zone: None,
            health_checks: BTreeMap::new(),
            without_local: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    /// What happened since the last call.
    pub(super) fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    /// Services that a balancer asks this node about, as of the last plan.
    pub(super) fn health_checks(&self) -> &BTreeMap<ServiceName, HealthCheck> {
        &self.health_checks
    }

    /// Sets of local endpoints that are empty while others are not, as of the last plan.
    pub(super) fn without_local(&self) -> &BTreeSet<PortKey> {
        &self.without_local
    }

    /// Whether a set of endpoints is for clients outside, rather than for pods.
    pub(super) fn is_external(&self, key: &PortKey) -> bool {
        let service = self.services.current().get(&key.service);
        service.is_some_and(|service| key.policy == Policy::Local && service.external_local)
    }

    /// The zone decides which hints are for this node.
    pub(super) fn set_zone(&mut self, zone: Option<&str>) {
        if self.zone.as_deref() != zone {
            self.zone = zone.map(str::to_owned);
            self.mark_all_dirty();
        }
    }

    pub(super) fn set_host_ports(&mut self, ports: &[HostPort]) {
        let new = host_ports::by_owner(ports);
        let old = std::mem::take(&mut self.host_ports);
        let differs = |name: &&ServiceName| old.get(*name) != new.get(*name);
        self.dirty
            .extend(old.keys().chain(new.keys()).filter(differs).cloned());
        self.host_ports = new;
    }

    pub(super) fn has_host_ports(&self) -> bool {
        !self.host_ports.is_empty()
    }

    pub(super) fn is_synced(&self) -> bool {
        self.services.is_synced() && self.slices.is_synced()
    }

    /// Nothing is left to be written.
    pub(super) fn is_settled(&self) -> bool {
        self.dirty.is_empty()
    }

    /// What was planned has been written.
    pub(super) fn settle(&mut self) {
        self.dirty.clear();
    }

    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.services.current().keys().cloned());
        self.dirty.extend(self.host_ports.keys().cloned());
    }

    pub(super) fn take(&mut self, change: Change, node: &str) {
        match change {
            Change::Service(event) => self.take_service(event),
            Change::Slice(event) => self.take_slice(event, node),
        }
    }

    fn take_service(&mut self, event: Event<Service>) {
        let name = |service: &Service| {
            ServiceName::new(service.namespace().unwrap_or_default(), service.name_any())
        };
        match event {
            Event::Init => self.services.begin_list(),
            Event::InitApply(service) => {
                if let Some(spec) = ServiceSpec::parse(&service) {
                    self.services.list(name(&service), spec);
                }
            }
            Event::InitDone => self.dirty.extend(self.services.end_list()),
            Event::Apply(service) => {
                let name = name(&service);
                let changed = match ServiceSpec::parse(&service) {
                    Some(spec) => self.services.apply(name.clone(), spec),
                    None => self.services.remove(&name),
                };
                if changed {
                    self.seen.service_changes += 1;
                    self.dirty.insert(name);
                }
            }
            Event::Delete(service) => {
                let name = name(&service);
                if self.services.remove(&name) {
                    self.seen.service_changes += 1;
                    self.dirty.insert(name);
                }
            }
        }
    }

    fn take_slice(&mut self, event: Event<EndpointSlice>, node: &str) {
        let key = |slice: &EndpointSlice| -> SliceName {
            (slice.namespace().unwrap_or_default(), slice.name_any())
        };
        let value = |slice: &EndpointSlice| {
            Some((SliceSpec::service_of(slice)?, SliceSpec::parse(slice, node)))
        };
        match event {
            Event::Init => self.slices.begin_list(),
            Event::InitApply(slice) => {
                if let Some(value) = value(&slice) {
                    self.slices.list(key(&slice), value);
                }
            }
            Event::InitDone => {
                // Both the old and the new owner of a slice that changed hands.
                for slice in self.slices.end_list() {
                    for (service, slices) in &self.slices_of {
                        if slices.contains(&slice) {
                            self.dirty.insert(service.clone());
                        }
                    }
                    if let Some((service, _)) = self.slices.current().get(&slice) {
                        self.dirty.insert(service.clone());
                    }
                }
                self.slices_of.clear();
                for (key, (service, _)) in self.slices.current() {
                    self.slices_of
                        .entry(service.clone())
                        .or_default()
                        .insert(key.clone());
                }
            }
            Event::Apply(slice) => {
                let key = key(&slice);
                match value(&slice) {
                    Some(value) => {
                        let service = value.0.clone();
                        self.disown(&key, Some(&service));
                        self.refuse(&slice);
                        if self.slices.apply(key.clone(), value) {
                            self.seen.endpoint_changes += 1;
                            self.seen.triggers.extend(trigger(&slice));
                            self.slices_of
                                .entry(service.clone())
                                .or_default()
                                .insert(key);
                            self.dirty.insert(service);
                        }
                    }
                    None => self.forget_slice(&key),
                }
            }
            Event::Delete(slice) => {
                self.seen.endpoint_changes += 1;
                self.forget_slice(&key(&slice));
            }
        }
    }

    fn refuse(&mut self, slice: &EndpointSlice) {
        let unfit = SliceSpec::unfit_addresses(slice);
        if !unfit.is_empty() {
            self.seen.refused.push((slice.object_ref(&()), unfit));
        }
    }

    fn forget_slice(&mut self, key: &SliceName) {
        self.disown(key, None);
        self.slices.remove(key);
    }

    /// Takes a slice away from the Service that has it, unless that is `except`.
    fn disown(&mut self, key: &SliceName, except: Option<&ServiceName>) {
        let Some((owner, _)) = self.slices.current().get(key) else {
            return;
        };
        if Some(owner) == except {
            return;
        }
        self.dirty.insert(owner.clone());
        if let Some(slices) = self.slices_of.get_mut(owner) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(owner);
            }
        }
    }

    fn compile(&self, name: &ServiceName) -> Vec<DesiredPort> {
        if let Some(ports) = self.host_ports.get(name) {
            return host_ports::compile(name, ports);
        }
        let Some(service) = self.services.current().get(name) else {
            return Vec::new();
        };
        let slices: Vec<_> = self
            .slices_of
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.current().get(slice))
            .map(|(_, spec)| spec)
            .collect();
        compile(name, service, &slices, self.zone.as_deref())
    }

    /// What a balancer may ask about a Service, and what kube-proxy counts of it.
    fn note(&mut self, name: &ServiceName, ports: &[DesiredPort]) {
        let service = self.services.current().get(name);
        match service.and_then(|service| service.health_check_port) {
            Some(port) => {
                let local = ports.iter().filter(|port| port.key.policy == Policy::Local);
                let ready: BTreeSet<_> = local
                    .flat_map(|port| &port.endpoints)
                    .filter(|(_, state)| **state == EndpointState::Ready)
                    .map(|(backend, _)| backend.addr)
                    .collect();
                let local_endpoints = ready.len();
                let check = HealthCheck {
                    port,
                    local_endpoints,
                };
                self.health_checks.insert(name.clone(), check);
            }
            None => drop(self.health_checks.remove(name)),
        }
        self.without_local.retain(|key| key.service != *name);
        let silent = ports.iter().filter(|port| port.is_silent());
        self.without_local
            .extend(silent.map(|port| port.key.clone()));
    }

    /// The writes for every Service that may be out of date. Removals come first, so that
    /// a frontend that changes hands is free for its new owner.
    pub(super) fn plan(&mut self, tables: &mut Tables) -> Vec<ServiceWrite> {
        let mut writes = Vec::new();
        let mut compiled = Vec::new();
        let mut left = Vec::new();
        for name in self.dirty.clone() {
            let ports = self.compile(&name);
            self.note(&name, &ports);
            for key in tables.ports_of(&name) {
                if ports.is_empty() {
                    writes.extend(tables.plan_removal(&key));
                } else if !ports.iter().any(|port| port.key == key) {
                    left.push(key);
                }
            }
            compiled.push((name, ports));
        }
        self.plan_ports(tables, compiled, &mut writes);
        // What moves to another set of the same Service has moved now, without a gap.
        for key in left {
            writes.extend(tables.plan_removal(&key));
        }
        let freed = writes
            .iter()
            .any(|write| matches!(write, ServiceWrite::DeleteService { .. }));
        if freed && !self.contested.is_empty() {
            let waiting = std::mem::take(&mut self.contested);
            let compiled = waiting
                .into_iter()
                .map(|name| (name.clone(), self.compile(&name)));
            self.plan_ports(tables, compiled.collect(), &mut writes);
        }
        writes
    }

    fn plan_ports(
        &mut self,
        tables: &mut Tables,
        compiled: Vec<(ServiceName, Vec<DesiredPort>)>,
        writes: &mut Vec<ServiceWrite>,
    ) {
        for (name, ports) in compiled {
            self.contested.remove(&name);
            for port in ports {
                let plan = tables.plan(&port);
                writes.extend(plan.writes);
                if !plan.contested.is_empty() {
                    tracing::warn!(
                        namespace = name.namespace,
                        name = name.name,
                        frontends = plan.contested.len(),
                        "addresses belong to another service already"
                    );
                    self.contested.insert(name.clone());
                }
            }
        }
    }
}

/// When the change happened that a slice tells of (the upstream annotation).
fn trigger(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    let text = annotations.get("endpoints.kubernetes.io/last-change-trigger-time")?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]},
        }))
        .unwrap()
    }

    fn slice(name: &str, owner: &str, addresses: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({"addresses": [address]}))
            .collect();
        serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"namespace": "d", "name": name, "labels": {"kubernetes.io/service-name": owner}},
            "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    struct Fixture {
        observed: Observed,
        tables: Tables,
    }

    impl Fixture {
        fn synced(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Self {
            let mut fixture = Self {
                observed: Observed::new(),
                tables: Tables::default(),
            };
            fixture.list(services, slices);
            fixture
        }

        fn list(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) {
            self.take(Change::Service(Event::Init));
            services
                .into_iter()
                .for_each(|it| self.take(Change::Service(Event::InitApply(it))));
            self.take(Change::Service(Event::InitDone));
            self.take(Change::Slice(Event::Init));
            slices
                .into_iter()
                .for_each(|it| self.take(Change::Slice(Event::InitApply(it))));
            self.take(Change::Slice(Event::InitDone));
        }

        fn take(&mut self, change: Change) {
            self.observed.take(change, "node");
        }

        fn write(&mut self) -> Vec<ServiceWrite> {
            let writes = self.observed.plan(&mut self.tables);
            self.observed.settle();
            writes
        }
    }

    fn is_ready(fixture: &Fixture, address: &str) -> bool {
        fixture.tables.is_ready_target(address.parse().unwrap())
    }

    #[test]
    fn nothing_is_written_before_both_lists_are_complete() {
        let mut observed = Observed::new();
        observed.take(Change::Service(Event::Init), "node");
        observed.take(Change::Service(Event::InitDone), "node");
        assert!(!observed.is_synced());
        observed.take(Change::Slice(Event::Init), "node");
        observed.take(Change::Slice(Event::InitDone), "node");
        assert!(observed.is_synced());
    }

    #[test]
    fn a_list_after_a_lost_watch_costs_only_the_difference() {
        let services = || vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")];
        let mut fixture = Fixture::synced(
            services(),
            vec![
                slice("a-1", "a", &["10.0.0.1"]),
                slice("b-1", "b", &["10.0.0.2"]),
            ],
        );
        assert!(!fixture.write().is_empty());
        fixture.list(
            services(),
            vec![
                slice("a-1", "a", &["10.0.0.1"]),
                slice("b-1", "b", &["10.0.0.3"]),
            ],
        );
        assert_eq!(fixture.observed.dirty.len(), 1, "only b");
        fixture.write();
        assert!(is_ready(&fixture, "10.0.0.1") && is_ready(&fixture, "10.0.0.3"));
        assert!(!is_ready(&fixture, "10.0.0.2"));
        fixture.list(
            vec![service("b", "10.96.0.2")],
            vec![slice("b-1", "b", &["10.0.0.3"])],
        );
        fixture.write();
        assert!(
            !is_ready(&fixture, "10.0.0.1"),
            "what the new list lacks is gone"
        );
    }

    #[test]
    fn a_slice_that_changes_hands_leaves_its_old_service() {
        let mut fixture = Fixture::synced(
            vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")],
            vec![slice("s", "a", &["10.0.0.1"])],
        );
        fixture.write();
        fixture.take(Change::Slice(Event::Apply(slice("s", "b", &["10.0.0.1"]))));
        assert_eq!(fixture.observed.dirty.len(), 2);
        fixture.write();
        fixture.take(Change::Service(Event::Delete(service("b", "10.96.0.2"))));
        fixture.write();
        assert!(!is_ready(&fixture, "10.0.0.1"), "a has it no more");
    }

    #[test]
    fn a_deleted_slice_takes_its_endpoints_and_an_equal_event_costs_nothing() {
        let mut fixture = Fixture::synced(
            vec![service("a", "10.96.0.1")],
            vec![
                slice("1", "a", &["10.0.0.1"]),
                slice("2", "a", &["10.0.0.2"]),
            ],
        );
        fixture.write();
        fixture.take(Change::Slice(Event::Apply(slice("1", "a", &["10.0.0.1"]))));
        fixture.take(Change::Service(Event::Apply(service("a", "10.96.0.1"))));
        assert!(fixture.observed.is_settled());
        fixture.take(Change::Slice(Event::Delete(slice("2", "a", &[]))));
        fixture.write();
        assert!(is_ready(&fixture, "10.0.0.1") && !is_ready(&fixture, "10.0.0.2"));
    }

    #[test]
    fn an_address_that_is_freed_goes_to_the_service_that_waited_for_it() {
        let mut fixture = Fixture::synced(
            vec![service("a", "10.96.0.1"), service("b", "10.96.0.1")],
            vec![
                slice("1", "a", &["10.0.0.1"]),
                slice("2", "b", &["10.0.0.2"]),
            ],
        );
        fixture.write();
        fixture.take(Change::Service(Event::Delete(service("a", "10.96.0.1"))));
        let writes = fixture.write();
        let positions = |wanted: fn(&ServiceWrite) -> bool| writes.iter().position(wanted);
        let deleted = positions(|write| matches!(write, ServiceWrite::DeleteService { .. }));
        let put = positions(|write| matches!(write, ServiceWrite::PutService { .. }));
        assert!(deleted.is_some() && deleted < put, "{writes:?}");
    }
}
