//! Validation of Services.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::endpoints::not_special as endpoint_ip;
use super::service::{
    HEADLESS, is_externally_accessible, needs_cluster_ip, needs_health_check_node_port,
};
use crate::tree::Tree;
use crate::validate::labels::labels;
use crate::validate::numbers::{port, port_or_name};
use crate::validate::{named, one_of, optional_name, optional_one_of, sentences};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const MAX_AFFINITY_SECONDS: i64 = 86400;
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
pub const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
pub const TOPOLOGY: &str = "service.kubernetes.io/topology-mode";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn is_headless(spec: &Value) -> bool {
    matches!(spec.list("clusterIPs"), [only] if only == HEADLESS)
}

pub fn validate(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = object.at("spec");
    let kind = spec.text("type");
    let headless = is_headless(spec);
    topology(object, errors);
    if spec.list("ports").is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&path.child("clusterIPs").index(0), HEADLESS, detail);
        }
        "ExternalName" => external_name(spec, &path, errors),
        _ => {}
    }
    ports(spec, &path, errors);
    labels(spec.at("selector"), &path.child("selector"), errors);
    session_affinity(spec, &path, errors);
    cluster_ips(spec, &path, errors);
    for (i, ip) in spec.list("externalIPs").iter().enumerate() {
        let path = path.child("externalIPs").index(i);
        endpoint_ip(ip.as_str().unwrap_or_default(), &path, errors);
    }
    one_of(spec, "type", TYPES, &path, errors);
    node_ports(spec, &path, errors);
    repeated_ports(spec, &path, errors);
    source_ranges(object, errors);
    load_balancer(spec, &path, errors);
    traffic_policies(spec, &path, errors);
}

/// The old and the new name of one annotation.
fn topology(object: &Value, errors: &mut Errors) {
    let get = |key: &str| object.at("metadata.annotations").get(key);
    if let (Some(hints), Some(mode)) = (get(HINTS), get(TOPOLOGY))
        && hints != mode
    {
        let path = Path::new("metadata").child("annotations").key(TOPOLOGY);
        let detail = format!("must match annotations[{HINTS}] when both are specified");
        errors.invalid(&path, mode.clone(), detail);
    }
}

