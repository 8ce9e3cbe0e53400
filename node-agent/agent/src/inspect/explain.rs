//! A Service from end to end, in words: what happens to a packet for it, and why.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt as _;
use windlass_proto::agent::v1::{BackendEntry, ServiceEntry};

/// `entries`: what the kernel holds for this Service on the node `node`.
pub(super) fn explain(
    service: &Service,
    slices: &[EndpointSlice],
    entries: &[ServiceEntry],
    node: &str,
) -> Vec<String> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let spec = service.spec.clone().unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let mut lines = vec![format!(
        "Service {namespace}/{name}, {kind}, seen from node {node}."
    )];
    if kind == "ExternalName" {
        let alias = spec.external_name.as_deref().unwrap_or_default();
        lines.push(format!(
            "It is a name for {alias:?} and nothing else: cluster DNS answers with that, and no packet meets it."
        ));
        return lines;
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        lines.push("It is headless: cluster DNS answers with the endpoints' own addresses, and packets for those are not translated.".to_owned());
        lines.push(format!("Endpoints: {}.", Count::of(slices).words()));
        return lines;
    }
    let count = Count::of(slices);
    lines.push(format!("Endpoints: {}.", count.words()));
    if count.all() == 0 {
        lines.push(match &spec.selector {
            Some(selector) if !selector.is_empty() => {
                let labels: Vec<String> =
                    selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!(
                    "No pod of the namespace that has {} has an address.",
                    labels.join(",")
                )
            }
            _ => "It selects no pods, and nobody has written EndpointSlices for it.".to_owned(),
        });
    }
    for port in spec.ports.iter().flatten() {
        let of_port: Vec<&ServiceEntry> = entries
            .iter()
            .filter(|entry| entry.port_name == port.name.clone().unwrap_or_default())
            .collect();
        if of_port.is_empty() {
            lines.push(format!(
                "{}: the datapath does not hold it (yet); its log says why if that lasts.",
                shown(port)
            ));
        }
        for entry in of_port {
            lines.push(fate(entry, port, slices, &count, node));
        }
    }
    if let Some(seconds) = entries
        .iter()
        .map(|entry| entry.affinity_seconds)
        .find(|it| *it != 0)
    {
        lines.push(format!(
            "Session affinity: a client stays with its backend for {seconds} s after its last connection."
        ));
    }
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        lines.push("internalTrafficPolicy is Local: pods of this node are sent to endpoints of this node only.".to_owned());
    }
    if spec.external_traffic_policy.as_deref() == Some("Local") {
        lines.push("externalTrafficPolicy is Local: clients outside are sent to endpoints of this node only, and keep their addresses.".to_owned());
    }
    lines
}

/// What happens to a packet for an address or a port that no Service has. `of_services`: it is in a network of theirs.
pub(super) fn nobody(
    services: &[Service],
    address: IpAddr,
    port: u16,
    of_services: bool,
) -> String {
    let is_it = |ip: &String| ip.parse() == Ok(address);
    let has = |service: &&Service| {
        let spec = service.spec.as_ref();
        spec.is_some_and(|spec| spec.cluster_ips.iter().flatten().any(is_it))
    };
    let balances = |service: &&Service| {
        let status = service.status.as_ref();
        let ingress = status.and_then(|it| it.load_balancer.as_ref()?.ingress.as_ref());
        let mut balanced = ingress.into_iter().flatten();
        balanced
            .any(|it| it.ip_mode.as_deref() != Some("Proxy") && it.ip.as_ref().is_some_and(is_it))
    };
    let named = |service: &Service| {
        format!(
            "{}/{}, which has {}",
            service.namespace().unwrap_or_default(),
            service.name_any(),
            ports(service)
        )
    };
    if let Some(service) = services.iter().find(has) {
        return format!(
            "{address} is the cluster IP of the Service {} and not {port}: a packet for it is refused at once, by an error of connect(), a TCP reset or an ICMP message.",
            named(service)
        );
    }
    if let Some(service) = services.iter().find(balances) {
        return format!(
            "{address} is a balancer's address of the Service {} and not {port}: a packet for it that comes from outside is refused at once, unless the node itself has the address; one from a pod goes where the node routes it.",
            named(service)
        );
    }
    if of_services {
        return format!(
            "{address} is in a network of Services' addresses, and no Service that this node serves has it: a packet for it that would leave this node is dropped without an answer."
        );
    }
    format!(
        "No Service answers at {address} port {port} on this node: a packet for it goes where the node routes it, untranslated."
    )
}

