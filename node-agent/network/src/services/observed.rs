//! What the watches have told, and which Services have to be looked at again for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::watcher::Event;
use windlass_datapath::{ServiceWrite, types::ServiceKey};

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
    // In a box: a table that grows is half empty.
    services: Source<ServiceName, Box<ServiceSpec>>,
    slices: Source<SliceName, (ServiceName, SliceSpec)>,
    /// Slices by Service.
    slices_of: HashMap<ServiceName, Vec<SliceName>>,
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
                    self.services.list(news.name, Box::new(spec));
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
                    (name.clone(), self.services.apply(name, Box::new(spec)))
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
                    own(&mut self.slices_of, &service, news.name);
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
        let lost = |slices: &[SliceName]| slices.iter().any(|it| changed.contains(it));
        let old = self.slices_of.iter().filter(|(_, slices)| lost(slices));
        self.dirty.extend(old.map(|(service, _)| service.clone()));
        self.slices_of.clear();
        for (key, (service, _)) in self.slices.current() {
            if changed.contains(key) {
                self.dirty.insert(service.clone());
            }
            own(&mut self.slices_of, service, key.clone());
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
            slices.retain(|it| it != key);
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
                // Services that share a balancer's address share the refusal of its other ports.
                if !contested.iter().all(ServiceKey::is_other_ports) {
                    tracing::warn!(
                        namespace = &*name.namespace,
                        name = &*name.name,
                        frontends = contested.len(),
                        "addresses belong to another service already"
                    );
                }
                if !contested.is_empty() {
                    self.contested.insert(name.clone());
                }
            }
        }
    }
}

/// Most Services have one slice: room is made for no more than there are.
fn own(
    slices_of: &mut HashMap<ServiceName, Vec<SliceName>>,
    owner: &ServiceName,
    slice: SliceName,
) {
    match slices_of.get_mut(owner) {
        Some(slices) if slices.contains(&slice) => {}
        Some(slices) => slices.push(slice),
        None => drop(slices_of.insert(owner.clone(), vec![slice])),
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
mod tests;
