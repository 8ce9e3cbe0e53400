//! The kernel's tables in the words of the contract.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use windlass_datapath::ServiceSnapshot;
use windlass_datapath::types::{
    Connection, ServiceKey, Tuple, connection, member, protocol, scope, service_flags,
};
use windlass_proto::agent::v1::{BackendEntry, ConnectionEntry, ServiceEntry};

/// Who asks for an address and port: namespace, name, name of the port.
pub(super) struct Owners(HashMap<(IpAddr, u16, &'static str), (String, String, String)>);

impl Owners {
    pub(super) fn of(services: &[Service]) -> Self {
        let mut owners = HashMap::new();
        for service in services {
            let Some(spec) = &service.spec else { continue };
            let status = service
                .status
                .as_ref()
                .and_then(|it| it.load_balancer.as_ref());
            let balancers = status
                .into_iter()
                .flat_map(|it| it.ingress.iter().flatten());
            let own = spec.cluster_ips.iter().chain(&spec.external_ips).flatten();
            let addresses: Vec<IpAddr> = own
                .chain(balancers.filter_map(|ingress| ingress.ip.as_ref()))
                .filter_map(|ip| ip.parse().ok())
                .collect();
            for port in spec.ports.iter().flatten() {
                let number = |port: i32| u16::try_from(port).unwrap_or_default();
                let protocol = match port.protocol.as_deref() {
                    Some("UDP") => "UDP",
                    Some("SCTP") => "SCTP",
                    _ => "TCP",
                };
                let owner = || {
                    (
                        service.namespace().unwrap_or_default(),
                        service.name_any(),
                        port.name.clone().unwrap_or_default(),
                    )
                };
                for address in &addresses {
                    owners.insert((*address, number(port.port), protocol), owner());
                }
                if let Some(node_port) = port.node_port.filter(|port| *port != 0) {
                    for any in ["0.0.0.0", "::"].iter().filter_map(|it| it.parse().ok()) {
                        owners.insert((any, number(node_port), protocol), owner());
                    }
                }
            }
        }
        Self(owners)
    }
}

pub(super) fn entries(snapshot: &ServiceSnapshot, owners: &Owners) -> Vec<ServiceEntry> {
    let backends: HashMap<u32, _> = snapshot.backends.iter().copied().collect();
    let mut members: HashMap<u32, Vec<BackendEntry>> = HashMap::new();
    for (key, state) in &snapshot.members {
        let Some(backend) = backends.get(&key.backend) else {
            continue;
        };
        members.entry(key.service).or_default().push(BackendEntry {
            address: backend.addr.to_ip().to_string(),
            port: u32::from(u16::from_be(backend.port)),
            state: if *state == member::ACTIVE {
                "active"
            } else {
                "draining"
            }
            .to_owned(),
            id: key.backend,
        });
    }
    let mut sorted: BTreeMap<ServiceKey, ServiceEntry> = BTreeMap::new();
    let dialled = snapshot.services.iter();
    for (key, value) in dialled.filter(|(key, _)| !key.is_other_ports()) {
        let (address, port) = (key.addr.to_ip(), u16::from_be(key.port));
        let protocol = protocol_name(key.protocol);
        let (namespace, name, port_name) = owners
            .0
            .get(&(address, port, protocol))
            .cloned()
            .unwrap_or_default();
        let mut of_service = members.get(&value.id).cloned().unwrap_or_default();
        of_service
            .sort_by(|a, b| (&a.state, &a.address, a.port).cmp(&(&b.state, &b.address, b.port)));
        let has = |flag| value.flags & flag != 0;
        let entry = ServiceEntry {
            address: address.to_string(),
            port: u32::from(port),
            protocol: protocol.to_owned(),
            namespace,
            name,
            port_name,
            id: value.id,
            outside: key.scope == scope::OUTSIDE,
            affinity_seconds: value.affinity_seconds,
            backends: of_service,
            source_ranges: has(service_flags::SOURCE_RANGES),
            drops_without_backend: has(service_flags::DROP_EMPTY),
            maglev: value.maglev != 0,
        };
        sorted.insert(*key, entry);
    }
    sorted.into_values().collect()
}

/// Whether this entry is what a packet for the address meets; NodePorts stand under the
/// unspecified address.
pub(super) fn answers(entry: &ServiceEntry, address: IpAddr, port: u16) -> bool {
    let Ok(held) = entry.address.parse::<IpAddr>() else {
        return false;
    };
    let any = held.is_unspecified() && held.is_ipv4() == address.is_ipv4();
    (held == address || any) && entry.port == u32::from(port)
}

/// The opener's direction of each.
pub(super) fn connections(held: &[(Tuple, Connection)]) -> Vec<ConnectionEntry> {
    let latest = held
        .iter()
        .map(|(_, entry)| entry.last_seen)
        .max()
        .unwrap_or_default();
    held.iter()
        .filter(|(_, entry)| entry.flags & connection::ORIGINAL != 0)
        .map(|(tuple, entry)| {
            let port = |port| u32::from(u16::from_be(port));
            ConnectionEntry {
                protocol: protocol_name(tuple.protocol).to_owned(),
                source: tuple.src.to_ip().to_string(),
                source_port: port(tuple.sport),
                destination: tuple.dst.to_ip().to_string(),
                destination_port: port(tuple.dport),
                to_source: entry.to.src.to_ip().to_string(),
                to_source_port: port(entry.to.sport),
                to_destination: entry.to.dst.to_ip().to_string(),
                to_destination_port: port(entry.to.dport),
                state: state(tuple.protocol, entry.flags).to_owned(),
                service: entry.service,
                idle_seconds: latest.saturating_sub(entry.last_seen),
            }
        })
        .collect()
}

fn state(protocol: u8, flags: u32) -> &'static str {
    let has = |flag| flags & flag != 0;
    match protocol {
        protocol::TCP if connection::is_closed(flags) => "closed",
        protocol::TCP if has(connection::FINS) => "closing",
        protocol::TCP if has(connection::CONFIRMED) => "established",
        protocol::TCP => "opening",
        _ if has(connection::REPLIED) => "answered",
        _ => "unanswered",
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "ICMP",
    }
}
