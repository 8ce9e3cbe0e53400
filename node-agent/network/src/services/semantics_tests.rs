//! Kubernetes' Service semantics in plain Rust, and random clusters against it: objects go
//! in by the watches, change, and what a client then meets in the kernel's tables must be
//! what the semantics say, for every client, address and port.
//!
//! The model works on the API's objects and knows nothing of scopes, ids or slots. Its rules
//! are those of kube-proxy: the traffic policies with their short cut for clients inside,
//! terminating endpoints, hints, source ranges, session affinity, and who is refused or met with silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_datapath::types::protocol::{TCP, UDP};

use super::{
    kernel_model::{Client, Dial, Kernel, Verdict},
    news::{self, ServiceNews, SliceNews},
    observed::{Change, Observed},
    tables::Tables,
};

const NODE: &str = "here";
const ZONE: &str = "z1";
const SERVICES: usize = 3;
/// Those of the node, of IPv4 and of IPv6.
const NODE_ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Who may dial balancers, if anybody may not.
const RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:5::/48"];

/// Who dials, and from which address of each family: a pod, the node, somebody in the ranges and somebody who is not.
const CLIENTS: [(Client, [&str; 2]); 4] = [
    (Client::Pod, ["10.244.9.9", "fd00:244::99"]),
    (Client::Host, NODE_ADDRESSES),
    (Client::Outside, ["198.51.100.7", "2001:db8:5::7"]),
    (Client::Outside, ["198.51.101.7", "2001:db8:6::7"]),
];

#[derive(Clone, Debug)]
struct ServiceModel {
    kind: usize,
    internal_local: bool,
    external_local: bool,
    balanced: bool,
    proxied: bool,
    /// Of each family.
    ranges: [bool; 2],
    external_ip: bool,
    dual: bool,
    /// 0: none.
    affinity_seconds: u32,
    other_proxy: bool,
    headless: bool,
    ports: usize,
}

#[derive(Clone, Debug)]
struct EndpointModel {
    number: u8,
    here: bool,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    zone: Option<bool>,
    node: Option<bool>,
}

/// One port: everything has a number that its addresses and ports are made of.
const PORTS: [(&str, u16, u8, &str, u16); 3] = [
    ("http", 80, TCP, "TCP", 8080),
    ("dns", 53, UDP, "UDP", 5353),
    ("dns-tcp", 53, TCP, "TCP", 5354),
];

impl ServiceModel {
    fn families(&self) -> &'static [bool] {
        if self.dual { &[true, false] } else { &[true] }
    }

    fn kind(&self) -> &'static str {
        ["ClusterIP", "NodePort", "LoadBalancer"][self.kind]
    }

    fn cluster_ip(number: usize, v4: bool) -> IpAddr {
        match v4 {
            true => [10, 96, 0, number as u8].into(),
            false => format!("fd00:96::{number}").parse().unwrap(),
        }
    }

    fn balancer_ip(number: usize, v4: bool) -> IpAddr {
        match v4 {
            true => [203, 0, 113, number as u8].into(),
            false => format!("2001:db8:1::{number}").parse().unwrap(),
        }
    }

    fn external_address(number: usize, v4: bool) -> IpAddr {
        match v4 {
            true => [203, 0, 113, 100 + number as u8].into(),
            false => format!("2001:db8:2::{number}").parse().unwrap(),
        }
    }

    fn node_port(number: usize, port: usize) -> u16 {
        30_000 + (number * 10 + port) as u16
    }

    fn object(&self, number: usize) -> Service {
        let texts = |of: fn(usize, bool) -> IpAddr| -> Vec<String> {
            let families = self.families().iter();
            families.map(|v4| of(number, *v4).to_string()).collect()
        };
        let ips = texts(Self::cluster_ip);
        let ports: Vec<Value> = PORTS[..self.ports]
            .iter()
            .enumerate()
            .map(|(index, (name, port, _, protocol, _))| {
                let mut value = json!({"name": name, "port": port, "protocol": protocol});
                if self.kind > 0 {
                    value["nodePort"] = Self::node_port(number, index).into();
                }
                value
            })
            .collect();
        let policy = |local| if local { "Local" } else { "Cluster" };
        let mut spec = json!({
            "type": self.kind(), "clusterIP": ips[0], "clusterIPs": ips, "ports": ports,
            "internalTrafficPolicy": policy(self.internal_local),
        });
        if self.headless {
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = json!(["None"]);
        }
        if self.kind > 0 || self.external_ip {
            spec["externalTrafficPolicy"] = policy(self.external_local).into();
        }
        if self.external_ip {
            spec["externalIPs"] = json!(texts(Self::external_address));
        }
        let ranges = RANGES.iter().zip(self.ranges).filter(|(_, wanted)| *wanted);
        spec["loadBalancerSourceRanges"] = ranges.map(|(range, _)| *range).collect();
        if self.affinity_seconds != 0 {
            spec["sessionAffinity"] = "ClientIP".into();
            let timeout = json!({"timeoutSeconds": self.affinity_seconds});
            spec["sessionAffinityConfig"] = json!({"clientIP": timeout});
        }
        let mut ingress = Vec::new();
        if self.balanced && self.kind == 2 {
            let mode = if self.proxied { "Proxy" } else { "VIP" };
            let ips = texts(Self::balancer_ip).into_iter();
            ingress.extend(ips.map(|ip| json!({"ip": ip, "ipMode": mode})));
        }
        let mut labels = json!({});
        if self.other_proxy {
            labels["service.kubernetes.io/service-proxy-name"] = "other".into();
        }
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": format!("s{number}"), "labels": labels},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .unwrap()
    }
}

