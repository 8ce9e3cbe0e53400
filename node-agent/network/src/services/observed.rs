//! What the watches have told, and which Services have to be looked at again for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::watcher::Event;
use windlass_datapath::ServiceWrite;

use super::{
    compile::{DesiredPort, EndpointState, Policy, PortKey, compile},
    health::HealthCheck,
    host_ports::{self, HostPort},
    news::{ServiceNews, SliceName, SliceNews},
    parse::{ServiceName, ServiceSpec, SliceSpec},
    source::Source,
    tables::{Tables, Writes},
};

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
    checks_changed: bool,
    /// Sets of local endpoints that are empty while others are not.
    without_local: BTreeMap<ServiceName, BTreeSet<PortKey>>,
    /// Addresses of balancers that this node can serve.
    servable: BTreeMap<ServiceName, BTreeSet<IpAddr>>,
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
    /// Services that ask for what there is not.
    pub(super) misread: Vec<(ObjectReference, String)>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "short-lived: read from one watch, taken at once"
)]
pub(super) enum Change {
    Service(Event<ServiceNews>),
    Slice(Event<SliceNews>),
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
            checks_changed: false,
            without_local: BTreeMap::new(),
            servable: BTreeMap::new(),
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

    /// Whether those are others than at the last call.
    pub(super) fn take_checks_changed(&mut self) -> bool {
        std::mem::take(&mut self.checks_changed)
    }

    /// Sets of local endpoints that are empty while others are not, as of the last plan.
    pub(super) fn without_local(&self) -> impl Iterator<Item = &PortKey> {
        self.without_local.values().flatten()
    }

