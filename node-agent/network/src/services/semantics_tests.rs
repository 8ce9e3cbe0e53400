//! Kubernetes' Service semantics in plain Rust, and random clusters against it: objects go
//! in by the watches, change, and what a client then meets in the kernel's tables must be
//! what the semantics say, for every client, address and port.
//!
//! The model works on the API's objects and knows nothing of scopes, ids or slots. Its rules
//! are those of kube-proxy: the traffic policies with their short cut for clients inside,
//! terminating endpoints, hints, source ranges, and who is refused or met with silence.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_datapath::types::protocol::{TCP, UDP};

use super::{
    kernel_model::{Client, Kernel, Verdict},
    news::{self, ServiceNews, SliceNews},
    observed::{Change, Observed},
    tables::Tables,
};

const NODE: &str = "here";
const ZONE: &str = "z1";
const SERVICES: usize = 3;
const NODE_ADDRESS: [u8; 4] = [192, 0, 2, 1];

#[derive(Clone, Debug)]
struct ServiceModel {
    kind: usize,
    internal_local: bool,
    external_local: bool,
    balanced: bool,
    proxied: bool,
    ranges: bool,
    external_ip: bool,
    dual: bool,
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
    fn cluster_ips(&self, number: usize) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = vec![[10, 96, 0, number as u8].into()];
        if self.dual {
            ips.push(format!("fd00:96::{number}").parse().unwrap());
        }
        ips
    }

    fn kind(&self) -> &'static str {
        ["ClusterIP", "NodePort", "LoadBalancer"][self.kind]
    }

    fn balancer_ip(number: usize) -> IpAddr {
        [203, 0, 113, number as u8].into()
    }

    fn external_address(number: usize) -> IpAddr {
        [203, 0, 113, 100 + number as u8].into()
    }

    fn node_port(number: usize, port: usize) -> u16 {
        30_000 + (number * 10 + port) as u16
    }

    fn object(&self, number: usize) -> Service {
        let ips: Vec<String> = self
            .cluster_ips(number)
            .iter()
            .map(ToString::to_string)
            .collect();
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
            spec["externalIPs"] = json!([Self::external_address(number).to_string()]);
        }
        if self.ranges {
            spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
        }
        let mut ingress = Vec::new();
        if self.balanced && self.kind == 2 {
            let mode = if self.proxied { "Proxy" } else { "VIP" };
            ingress.push(json!({"ip": Self::balancer_ip(number).to_string(), "ipMode": mode}));
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
        match v4 {
            true => [10, 244, 0, self.number].into(),
            false => format!("fd00:244::{}", self.number).parse().unwrap(),
        }
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

impl Cluster {
    /// Every address that anyone may dial, with what must happen.
    fn check(&self, kernel: &Kernel) {
        let clients: [(Client, IpAddr); 4] = [
            (Client::Pod, [10, 244, 9, 9].into()),
            (Client::Host, NODE_ADDRESS.into()),
            (Client::Outside, [198, 51, 100, 7].into()),
            (Client::Outside, [198, 51, 101, 7].into()),
        ];
        for number in 0..SERVICES {
            let all = &self.endpoints[number];
            for (index, (name, port, protocol, _, target)) in PORTS.iter().enumerate() {
                let service = self.services[number].as_ref().filter(|service| {
                    index < service.ports && !service.other_proxy && !service.headless
                });
                for (client, source) in clients {
                    let outside = client == Client::Outside;
                    let ask = |address: IpAddr, node: bool, port: u16| {
                        kernel.dial(client, source, address, node, port, *protocol)
                    };
                    let say =
                        |what: &str| format!("s{number} {name} {what} by {client:?} {source}");
                    // ClusterIP.
                    for v4 in [true, false] {
                        let address: IpAddr = match v4 {
                            true => [10, 96, 0, number as u8].into(),
                            false => format!("fd00:96::{number}").parse().unwrap(),
                        };
                        let expected = match service.filter(|service| v4 || service.dual) {
                            Some(service) => verdict(all, service.internal_local, v4, *target),
                            None => Verdict::NotOurs,
                        };
                        assert_eq!(
                            ask(address, false, *port),
                            expected,
                            "{}",
                            say("cluster IP")
                        );
                    }
                    let external = |service: &ServiceModel, v4| {
                        verdict(all, service.external_local && outside, v4, *target)
                    };
                    // NodePort.
                    let node_port = ServiceModel::node_port(number, index);
                    for (address, v4) in [
                        (IpAddr::from(NODE_ADDRESS), true),
                        ("2001:db8::1".parse().unwrap(), false),
                    ] {
                        let serves = service.filter(|it| it.kind > 0 && (v4 || it.dual));
                        let expected = serves.map_or(Verdict::NotOurs, |it| external(it, v4));
                        assert_eq!(
                            ask(address, true, node_port),
                            expected,
                            "{}",
                            say("node port")
                        );
                    }
                    // The balancer's address, and an external one.
                    let serves = service.filter(|it| it.kind == 2 && it.balanced && !it.proxied);
                    let in_range = source.to_string().starts_with("198.51.100.");
                    let expected = match serves {
                        None => Verdict::NotOurs,
                        Some(service) if service.ranges && !in_range => Verdict::Dropped,
                        Some(service) => external(service, true),
                    };
                    let told = ask(ServiceModel::balancer_ip(number), false, *port);
                    assert_eq!(told, expected, "{}", say("balancer"));
                    let serves = service.filter(|it| it.external_ip);
                    let expected = serves.map_or(Verdict::NotOurs, |it| external(it, true));
                    let told = ask(ServiceModel::external_address(number), false, *port);
                    assert_eq!(told, expected, "{}", say("external IP"));
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Service(usize, Option<ServiceModel>),
    Endpoints(usize, Vec<EndpointModel>),
    /// The agent dies, and starts again from what the kernel holds.
    Restart,
}

fn any_service() -> impl Strategy<Value = ServiceModel> {
    let flags = prop::array::uniform8(any::<bool>());
    let rare = prop::array::uniform2(prop::bool::weighted(0.05));
    (0usize..3, flags, rare, 1usize..=3).prop_map(|(kind, flags, rare, ports)| {
        let [
            internal_local,
            external_local,
            balanced,
            proxied,
            ranges,
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
            ranges,
            external_ip,
            dual,
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
        steps in prop::collection::vec(any_step(), 1..20)
    ) {
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
                }
                Step::Endpoints(number, new) => {
                    for v4 in [true, false] {
                        let event = Event::Apply(slice(number, &new, v4));
                        observed.take(of_slice(event));
                    }
                    cluster.endpoints[number] = new;
                }
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
            let sets: BTreeSet<u32> = kernel.services.values().map(|value| value.id).collect();
            prop_assert!(kernel.members.keys().all(|key| sets.contains(&key.service)));
            prop_assert!(kernel.ranges.iter().all(|(key, _)| sets.contains(&key.service)));
        }
    }
}