impl EndpointModel {
    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    fn is_fallback(&self) -> bool {
        self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }

    fn object(&self, v4: bool) -> Value {
        let address = self.address(v4).to_string();
        let hint = |ours, other, hint: Option<bool>| {
            hint.map(|here| json!([{"name": if here { ours } else { other }}]))
        };
        json!({
            "addresses": [address], "nodeName": if self.here { NODE } else { "there" },
            "conditions": {"ready": self.ready, "serving": self.serving, "terminating": self.terminating},
            "hints": {"forZones": hint(ZONE, "z2", self.zone), "forNodes": hint(NODE, "there", self.node)},
        })
    }

    fn address(&self, v4: bool) -> IpAddr {
        endpoint_address(self.number, v4)
    }
}

fn endpoint_address(number: u8, v4: bool) -> IpAddr {
    match v4 {
        true => [10, 244, 0, number].into(),
        false => format!("fd00:244::{number}").parse().unwrap(),
    }
}

/// What the semantics say of one port of one service to one family's clients.
fn endpoints(all: &[EndpointModel], local: bool) -> Vec<&EndpointModel> {
    let ours: Vec<_> = all.iter().filter(|it| !local || it.here).collect();
    let ready: Vec<_> = ours.iter().copied().filter(|it| it.is_ready()).collect();
    if ready.is_empty() {
        let fallback = ours
            .into_iter()
            .filter(|it| !it.is_ready() && it.is_fallback());
        return fallback.collect();
    }
    if local {
        return ready;
    }
    for hint in [|it: &EndpointModel| it.node, |it: &EndpointModel| it.zone] {
        let hinted = ready.iter().all(|it| hint(it).is_some());
        let ours: Vec<_> = ready
            .iter()
            .copied()
            .filter(|it| hint(it) == Some(true))
            .collect();
        if hinted && !ours.is_empty() {
            return ours;
        }
    }
    ready
}

fn verdict(all: &[EndpointModel], local: bool, v4: bool, target: u16) -> Verdict {
    let serving = endpoints(all, local);
    if serving.is_empty() {
        // Silence only where a client that comes by another node is served.
        return match local && !endpoints(all, false).is_empty() {
            true => Verdict::Dropped,
            false => Verdict::Refused,
        };
    }
    Verdict::Served(serving.iter().map(|it| (it.address(v4), target)).collect())
}

#[derive(Clone, Debug, Default)]
struct Cluster {
    services: [Option<ServiceModel>; SERVICES],
    endpoints: [Vec<EndpointModel>; SERVICES],
}