/// The ports that a Service has.
fn ports(service: &Service) -> String {
    let spec = service.spec.iter();
    let all = spec.flat_map(|spec| spec.ports.iter().flatten());
    let numbers: Vec<String> = all
        .map(|port| {
            format!(
                "{}/{}",
                port.port,
                port.protocol.as_deref().unwrap_or("TCP")
            )
        })
        .collect();
    match numbers.as_slice() {
        [one] => format!("port {one}"),
        several => format!("ports {}", several.join(", ")),
    }
}

/// What becomes of a connection to one address and port.
fn fate(
    entry: &ServiceEntry,
    port: &ServicePort,
    slices: &[EndpointSlice],
    count: &Count,
    node: &str,
) -> String {
    let address = match entry.address.as_str() {
        "0.0.0.0" => "any IPv4 address of the node".to_owned(),
        "::" => "any IPv6 address of the node".to_owned(),
        address => address.to_owned(),
    };
    let who = if entry.outside { "from outside, " } else { "" };
    let what = format!(
        "{who}{address} port {}/{} ({})",
        entry.port,
        entry.protocol,
        shown(port)
    );
    let (active, draining): (Vec<&BackendEntry>, Vec<&BackendEntry>) = entry
        .backends
        .iter()
        .partition(|backend| backend.state == "active");
    let mut text = if active.is_empty() {
        let fate = if entry.drops_without_backend {
            "is dropped, since there are endpoints on other nodes only"
        } else {
            "is refused at once, by an error of connect(), a TCP reset or an ICMP message"
        };
        format!("{what}: a connection {fate}: {}", count.why_none())
    } else {
        let choice = match (active.len(), entry.maglev) {
            (1, _) => "goes to".to_owned(),
            (number, true) => format!(
                "goes to one of {number} by its addresses and ports, or at random from inside:"
            ),
            (number, false) => format!("goes to one of {number} at random:"),
        };
        let targets: Vec<String> = active.iter().map(|it| target(it, slices, node)).collect();
        format!("{what}: a connection {choice} {}", targets.join(", "))
    };
    if !draining.is_empty() {
        let targets: Vec<String> = draining.iter().map(|it| target(it, slices, node)).collect();
        text.push_str(&format!(
            "; {} keep what they have and get nothing new",
            targets.join(", ")
        ));
    }
    if entry.source_ranges {
        text.push_str("; only clients in loadBalancerSourceRanges, others are dropped");
    }
    text.push('.');
    text
}

/// A backend, and which pod it is.
fn target(backend: &BackendEntry, slices: &[EndpointSlice], node: &str) -> String {
    let found = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .find(|endpoint| endpoint.addresses.contains(&backend.address));
    let pod = found
        .and_then(|endpoint| endpoint.target_ref.as_ref())
        .and_then(|it| it.name.as_deref());
    let place = match found.and_then(|endpoint| endpoint.node_name.as_deref()) {
        Some(name) if name == node => ", on this node".to_owned(),
        Some(name) => format!(", on {name}"),
        None => String::new(),
    };
    let pod = pod
        .map(|pod| format!("pod {pod}"))
        .unwrap_or_else(|| "no pod".to_owned());
    format!("{}:{} ({pod}{place})", backend.address, backend.port)
}

fn shown(port: &ServicePort) -> String {
    match port.name.as_deref() {
        Some(name) if !name.is_empty() => format!("port {name}"),
        _ => format!("port {}", port.port),
    }
}

/// Endpoints by their conditions.
#[derive(Default)]
struct Count {
    ready: usize,
    terminating_serving: usize,
    terminating: usize,
    failing: usize,
}

impl Count {
    fn of(slices: &[EndpointSlice]) -> Self {
        let mut count = Self::default();
        for endpoint in slices.iter().flat_map(|slice| &slice.endpoints) {
            *count.place(endpoint) += 1;
        }
        count
    }

    fn place(&mut self, endpoint: &Endpoint) -> &mut usize {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // What is not said is true, but for termination.
        let ready = conditions.ready.unwrap_or(true);
        match (
            conditions.terminating.unwrap_or(false),
            conditions.serving.unwrap_or(ready),
        ) {
            (true, true) => &mut self.terminating_serving,
            (true, false) => &mut self.terminating,
            (false, _) if ready => &mut self.ready,
            (false, _) => &mut self.failing,
        }
    }