fn external_name(spec: &Value, path: &Path, errors: &mut Errors) {
    if !spec.list("clusterIPs").is_empty() {
        errors.forbidden(
            &path.child("clusterIPs"),
            "may not be set for ExternalName services",
        );
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.has(field) {
            errors.forbidden(
                &path.child(field),
                "may not be set for ExternalName services",
            );
        }
    }
    let name = spec.text("externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    let path = path.child("externalName");
    if name.is_empty() {
        errors.required(&path, "");
    } else {
        sentences(names::is_dns1123_subdomain(name), &path, name, errors);
    }
}

fn ports(spec: &Value, path: &Path, errors: &mut Errors) {
    let list = spec.list("ports");
    let mut seen_names = HashSet::new();
    for (i, entry) in list.iter().enumerate() {
        let path = path.child("ports").index(i);
        if list.len() > 1 {
            named(entry, "name", names::is_dns1123_label, &path, errors);
        } else {
            optional_name(entry, "name", names::is_dns1123_label, &path, errors);
        }
        let name = entry.text("name");
        if !name.is_empty() && !seen_names.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        port(
            entry.int("port").unwrap_or_default(),
            &path.child("port"),
            errors,
        );
        one_of(entry, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        port_or_name(entry.at("targetPort"), &path.child("targetPort"), errors);
        if let Some(app_protocol) = entry.at("appProtocol").as_str() {
            let problems = names::is_qualified_name(app_protocol);
            sentences(problems, &path.child("appProtocol"), app_protocol, errors);
        }
    }
}

/// No two ports of a Service are the same, and no two take one port of the nodes.
fn repeated_ports(spec: &Value, path: &Path, errors: &mut Errors) {
    let list = spec.list("ports");
    let mut seen = HashSet::new();
    for (i, entry) in list.iter().enumerate() {
        let number = entry.int("nodePort").unwrap_or_default();
        if number != 0 && !seen.insert((entry.text("protocol"), number)) {
            errors.duplicate(&path.child("ports").index(i).child("nodePort"), number);
        }
    }
    let mut seen = HashSet::new();
    for (i, entry) in list.iter().enumerate() {
        if !seen.insert((entry.text("protocol"), entry.int("port"))) {
            let mut shown = serde_json::Map::new();
            for field in ["protocol", "port"] {
                shown.insert(field.to_owned(), entry.at(field).clone());
            }
            errors.duplicate(&path.child("ports").index(i), shown);
        }
    }
}

fn session_affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], path, errors);
    let config = path.child("sessionAffinityConfig");
    match spec.text("sessionAffinity") {
        "ClientIP" => {
            let path = config.child("clientIP").child("timeoutSeconds");
            match spec.int("sessionAffinityConfig.clientIP.timeoutSeconds") {
                None => errors.required(&path, "when session affinity type is ClientIP"),
                Some(seconds) if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) => {
                    let detail =
                        format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                    errors.invalid(&path, seconds, detail);
                }
                Some(_) => {}
            }
        }
        "None" if spec.has("sessionAffinityConfig") => {
            errors.forbidden(&config, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec.text("type") == "ExternalName" {
        return;
    }
    let list = spec.list("clusterIPs");
    let list_path = path.child("clusterIPs");
    let all = || spec.at("clusterIPs").clone();
    let single = spec.text("clusterIP");
    match list.first().and_then(Value::as_str) {
        None if !single.is_empty() => errors.required(&list_path, ""),
        Some(_) if single.is_empty() => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.invalid(&list_path, all(), detail);
        }
        Some(first) if first != single => {
            errors.invalid(&list_path, all(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    families(spec, path, errors);
    let before = errors.len();
    for (i, ip) in list.iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if i == 0 && text == HEADLESS {
            if list.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.invalid(&list_path, all(), detail);
            }
        } else {
            sentences(names::is_valid_ip(text), &list_path.index(i), text, errors);
        }
    }
    let has_faults = errors.len() > before;
    if list.len() > 2 {
        errors.invalid(&list_path, all(), "may only hold up to 2 values");
    }
    // What is no address cannot be of the right family.
    if has_faults {
        return;
    }
    let is_v6 = |ip: &Value| ip.as_str().is_some_and(|ip| ip.contains(':'));
    if list.len() > 1 && list.iter().all(|ip| is_v6(ip) == is_v6(&list[0])) {
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid(&list_path, all(), detail);
    }
    if is_headless(spec) {
        return;
    }
    for (i, (ip, family)) in list.iter().zip(spec.list("ipFamilies")).enumerate() {
        if matches!(
            (family.as_str(), is_v6(ip)),
            (Some("IPv4"), true) | (Some("IPv6"), false)
        ) {
            let family = family.as_str().unwrap_or_default();
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(&list_path.index(i), ip.clone(), detail);
        }
    }
}

fn families(spec: &Value, path: &Path, errors: &mut Errors) {
    let families = spec.list("ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(i);
        let text = family.as_str().unwrap_or_default();
        if !["IPv4", "IPv6"].contains(&text) {
            errors.not_supported(&path, text, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate(&path, text);
        }
    }
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    optional_one_of(spec, "ipFamilyPolicy", policies, path, errors);
}

fn node_ports(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, entry) in spec.list("ports").iter().enumerate() {
        let is_set = entry.int("nodePort").unwrap_or_default() != 0;
        if is_set && spec.text("type") == "ClusterIP" {
            let path = path.child("ports").index(i).child("nodePort");
            errors.forbidden(&path, "may not be used when `type` is 'ClusterIP'");
        }
    }
}

/// Who may use the load balancer, by field or by the annotation that it was before.
fn source_ranges(object: &Value, errors: &mut Errors) {
    let spec = object.at("spec");
    let is_balanced = spec.text("type") == "LoadBalancer";
    let ranges = spec.list("loadBalancerSourceRanges");
    let annotation = object.at("metadata.annotations").get(RANGES);
    let mut check = |text: &str, path: &Path| {
        let text = text.trim();
        if text.parse::<ipnet::IpNet>().is_err() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(path, text, detail);
        }
    };
    if !ranges.is_empty() {
        let path = Path::new("spec").child("LoadBalancerSourceRanges");
        for (i, range) in ranges.iter().enumerate() {
            check(range.as_str().unwrap_or_default(), &path.index(i));
        }
        if !is_balanced {
            errors.forbidden(&path, ONLY_BALANCED);
        }
    } else if let Some(text) = annotation.and_then(Value::as_str) {
        let path = Path::new("metadata").child("annotations").key(RANGES);
        for range in text.split(',').filter(|_| !text.trim().is_empty()) {
            check(range, &path);
        }
        if !is_balanced {
            errors.forbidden(&path, ONLY_BALANCED);
        }
    }
}

fn load_balancer(spec: &Value, path: &Path, errors: &mut Errors) {
    let is_balanced = spec.text("type") == "LoadBalancer";
    let allocate = "allocateLoadBalancerNodePorts";
    if spec.has(allocate) && !is_balanced {
        errors.forbidden(&path.child(allocate), ONLY_BALANCED);
    }
    let path = path.child("loadBalancerClass");
    match spec.at("loadBalancerClass").as_str() {
        Some(class) if is_balanced => {
            sentences(names::is_qualified_name(class), &path, class, errors);
        }
        Some(_) => errors.forbidden(&path, ONLY_BALANCED),
        None => {}
    }
}

fn traffic_policies(spec: &Value, path: &Path, errors: &mut Errors) {
    let policies = &["Cluster", "Local"];
    let policy = spec.text("externalTrafficPolicy");
    if !policy.is_empty() {
        if is_externally_accessible(spec) {
            one_of(spec, "externalTrafficPolicy", policies, path, errors);
        } else {
            let detail = "may only be set for externally-accessible services";
            errors.invalid(&path.child("externalTrafficPolicy"), policy, detail);
        }
    } else if is_externally_accessible(spec) {
        errors.required(&path.child("externalTrafficPolicy"), "");
    }
    if needs_cluster_ip(spec) || spec.has("internalTrafficPolicy") {
        one_of(spec, "internalTrafficPolicy", policies, path, errors);
    }
    let number = spec.int("healthCheckNodePort").unwrap_or_default();
    if number != 0 {
        let path = path.child("healthCheckNodePort");
        if needs_health_check_node_port(spec) {
            port(number, &path, errors);
        } else {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(&path, number, detail);
        }
    }
    let distributions = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    optional_one_of(spec, "trafficDistribution", distributions, path, errors);
}

pub fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (new, old) = (new.at("spec"), old.at("spec"));
    let is_named = |spec: &Value| spec.text("type") == "ExternalName";
    if !is_named(new) && !is_named(old) {
        kept_addresses(new, old, &path, errors);
        kept_families(new, old, &path, errors);
    }
    if new.text("type") == "LoadBalancer"
        && old.text("type") == "LoadBalancer"
        && new.at("loadBalancerClass") != old.at("loadBalancerClass")
    {
        let class = new.at("loadBalancerClass").clone();
        errors.invalid(&path.child("loadBalancerClass"), class, ONCE);
    }
    if needs_health_check_node_port(new)
        && needs_health_check_node_port(old)
        && new.int("healthCheckNodePort") != old.int("healthCheckNodePort")
    {
        errors.forbidden(&path.child("healthCheckNodePort"), "field is immutable");
    }
}