/// A port of the cluster's address that no Service has, and of the balancer's.
const OTHER_PORT: &str = "other port";
const OTHER_BALANCED: &str = "other port of the balancer";

/// One way to one port of one Service.
struct Way<'a> {
    service: Option<&'a ServiceModel>,
    number: usize,
    port: usize,
    v4: bool,
    what: &'static str,
    dial: Dial,
}

impl Cluster {
    /// Every address that anyone may dial.
    fn ways(&self) -> Vec<Way<'_>> {
        let mut ways = Vec::new();
        for number in 0..SERVICES {
            for (port, (_, dialled, protocol, _, _)) in PORTS.iter().enumerate() {
                let service = self.services[number]
                    .as_ref()
                    .filter(|service| !service.other_proxy && !service.headless);
                for (client, sources) in CLIENTS {
                    for (family, v4) in [true, false].into_iter().enumerate() {
                        let present = service.filter(|it| v4 || it.dual);
                        let service = present.filter(|it| port < it.ports);
                        let node_port = ServiceModel::node_port(number, port);
                        let node = NODE_ADDRESSES[family].parse().unwrap();
                        let cluster_ip = ServiceModel::cluster_ip(number, v4);
                        let balancer = ServiceModel::balancer_ip(number, v4);
                        let external = ServiceModel::external_address(number, v4);
                        let cluster = match service {
                            Some(_) => (service, "cluster IP", cluster_ip, *dialled, false),
                            None => (present, OTHER_PORT, cluster_ip, *dialled, false),
                        };
                        let balanced = match service {
                            Some(_) => (service, "balancer", balancer, *dialled, false),
                            None => (present, OTHER_BALANCED, balancer, *dialled, false),
                        };
                        for (service, what, address, dialled, is_node_address) in [
                            cluster,
                            (present, OTHER_PORT, cluster_ip, 9, false),
                            (service, "node port", node, node_port, true),
                            balanced,
                            (present, OTHER_BALANCED, balancer, 9, false),
                            (service, "external IP", external, *dialled, false),
                        ] {
                            ways.push(Way {
                                service,
                                number,
                                port,
                                v4,
                                what,
                                dial: Dial {
                                    client,
                                    source: sources[family].parse().unwrap(),
                                    address,
                                    is_node_address,
                                    port: dialled,
                                    protocol: *protocol,
                                },
                            });
                        }
                    }
                }
            }
        }
        ways
    }

    /// Everybody meets what they must.
    fn check(&self, kernel: &Kernel) {
        for way in self.ways() {
            let told = kernel.dial(&way.dial);
            assert_eq!(told, self.expected(&way), "{} {:?}", way.what, way.dial);
        }
    }

    fn expected(&self, way: &Way<'_>) -> Verdict {
        let Some(service) = way.service.filter(|it| it.has(way.what)) else {
            return Verdict::NotOurs;
        };
        match (way.what, way.dial.client) {
            (OTHER_PORT, _) | (OTHER_BALANCED, Client::Outside) => return Verdict::Refused,
            (OTHER_BALANCED, _) => return Verdict::NotOurs,
            _ => {}
        }
        let family = usize::from(!way.v4);
        let in_range = way.dial.source == CLIENTS[2].1[family].parse::<IpAddr>().unwrap();
        if way.what == "balancer" && service.ranges[family] && !in_range {
            return Verdict::Dropped;
        }
        let all = &self.endpoints[way.number];
        verdict(all, service.is_local(way), way.v4, PORTS[way.port].4)
    }

    /// Everybody connects; who has been served before goes to the same endpoint for the time of the affinity.
    fn connect(&self, kernel: &mut Kernel, memory: &mut Memory, random: u32, now: u32) {
        for (way, random) in self.ways().iter().zip(random..) {
            let told = kernel.connect(&way.dial, random, now);
            let Verdict::Served(serving) = self.expected(way) else {
                assert_eq!(told, None, "{} {:?}", way.what, way.dial);
                continue;
            };
            let told = told.unwrap_or_else(|| panic!("{} {:?}", way.what, way.dial));
            assert!(
                serving.contains(&told),
                "{} {:?}: {told:?}",
                way.what,
                way.dial
            );
            let service = way.service.expect("it serves");
            let key = (way.dial.source, way.number, way.port, service.is_local(way));
            let held = memory.get(&key).filter(|(held, since)| {
                now - since <= service.affinity_seconds && serving.contains(held)
            });
            if let Some((held, _)) = held.filter(|_| service.affinity_seconds != 0) {
                assert_eq!(told, *held, "{} {:?} at {now}", way.what, way.dial);
            }
            memory.insert(key, (told, now));
        }
    }
}

