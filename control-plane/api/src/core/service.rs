//! Services. Addresses and node ports are given out by the API server; here are the rules about them.

use serde_json::Value;
use windlass_machinery::validation::Errors;

use super::service_validation;
use crate::resource::Strategy;
use crate::table::{age, cells, labels, load_balancer};
use crate::tree::{self, Tree, each};

pub struct Service;

/// What `clusterIP` says for a Service without one.
pub const HEADLESS: &str = "None";

/// Whether a Service of this type has a cluster IP at all.
pub fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether each of its ports gets a port on the nodes.
pub fn needs_node_ports(spec: &Value) -> bool {
    match spec.text("type") {
        "NodePort" => true,
        "LoadBalancer" => spec
            .at("allocateLoadBalancerNodePorts")
            .as_bool()
            .unwrap_or(true),
        _ => false,
    }
}

/// Whether its load balancer checks the nodes' health on a port of its own.
pub fn needs_health_check_node_port(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

pub(super) fn is_externally_accessible(spec: &Value) -> bool {
    match spec.text("type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.list("externalIPs").is_empty(),
        _ => false,
    }
}

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let mut spec = tree::remove(object, "spec").unwrap_or(Value::Null);
        let s = &mut spec;
        tree::fill(s, "type", "ClusterIP");
        tree::fill(s, "sessionAffinity", "None");
        match s.text("sessionAffinity") {
            "None" => {
                tree::remove(s, "sessionAffinityConfig");
            }
            "ClientIP" => tree::fill(s, "sessionAffinityConfig.clientIP.timeoutSeconds", 10800),
            _ => {}
        }
        for port in each(s, "ports") {
            tree::fill(port, "protocol", "TCP");
            let unset = match port.at("targetPort") {
                Value::Null => true,
                Value::String(name) => name.is_empty(),
                number => number.as_i64() == Some(0),
            };
            if unset {
                let number = port.at("port").clone();
                tree::set(port, "targetPort", number);
            }
        }
        if is_externally_accessible(s) {
            tree::fill(s, "externalTrafficPolicy", "Cluster");
        }
        if needs_cluster_ip(s) {
            tree::fill(s, "internalTrafficPolicy", "Cluster");
        }
        if s.text("type") == "LoadBalancer" {
            tree::fill(s, "allocateLoadBalancerNodePorts", true);
        }
        tree::set(object, "spec", spec);
        tree::object_at(object, "status.loadBalancer");
        if object.text("spec.type") == "LoadBalancer" {
            for ingress in each(object, "status.loadBalancer.ingress") {
                if !ingress.text("ip").is_empty() {
                    tree::fill(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"loadBalancer": {}}));
        pair_cluster_ips(object, None);
        drop_what_the_type_excludes(object, None);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::keep(new, old, "status");
        keep_allocated(new, old);
        pair_cluster_ips(new, Some(old));
        drop_what_the_type_excludes(new, Some(old));
        // Without a balancer there is nothing that its status could be about.
        if new.text("spec.type") != "LoadBalancer" && old.text("spec.type") == "LoadBalancer" {
            tree::set(new, "status.loadBalancer", serde_json::json!({}));
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        service_validation::validate(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        service_validation::validate_update(new, old, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        service_validation::validate_status(new, errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = new.at("spec");
        let mut found = Vec::new();
        let (hints, mode) = (service_validation::HINTS, service_validation::TOPOLOGY);
        if new.at("metadata.annotations").get(hints).is_some() {
            found.push(format!(
                "annotation {hints} is deprecated, please use {mode} instead"
            ));
        }
        if spec.text("type") != "ExternalName" && spec.text("clusterIP") == HEADLESS {
            if !spec.text("loadBalancerIP").is_empty() {
                found.push("spec.loadBalancerIP is ignored for headless services".to_owned());
            }
            if !spec.list("externalIPs").is_empty() {
                found.push("spec.externalIPs is ignored for headless services".to_owned());
            }
            if spec.text("sessionAffinity") == "ClientIP" {
                found.push("spec.SessionAffinity is ignored for headless services".to_owned());
            }
        }
        if spec.text("type") == "ExternalName" && !spec.list("externalIPs").is_empty() {
            found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
        }
        found
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let cluster_ip = spec.list("clusterIPs").first().and_then(Value::as_str);
        cells![
            spec.text("type"),
            cluster_ip.unwrap_or("<none>"),
            external_ip(object),
            ports(spec),
            age(object, now),
            labels(spec.at("selector")),
        ]
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

/// `clusterIP` is the first of `clusterIPs`, whichever of the two a client wrote.
fn pair_cluster_ips(object: &mut Value, old: Option<&Value>) {
    let single = object.text("spec.clusterIP").to_owned();
    let first = object
        .list("spec.clusterIPs")
        .first()
        .and_then(Value::as_str)
        .map(ToOwned::to_owned);
    let Some(old) = old else {
        match first {
            None if !single.is_empty() => {
                tree::set(object, "spec.clusterIPs", vec![Value::from(single)])
            }
            Some(first) if single.is_empty() => tree::set(object, "spec.clusterIP", first),
            _ => {}
        }
        return;
    };
    let was_single = old.text("spec.clusterIP");
    let was_list = old.at("spec.clusterIPs");
    let single_changed = single != was_single;
    let list_changed = !crate::validate::same(object.at("spec.clusterIPs"), was_list);
    if single_changed && !list_changed {
        // A client of before dual stack changes only the one field that it knows.
        if single.is_empty() {
            tree::remove(object, "spec.clusterIPs");
        } else {
            let mut list = object.list("spec.clusterIPs").to_vec();
            match list.first_mut() {
                Some(first) => *first = single.into(),
                None => list.push(single.into()),
            }
            tree::set(object, "spec.clusterIPs", list);
        }
    }
}

/// A client that replaces a Service without repeating what was given to it keeps that.
fn keep_allocated(new: &mut Value, old: &Value) {
    let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
    if needs_cluster_ip(new_spec) && needs_cluster_ip(old_spec) {
        // Each by itself: a client of before dual stack repeats only the one.
        if new.text("spec.clusterIP").is_empty() {
            tree::keep(new, old, "spec.clusterIP");
        }
        if new.list("spec.clusterIPs").is_empty() {
            tree::keep(new, old, "spec.clusterIPs");
        }
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if !new.has(field) {
                tree::keep(new, old, field);
            }
        }
    }
    let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
    if needs_node_ports(new_spec) && needs_node_ports(old_spec) {
        let taken: Vec<_> = new_spec
            .list("ports")
            .iter()
            .filter_map(|p| p.int("nodePort"))
            .collect();
        let olds = old_spec.list("ports").to_vec();
        for port in each(new, "spec.ports") {
            if port.int("nodePort").unwrap_or_default() != 0 {
                continue;
            }
            let before = olds.iter().find(|old| {
                old.int("port") == port.int("port") && old.text("protocol") == port.text("protocol")
            });
            if let Some(number) = before.and_then(|old| old.int("nodePort"))
                && !taken.contains(&number)
            {
                tree::set(port, "nodePort", number);
            }
        }
    }
    let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
    if needs_health_check_node_port(new_spec)
        && needs_health_check_node_port(old_spec)
        && new_spec.int("healthCheckNodePort").unwrap_or_default() == 0
    {
        tree::keep(new, old, "spec.healthCheckNodePort");
    }
}

/// Fields that were given out for the old type and that the client left as they were go with it.
fn drop_what_the_type_excludes(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let unchanged = |new: &Value, field: &str| crate::validate::same(new.at(field), old.at(field));
    if !needs_cluster_ip(new.at("spec")) && needs_cluster_ip(old.at("spec")) {
        for field in [
            "spec.clusterIP",
            "spec.clusterIPs",
            "spec.ipFamilies",
            "spec.ipFamilyPolicy",
        ] {
            if unchanged(new, field) {
                tree::remove(new, field);
            }
        }
        if unchanged(new, "spec.internalTrafficPolicy") {
            tree::remove(new, "spec.internalTrafficPolicy");
        }
    }
    if !needs_node_ports(new.at("spec")) && needs_node_ports(old.at("spec")) {
        let olds: Vec<_> = old
            .list("spec.ports")
            .iter()
            .filter_map(|p| p.int("nodePort"))
            .collect();
        for port in each(new, "spec.ports") {
            if port
                .int("nodePort")
                .is_some_and(|number| olds.contains(&number))
            {
                tree::remove(port, "nodePort");
            }
        }
    }
    if !needs_health_check_node_port(new.at("spec"))
        && needs_health_check_node_port(old.at("spec"))
        && unchanged(new, "spec.healthCheckNodePort")
    {
        tree::remove(new, "spec.healthCheckNodePort");
    }
    if new.text("spec.type") != "LoadBalancer" && old.text("spec.type") == "LoadBalancer" {
        for field in [
            "spec.allocateLoadBalancerNodePorts",
            "spec.loadBalancerClass",
        ] {
            if unchanged(new, field) {
                tree::remove(new, field);
            }
        }
    }
    if !is_externally_accessible(new.at("spec")) && is_externally_accessible(old.at("spec")) {
        tree::remove(new, "spec.externalTrafficPolicy");
    }
}

fn external_ip(object: &Value) -> String {
    let spec = object.at("spec");
    let external: Vec<_> = spec
        .list("externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match spec.text("type") {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => external.join(","),
        "LoadBalancer" => {
            let balanced = load_balancer(object.at("status"));
            let all: Vec<_> = Some(balanced.as_str())
                .into_iter()
                .filter(|b| !b.is_empty())
                .chain(external)
                .collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => spec.text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(spec: &Value) -> String {
    let ports: Vec<_> = spec
        .list("ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (port.int("port").unwrap_or_default(), port.text("protocol"));
            match port.int("nodePort").unwrap_or_default() {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    if ports.is_empty() {
        "<none>".to_owned()
    } else {
        ports.join(",")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_follow_the_type() {
        let mut object = json!({"spec": {"ports": [{"port": 80}], "type": "LoadBalancer"}});
        Service.default(&mut object);
        assert_eq!(
            object,
            json!({
                "spec": {
                    "type": "LoadBalancer",
                    "sessionAffinity": "None",
                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                    "externalTrafficPolicy": "Cluster",
                    "internalTrafficPolicy": "Cluster",
                    "allocateLoadBalancerNodePorts": true,
                },
                "status": {"loadBalancer": {}},
            })
        );
    }

    #[test]
    fn replacing_a_service_keeps_what_it_was_given() {
        let old = json!({"spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
        }});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 80, "protocol": "TCP"},
            {"port": 81, "protocol": "TCP"},
        ]}});
        Service.prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.5");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.5"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert!(new["spec"]["ports"][1].get("nodePort").is_none());

        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        Service.prepare_for_update(&mut new, &old);
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());

        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        Service.prepare_for_update(&mut new, &old);
        assert!(new["spec"].get("clusterIP").is_none() && new["spec"].get("clusterIPs").is_none());
    }

    /// spec and status, expected CLUSTER-IP, EXTERNAL-IP, PORT(S).
    #[test]
    fn rows_show_where_a_service_is_reached() {
        for (spec, status, expected) in [
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "ports": [
                    {"port": 443, "protocol": "TCP"},
                ]}),
                json!({}),
                ["10.96.0.1", "<none>", "443/TCP"],
            ),
            (
                json!({"type": "NodePort", "clusterIPs": ["10.96.0.2"], "ports": [
                    {"port": 80, "nodePort": 30080, "protocol": "TCP"},
                    {"port": 53, "nodePort": 30053, "protocol": "UDP"},
                ]}),
                json!({}),
                ["10.96.0.2", "<none>", "80:30080/TCP,53:30053/UDP"],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]}),
                json!({}),
                ["10.96.0.3", "<pending>", "<none>"],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]}),
                json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}),
                ["10.96.0.3", "1.2.3.4", "<none>"],
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.example"}),
                json!({}),
                ["<none>", "a.example", "<none>"],
            ),
        ] {
            let row = Service.row(&json!({"spec": spec, "status": status}), 0);
            assert_eq!(row[1..4], expected.map(Value::from), "{spec}");
        }
    }
}