    /// Addresses of balancers that this node can serve, as of the last plan.
    pub(super) fn servable(&self) -> impl Iterator<Item = &IpAddr> {
        self.servable.values().flatten()
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

    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.services.current().keys().cloned());
        self.dirty.extend(self.host_ports.keys().cloned());
    }

    pub(super) fn take(&mut self, change: Change) {
        match change {
            Change::Service(event) => self.take_service(event),
            Change::Slice(event) => self.take_slice(event),
        }
    }

    fn take_service(&mut self, event: Event<ServiceNews>) {
        let (name, changed) = match event {
            Event::Init => return self.services.begin_list(),
            Event::InitApply(news) => {
                if let Some(spec) = news.spec {
                    self.seen.misread.extend(news.misread);
                    self.services.list(news.name, spec);
                }
                return;
            }
            Event::InitDone => return self.dirty.extend(self.services.end_list()),
            Event::Apply(ServiceNews {
                name,
                spec,
                misread,
            }) => match spec {
                Some(spec) => {
                    self.seen.misread.extend(misread);
                    (name.clone(), self.services.apply(name, spec))
                }
                None => (name.clone(), self.services.remove(&name)),
            },
            Event::Delete(news) => (news.name.clone(), self.services.remove(&news.name)),
        };
        if changed {
            self.seen.service_changes += 1;
            self.dirty.insert(name);
        }
    }

    fn take_slice(&mut self, event: Event<SliceNews>) {
        match event {
            Event::Init => self.slices.begin_list(),
            Event::InitApply(mut news) => {
                self.seen.refused.extend(news.refused.take());
                if let Some(value) = news.spec {
                    self.slices.list(news.name, value);
                }
            }
            Event::InitDone => self.end_slices(),
            Event::Apply(mut news) => {
                self.seen.refused.extend(news.refused.take());
                let Some(value) = news.spec else {
                    return self.forget_slice(&news.name);
                };
                let service = value.0.clone();
                self.disown(&news.name, Some(&service));
                if self.slices.apply(news.name.clone(), value) {
                    self.seen.endpoint_changes += 1;
                    self.seen.triggers.extend(news.trigger);
                    self.slices_of
                        .entry(service.clone())
                        .or_default()
                        .insert(news.name);
                    self.dirty.insert(service);
                }
            }
            Event::Delete(news) => {
                self.seen.endpoint_changes += 1;
                self.forget_slice(&news.name);
            }
        }
    }

    fn end_slices(&mut self) {
        let changed: HashSet<SliceName> = self.slices.end_list().into_iter().collect();
        // Both the old and the new owner of a slice that changed hands.
        let lost = |slices: &BTreeSet<SliceName>| slices.iter().any(|it| changed.contains(it));
        let old = self.slices_of.iter().filter(|(_, slices)| lost(slices));
        self.dirty.extend(old.map(|(service, _)| service.clone()));
        self.slices_of.clear();
        for (key, (service, _)) in self.slices.current() {
            if changed.contains(key) {
                self.dirty.insert(service.clone());
            }
            self.slices_of
                .entry(service.clone())
                .or_default()
                .insert(key.clone());
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
                let held = self.health_checks.insert(name.clone(), check);
                self.checks_changed |= held != Some(check);
            }
            None => self.checks_changed |= self.health_checks.remove(name).is_some(),
        }
        let servable = service.map_or_else(BTreeSet::new, |service| servable(service, ports));
        match servable.is_empty() {
            true => drop(self.servable.remove(name)),
            false => drop(self.servable.insert(name.clone(), servable)),
        }
        let silent = ports.iter().filter(|port| port.is_silent());
        let silent: BTreeSet<PortKey> = silent.map(|port| port.key.clone()).collect();
        match silent.is_empty() {
            true => drop(self.without_local.remove(name)),
            false => drop(self.without_local.insert(name.clone(), silent)),
        }
    }

    /// The writes for at most so many of the Services that may be out of date, which count as written from
    /// then on: after a failure everything is to be looked at again. Removals come first, so that a frontend
    /// that changes hands is free for its new owner.
    pub(super) fn plan(&mut self, tables: &mut Tables, most: usize) -> Vec<ServiceWrite> {
        let mut writes = Writes::default();
        let mut compiled = Vec::new();
        let mut left = Vec::new();
        tables.begin();
        for _ in 0..most {
            let Some(name) = self.dirty.pop_first() else {
                break;
            };
            let ports = self.compile(&name);
            self.note(&name, &ports);
            for key in tables.ports_of(&name) {
                if ports.is_empty() {
                    tables.remove_first(&key, &mut writes);
                } else if !ports.iter().any(|port| port.key == key) {
                    left.push(key);
                }
            }
            compiled.push((name, ports));
        }
        self.plan_ports(tables, compiled, &mut writes);
        // What moves to another set of the same Service has moved now, without a gap.
        for key in left {
            tables.remove_last(&key, &mut writes);
        }
        let freed = writes.frees_a_frontend();
        let first = std::mem::take(&mut writes);
        if freed && !self.contested.is_empty() {
            let waiting = std::mem::take(&mut self.contested);
            let compiled = waiting
                .into_iter()
                .map(|name| (name.clone(), self.compile(&name)));
            self.plan_ports(tables, compiled.collect(), &mut writes);
        }
        let mut all = first.in_order();
        all.append(&mut writes.in_order());
        all
    }

    fn plan_ports(
        &mut self,
        tables: &mut Tables,
        compiled: Vec<(ServiceName, Vec<DesiredPort>)>,
        writes: &mut Writes,
    ) {
        for (name, ports) in compiled {
            self.contested.remove(&name);
            for port in ports {
                let contested = tables.plan_port(&port, writes);
                if !contested.is_empty() {
                    tracing::warn!(
                        namespace = &*name.namespace,
                        name = &*name.name,
                        frontends = contested.len(),
                        "addresses belong to another service already"
                    );
                    self.contested.insert(name.clone());
                }
            }
        }
    }
}