/// By client, Service, port and traffic policy: who served last, and when.
type Memory = BTreeMap<(IpAddr, usize, usize, bool), ((IpAddr, u16), u32)>;

impl ServiceModel {
    /// Whether the Service answers there.
    fn has(&self, what: &str) -> bool {
        match what {
            "cluster IP" | OTHER_PORT => true,
            "node port" => self.kind > 0,
            "balancer" | OTHER_BALANCED => self.kind == 2 && self.balanced && !self.proxied,
            _ => self.external_ip,
        }
    }

    /// Whether this client gets this node's endpoints only.
    fn is_local(&self, way: &Way<'_>) -> bool {
        match way.what {
            "cluster IP" => self.internal_local,
            _ => self.external_local && way.dial.client == Client::Outside,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Service(usize, Option<ServiceModel>),
    Endpoints(usize, Vec<EndpointModel>),
    /// The agent dies, and starts again from what the kernel holds.
    Restart,
    /// So many seconds pass.
    Pass(u32),
}

fn any_service() -> impl Strategy<Value = ServiceModel> {
    let flags = prop::array::uniform8(any::<bool>());
    let rare = prop::array::uniform2(prop::bool::weighted(0.05));
    let ranges = any::<[bool; 2]>();
    let affinity = prop_oneof![Just(0), Just(30), Just(10_800)];
    let rest = (rare, ranges, affinity);
    (0usize..3, flags, rest, 1usize..=3).prop_map(|(kind, flags, rest, ports)| {
        let (rare, ranges, affinity_seconds) = rest;
        let [
            internal_local,
            external_local,
            balanced,
            proxied,
            ranged,
            external_ip,
            dual,
            calm,
        ] = flags;
        ServiceModel {
            kind,
            internal_local: internal_local && calm,
            external_local,
            balanced,
            proxied: proxied && !calm,
            ranges: ranges.map(|of_family| of_family && ranged),
            external_ip,
            dual,
            affinity_seconds,
            other_proxy: rare[0],
            headless: rare[1] && kind == 0,
            ports,
        }
    })
}

fn any_endpoints() -> impl Strategy<Value = Vec<EndpointModel>> {
    let maybe = || prop::option::of(any::<bool>());
    let endpoint = (any::<bool>(), maybe(), maybe(), maybe(), maybe(), maybe()).prop_map(
        |(here, ready, serving, terminating, zone, node)| EndpointModel {
            number: 0,
            here,
            ready,
            serving,
            terminating,
            zone,
            node,
        },
    );
    // Hints are of use only when all have them: sometimes they do.
    let hints = (any::<bool>(), any::<bool>());
    (prop::collection::vec(endpoint, 0..5), hints).prop_map(|(mut endpoints, (zones, nodes))| {
        for (number, endpoint) in (1..).zip(&mut endpoints) {
            endpoint.number = number;
            if zones {
                endpoint.zone.get_or_insert(false);
            }
            if nodes {
                endpoint.node.get_or_insert(false);
            }
        }
        endpoints
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SERVICES, prop::option::weighted(0.8, any_service()))
            .prop_map(|(number, service)| Step::Service(number, service)),
        6 => (0..SERVICES, any_endpoints())
            .prop_map(|(number, endpoints)| Step::Endpoints(number, endpoints)),
        1 => Just(Step::Restart),
        2 => (1u32..60).prop_map(Step::Pass),
    ]
}

fn slice(number: usize, endpoints: &[EndpointModel], v4: bool) -> EndpointSlice {
    let ports: Vec<Value> = PORTS
        .iter()
        .map(|(name, _, _, protocol, target)| {
            json!({"name": name, "protocol": protocol, "port": target})
        })
        .collect();
    let endpoints: Vec<Value> = endpoints.iter().map(|it| it.object(v4)).collect();
    let family = if v4 { "IPv4" } else { "IPv6" };
    serde_json::from_value(json!({
        "addressType": family,
        "metadata": {
            "namespace": "d", "name": format!("s{number}-{family}"),
            "labels": {"kubernetes.io/service-name": format!("s{number}")},
        },
        "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

fn of_service(event: Event<Service>) -> Change {
    Change::Service(news::read(event, ServiceNews::of))
}

fn of_slice(event: Event<EndpointSlice>) -> Change {
    Change::Slice(news::read(event, |slice| SliceNews::of(slice, NODE)))
}

/// An agent as it starts: it lists, then it watches.
fn start(cluster: &Cluster) -> Observed {
    let mut observed = Observed::new();
    observed.set_zone(Some(ZONE));
    observed.take(of_service(Event::Init));
    for (number, service) in cluster.services.iter().enumerate() {
        if let Some(service) = service {
            let object = service.object(number);
            observed.take(of_service(Event::InitApply(object)));
        }
    }
    observed.take(of_service(Event::InitDone));
    observed.take(of_slice(Event::Init));
    for (number, endpoints) in cluster.endpoints.iter().enumerate() {
        for v4 in [true, false] {
            let object = slice(number, endpoints, v4);
            observed.take(of_slice(Event::InitApply(object)));
        }
    }
    observed.take(of_slice(Event::InitDone));
    observed
}

proptest! {
    #[test]
    fn clients_meet_what_kubernetes_semantics_say(
        steps in prop::collection::vec(any_step(), 1..20),
        random: u16,
    ) {
        let (mut memory, mut now) = (Memory::new(), 100_000);
        let mut cluster = Cluster::default();
        let mut kernel = Kernel::default();
        let mut tables = Tables::recover(&kernel.snapshot());
        let mut observed = start(&cluster);
        for step in steps {
            let mut restarted = false;
            match step {
                Step::Service(number, new) => {
                    let old = cluster.services[number].take();
                    let event = match (&new, old) {
                        (Some(new), _) => Event::Apply(new.object(number)),
                        (None, Some(old)) => Event::Delete(old.object(number)),
                        (None, None) => continue,
                    };
                    cluster.services[number] = new;
                    observed.take(of_service(event));
                    // A set of endpoints that nobody can dial for a while is another one then.
                    memory.retain(|key, _| key.1 != number);
                }
                Step::Endpoints(number, new) => {
                    for v4 in [true, false] {
                        let event = Event::Apply(slice(number, &new, v4));
                        observed.take(of_slice(event));
                    }
                    // Who is listed again later is somebody else.
                    let listed: BTreeSet<_> = new.iter().map(|it| it.number).collect();
                    let is_listed = |address: IpAddr| {
                        let is = |number| [true, false].map(|v4| endpoint_address(number, v4)).contains(&address);
                        listed.iter().any(|number| is(*number))
                    };
                    memory.retain(|key, ((address, _), _)| key.1 != number || is_listed(*address));
                    cluster.endpoints[number] = new;
                }
                Step::Pass(seconds) => now += seconds,
                Step::Restart => {
                    kernel.cursor = tables.cursor();
                    tables = Tables::recover(&kernel.snapshot());
                    observed = start(&cluster);
                    observed.mark_all_dirty();
                    restarted = true;
                }
            }
            // A few at a time, as a start with many Services does it.
            let mut writes = Vec::new();
            while !observed.is_settled() {
                writes.extend(observed.plan(&mut tables, 2));
            }
            if restarted {
                writes.extend(tables.plan_removal_of_unclaimed());
            }
            for write in &writes {
                kernel.apply(write);
                kernel.check();
            }
            cluster.check(&kernel);
            cluster.connect(&mut kernel, &mut memory, random.into(), now);
            let sets: BTreeSet<u32> = kernel.services.values().map(|value| value.id).collect();
            prop_assert!(kernel.members.keys().all(|key| sets.contains(&key.service)));
            prop_assert!(kernel.ranges.iter().all(|(key, _)| sets.contains(&key.service)));
        }
    }
}