const ONCE: &str = "may not change once set";

/// The first address stays; a second one may come, and go with the wish for it.
fn kept_addresses(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let list_path = path.child("clusterIPs");
    let (news, olds) = (new.list("clusterIPs"), old.list("clusterIPs"));
    let all = || new.at("clusterIPs").clone();
    if news.len() == olds.len() {
        for (i, _) in news
            .iter()
            .zip(olds)
            .enumerate()
            .filter(|(_, (a, b))| a != b)
        {
            errors.invalid(&list_path.index(i), all(), ONCE);
        }
        return;
    }
    let first = list_path.index(0);
    match (news.first(), olds.first()) {
        (None, _) => errors.invalid(&first, all(), "primary clusterIP can not be unset"),
        (Some(new), Some(old)) if new != old => errors.invalid(&first, all(), ONCE),
        _ => {}
    }
    if news.len() == 1 && olds.len() == 2 {
        released(new, "clusterIP", path, errors);
    }
}

fn kept_families(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let first = path.child("ipFamilies").index(0);
    let (news, olds) = (new.list("ipFamilies"), old.list("ipFamilies"));
    if news.len() == olds.len() {
        for _ in news.iter().zip(olds).filter(|(a, b)| a != b) {
            errors.invalid(&first, new.at("ipFamilies").clone(), ONCE);
        }
        return;
    }
    if olds.len() > news.len() && new.list("clusterIPs").is_empty() {
        let detail = "primary ipFamily can not be unset";
        errors.invalid(&first, new.at("ipFamilies").clone(), detail);
    }
    if let (Some(a), Some(b)) = (news.first(), olds.first())
        && a != b
    {
        // Upstream shows the addresses here.
        errors.invalid(&first, new.at("clusterIPs").clone(), ONCE);
    }
    if news.len() == 1 && olds.len() == 2 {
        released(new, "ipFamily", path, errors);
    }
}