/// The balancer's addresses that this node may answer for. With externalTrafficPolicy `Local` that takes an
/// endpoint here which gets new connections; unless there is none anywhere: then whoever answers refuses.
fn servable(service: &ServiceSpec, ports: &[DesiredPort]) -> BTreeSet<IpAddr> {
    let can_serve = |address: &IpAddr| {
        let reaches = |policy: Policy, least: EndpointState| {
            ports
                .iter()
                .filter(|port| port.key.policy == policy && port.key.is_v4 == address.is_ipv4())
                .any(|port| port.endpoints.values().any(|state| *state >= least))
        };
        !service.external_local
            || reaches(Policy::Local, EndpointState::Ready)
            || !reaches(Policy::Cluster, EndpointState::Ready)
                && (reaches(Policy::Local, EndpointState::Fallback)
                    || !reaches(Policy::Cluster, EndpointState::Fallback))
    };
    let addresses = service.load_balancer_ips.iter().copied();
    match service.own_balancer {
        true => addresses.filter(can_serve).collect(),
        false => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::news, *};
    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
    use serde_json::json;

    fn of_service(event: Event<Service>) -> Change {
        Change::Service(news::read(event, ServiceNews::of))
    }

    fn of_slice(event: Event<EndpointSlice>) -> Change {
        Change::Slice(news::read(event, |slice| SliceNews::of(slice, "node")))
    }

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
            .map(|address| json!({"addresses": [address], "nodeName": "node"}))
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
            self.take(of_service(Event::Init));
            services
                .into_iter()
                .for_each(|it| self.take(of_service(Event::InitApply(it))));
            self.take(of_service(Event::InitDone));
            self.take(of_slice(Event::Init));
            slices
                .into_iter()
                .for_each(|it| self.take(of_slice(Event::InitApply(it))));
            self.take(of_slice(Event::InitDone));
        }

        fn take(&mut self, change: Change) {
            self.observed.take(change);
        }

        fn write(&mut self) -> Vec<ServiceWrite> {
            self.observed.plan(&mut self.tables, usize::MAX)
        }
    }

    fn is_ready(fixture: &Fixture, address: &str) -> bool {
        fixture.tables.is_ready_target(address.parse().unwrap())
    }

    #[test]
    fn nothing_is_written_before_both_lists_are_complete() {
        let mut observed = Observed::new();
        observed.take(of_service(Event::Init));
        observed.take(of_service(Event::InitDone));
        assert!(!observed.is_synced());
        observed.take(of_slice(Event::Init));
        observed.take(of_slice(Event::InitDone));
        assert!(observed.is_synced());
    }

    #[test]
    fn a_balancers_address_is_answered_by_nodes_that_can_serve_it() {
        let balanced = |policy: &str, class: Option<&str>| -> Service {
            serde_json::from_value(json!({
                "metadata": {"namespace": "d", "name": "a"},
                "spec": {
                    "type": "LoadBalancer", "loadBalancerClass": class, "externalTrafficPolicy": policy,
                    "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}],
                },
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}},
            }))
            .unwrap()
        };
        // (node, ready, serving): terminating when it is not ready.
        let endpoints = |states: &[(&str, bool, bool)]| -> EndpointSlice {
            let endpoints: Vec<_> = states
                .iter()
                .zip(1..)
                .map(|((node, ready, serving), number)| {
                    json!({
                        "addresses": [format!("10.0.0.{number}")], "nodeName": node,
                        "conditions": {"ready": ready, "serving": serving, "terminating": !ready},
                    })
                })
                .collect();
            let mut slice = slice("1", "a", &[]);
            slice.endpoints = serde_json::from_value(json!(endpoints)).unwrap();
            slice
        };
        let own = Some("windlass.dev/pool");
        for (policy, class, states, expected) in [
            ("Cluster", None, vec![("other", true, true)], true),
            ("Cluster", own, vec![], true),
            (
                "Cluster",
                Some("example.com/lb"),
                vec![("node", true, true)],
                false,
            ),
            (
                "Local",
                own,
                vec![("node", true, true), ("other", true, true)],
                true,
            ),
            ("Local", own, vec![("other", true, true)], false),
            // While another node has a ready one, those that end here are no reason.
            (
                "Local",
                own,
                vec![("node", false, true), ("other", true, true)],
                false,
            ),
            (
                "Local",
                own,
                vec![("node", false, true), ("other", false, true)],
                true,
            ),
            ("Local", own, vec![("other", false, true)], false),
            ("Local", own, vec![("other", false, false)], true),
        ] {
            let mut fixture =
                Fixture::synced(vec![balanced(policy, class)], vec![endpoints(&states)]);
            fixture.write();
            let found: Vec<_> = fixture.observed.servable().collect();
            assert_eq!(
                found.len(),
                usize::from(expected),
                "{policy} {class:?} {states:?}"
            );
        }
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
        fixture.take(of_slice(Event::Apply(slice("s", "b", &["10.0.0.1"]))));
        assert_eq!(fixture.observed.dirty.len(), 2);
        fixture.write();
        fixture.take(of_service(Event::Delete(service("b", "10.96.0.2"))));
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
        fixture.take(of_slice(Event::Apply(slice("1", "a", &["10.0.0.1"]))));
        fixture.take(of_service(Event::Apply(service("a", "10.96.0.1"))));
        assert!(fixture.observed.is_settled());
        fixture.take(of_slice(Event::Delete(slice("2", "a", &[]))));
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
        fixture.take(of_service(Event::Delete(service("a", "10.96.0.1"))));
        let writes = fixture.write();
        let positions = |wanted: fn(&ServiceWrite) -> bool| writes.iter().position(wanted);
        let deleted = positions(|write| matches!(write, ServiceWrite::DeleteService { .. }));
        let put = positions(|write| matches!(write, ServiceWrite::PutService { .. }));
        assert!(deleted.is_some() && deleted < put, "{writes:?}");
    }
}