    fn all(&self) -> usize {
        self.ready + self.terminating_serving + self.terminating + self.failing
    }

    fn words(&self) -> String {
        if self.all() == 0 {
            return "none".to_owned();
        }
        let kinds = [
            (self.ready, "ready"),
            (self.terminating_serving, "terminating but serving"),
            (self.terminating, "terminating"),
            (self.failing, "failing readiness"),
        ];
        let some: Vec<String> = kinds
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, kind)| format!("{number} {kind}"))
            .collect();
        some.join(", ")
    }

    fn why_none(&self) -> String {
        match (self.all(), self.ready) {
            (0, _) => "no endpoint at all".to_owned(),
            (_, 0) => format!("no ready endpoint: {}", self.words()),
            _ => format!("no endpoint for these clients ({})", self.words()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        let object = json!({"metadata": {"namespace": "a", "name": "web"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        let object =
            json!({"addressType": "IPv4", "metadata": {"name": "s"}, "endpoints": endpoints});
        serde_json::from_value(object).unwrap()
    }

    fn entry(backends: &[(&str, &str)]) -> ServiceEntry {
        let backends = backends.iter().map(|(address, state)| BackendEntry {
            address: (*address).into(),
            port: 8_080,
            state: (*state).into(),
            id: 1,
        });
        ServiceEntry {
            address: "10.96.0.7".into(),
            port: 80,
            protocol: "TCP".into(),
            backends: backends.collect(),
            ..ServiceEntry::default()
        }
    }

    #[test]
    fn a_service_without_ready_endpoints_says_what_they_are_instead() {
        let web = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let slices = [slice(json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        ]))];
        let lines = explain(&web, &slices, &[entry(&[])], "n1").join("\n");
        assert!(
            lines.contains("no ready endpoint: 2 terminating, 1 failing readiness"),
            "{lines}"
        );
        assert!(lines.contains("refused at once"), "{lines}");
    }

    #[test]
    fn backends_are_named_by_their_pods_and_places() {
        let web = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let slices = [slice(json!([
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "targetRef": {"name": "web-1"}},
            {"addresses": ["10.0.1.1"], "nodeName": "n2", "targetRef": {"name": "web-2"}},
        ]))];
        let entry = entry(&[("10.0.0.1", "active"), ("10.0.1.1", "draining")]);
        let lines = explain(&web, &slices, &[entry], "n1").join("\n");
        assert!(
            lines.contains("10.0.0.1:8080 (pod web-1, on this node)"),
            "{lines}"
        );
        assert!(
            lines.contains("10.0.1.1:8080 (pod web-2, on n2) keep what they have"),
            "{lines}"
        );
    }

    #[test]
    fn a_selector_that_matches_nothing_is_named() {
        let web = service(json!({
            "clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}],
        }));
        let lines = explain(&web, &[], &[], "n1").join("\n");
        assert!(
            lines.contains("No pod of the namespace that has app=web"),
            "{lines}"
        );
        assert!(
            lines.contains("port http: the datapath does not hold it"),
            "{lines}"
        );
    }

    #[test]
    fn a_port_that_no_service_has_is_said_to_be_refused() {
        let mut web = service(json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
        }));
        web.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}))
                .ok();
        let said = |address: &str| {
            nobody(
                std::slice::from_ref(&web),
                address.parse().unwrap(),
                81,
                address.starts_with("10.96."),
            )
        };
        let of_cluster = said("10.96.0.7");
        assert!(
            of_cluster.contains("a/web, which has ports 80/TCP, 53/UDP and not 81"),
            "{of_cluster}"
        );
        assert!(of_cluster.contains("refused at once"), "{of_cluster}");
        assert!(said("203.0.113.1").contains("from outside is refused at once"));
        assert!(said("10.96.0.8").contains("is dropped without an answer"));
        assert!(said("198.51.100.1").contains("untranslated"));
    }

    #[test]
    fn what_has_no_address_of_its_own_says_so() {
        let headless = service(json!({"clusterIP": "None"}));
        assert!(explain(&headless, &[], &[], "n1")[1].contains("headless"));
        let alias = service(json!({"type": "ExternalName", "externalName": "example.org"}));
        assert!(explain(&alias, &[], &[], "n1")[1].contains("example.org"));
    }
}