/// Whoever gives a second one up says that one is enough.
fn released(new: &Value, what: &str, path: &Path, errors: &mut Errors) {
    let policy = new.at("ipFamilyPolicy");
    if policy != "SingleStack" {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errors.invalid(&path.child("ipFamilyPolicy"), policy.clone(), detail);
    }
}

/// The load balancer's own addresses.
pub fn validate_status(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = object.list("status.loadBalancer.ingress");
    if object.text("spec.type") != "LoadBalancer" && !ingress.is_empty() {
        errors.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for (i, entry) in ingress.iter().enumerate() {
        let path = path.index(i);
        let (ip, host) = (entry.text("ip"), entry.text("hostname"));
        optional_name(entry, "ip", names::is_valid_ip, &path, errors);
        let mode = path.child("ipMode");
        match (ip.is_empty(), entry.text("ipMode")) {
            (false, "") => errors.required(&mode, "must be specified when `ip` is set"),
            (true, other) if !other.is_empty() => {
                errors.forbidden(&mode, "may not be specified when `ip` is not set");
            }
            (false, other) if !["Proxy", "VIP"].contains(&other) => {
                errors.not_supported(&mode, other, &["Proxy", "VIP"]);
            }
            _ => {}
        }
        if !host.is_empty() {
            sentences(
                names::is_dns1123_subdomain(host),
                &path.child("hostname"),
                host,
                errors,
            );
            if host.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.invalid(&path.child("hostname"), host, detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::service::Service;
    use crate::resource::Strategy;
    use crate::validate::lines;

    fn service(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "s"}, "spec": spec});
        Service.default(&mut object);
        Service.prepare_for_create(&mut object);
        object
    }

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        for (spec, expected) in [
            (json!({}), vec!["spec.ports: Required value"]),
            (json!({"clusterIP": "None"}), vec![]),
            (json!({"ports": [{"port": 80}]}), vec![]),
            (
                json!({"ports": [{"port": 0}, {"port": 80, "name": "a"}, {"port": 80, "name": "a"}]}),
                vec![
                    "spec.ports[0].name: Required value",
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[2].name: Duplicate value: \"a\"",
                    "spec.ports[2]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
                ],
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                vec![
                    "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
                ],
            ),
            (
                json!({"type": "NodePort", "ports": [
                    {"port": 80, "name": "a", "nodePort": 30000},
                    {"port": 81, "name": "b", "nodePort": 30000},
                ]}),
                vec!["spec.ports[1].nodePort: Duplicate value: 30000"],
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
                vec![
                    "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort \
                     services",
                ],
            ),
            (
                json!({"type": "ExternalName", "externalName": ""}),
                vec!["spec.externalName: Required value"],
            ),
            (
                json!({"type": "External", "ports": [{"port": 80}]}),
                vec![
                    "spec.type: Unsupported value: \"External\": supported values: \"ClusterIP\", \
                     \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP",
                       "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
                vec![
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater \
                     than 0 and less than 86400",
                ],
            ),
            (
                json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
                vec![
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for \
                     externally-accessible services",
                ],
            ),
            (
                json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
                vec![
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                     (127.0.0.0/8, ::1/128)",
                ],
            ),
        ] {
            let object = service(spec);
            assert_eq!(lines(|e| validate(&object, e)), expected, "{object:#}");
        }
    }

    #[test]
    fn a_cluster_ip_is_for_life() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}});
        let new = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}});
        assert_eq!(
            lines(|e| validate_update(&new, &old, e)),
            ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"]
        );
        assert!(lines(|e| validate_update(&old, &old, e)).is_empty());
    }
}
