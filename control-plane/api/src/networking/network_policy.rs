//! NetworkPolicies.

use ipnet::IpNet;
use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, selector as show_selector};
use crate::tree::{self, Tree, each};
use crate::validate::labels::selector;
use crate::validate::numbers::port_or_name;

pub struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "spec.podSelector", json!({}));
        for direction in ["ingress", "egress"] {
            for rule in each(object, &format!("spec.{direction}")) {
                for port in each(rule, "ports") {
                    tree::fill(port, "protocol", "TCP");
                }
            }
        }
        if object.list("spec.policyTypes").is_empty() {
            let mut types = vec![Value::from("Ingress")];
            if !object.list("spec.egress").is_empty() {
                types.push("Egress".into());
            }
            tree::set(object, "spec.policyTypes", types);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        selector(spec.at("podSelector"), &path.child("podSelector"), errors);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in spec.list(direction).iter().enumerate() {
                let path = path.child(direction).index(i);
                for (j, port) in rule.list("ports").iter().enumerate() {
                    validate_port(port, &path.child("ports").index(j), errors);
                }
                for (j, peer) in rule.list(peers).iter().enumerate() {
                    validate_peer(peer, &path.child(peers).index(j), errors);
                }
            }
        }
        let types = spec.list("policyTypes");
        if types.len() > 2 {
            let detail = "may not specify more than two policyTypes";
            errors.invalid(
                &path.child("policyTypes"),
                spec.at("policyTypes").clone(),
                detail,
            );
            return;
        }
        for (i, kind) in types.iter().enumerate() {
            let kind = kind.as_str().unwrap_or_default();
            let directions = &["Ingress", "Egress"];
            if !directions.contains(&kind) {
                let path = path.child("policyTypes").index(i);
                errors.not_supported(&path, kind, directions);
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![
            show_selector(object.at("spec.podSelector")),
            age(object, now)
        ]
    }
}

fn validate_port(entry: &Value, path: &Path, errors: &mut Errors) {
    let protocol = entry.text("protocol");
    if !["SCTP", "TCP", "UDP"].contains(&protocol) {
        errors.not_supported(&path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let number = entry.at("port");
    let end = entry.int("endPort");
    let end_path = path.child("endPort");
    if !number.is_null() {
        port_or_name(number, &path.child("port"), errors);
    }
    let Some(end) = end else { return };
    match number {
        Value::Null => {
            let detail = "may not be specified when `port` is not specified";
            errors.invalid(&end_path, end, detail);
        }
        Value::String(_) => {
            errors.invalid(
                &end_path,
                end,
                "may not be specified when `port` is non-numeric",
            );
        }
        number => {
            if end < number.as_i64().unwrap_or_default() {
                // Upstream shows the port here.
                let detail = "must be greater than or equal to `port`";
                errors.invalid(&end_path, number.clone(), detail);
            }
            crate::validate::numbers::port(end, &end_path, errors);
        }
    }
}

fn validate_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer.has(field) {
            peers += 1;
            selector(peer.at(field), &path.child(field), errors);
        }
    }
    if peer.has("ipBlock") {
        ip_block(peer.at("ipBlock"), &path.child("ipBlock"), errors);
        if peers > 0 {
            let detail = "may not specify both ipBlock and another peer";
            errors.forbidden(path, detail);
        }
        peers += 1;
    }
    if peers == 0 {
        errors.required(path, "must specify a peer");
    }
}

const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn ip_block(block: &Value, path: &Path, errors: &mut Errors) {
    let text = block.text("cidr");
    if text.is_empty() {
        errors.required(&path.child("cidr"), "");
        return;
    }
    let Ok(cidr) = text.parse::<IpNet>() else {
        errors.invalid(&path.child("cidr"), text, NOT_A_CIDR);
        return;
    };
    for (i, except) in block.list("except").iter().enumerate() {
        let text = except.as_str().unwrap_or_default();
        let path = path.child("except").index(i);
        match text.parse::<IpNet>() {
            Err(_) => errors.invalid(&path, text, NOT_A_CIDR),
            Ok(inner)
                if !cidr.contains(&inner.addr()) || inner.prefix_len() <= cidr.prefix_len() =>
            {
                errors.invalid(&path, text, "must be a strict subset of `cidr`");
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn types_follow_the_rules_that_there_are() {
        let mut object = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        NetworkPolicy.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "podSelector": {},
                "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}],
                "policyTypes": ["Ingress", "Egress"],
            })
        );
    }

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        for (rule, expected) in [
            (
                json!({"from": [{}]}),
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ),
            (
                json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a \
                 strict subset of `cidr`",
            ),
            (
                json!({"ports": [{"port": 80, "endPort": 79}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to \
                 `port`",
            ),
            (
                json!({"ports": [{"port": "http", "endPort": 79}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is \
                 non-numeric",
            ),
        ] {
            let mut object = json!({"spec": {"ingress": [rule]}});
            NetworkPolicy.default(&mut object);
            assert_eq!(
                lines(|e| NetworkPolicy.validate(&object, None, e)),
                [expected]
            );
        }
    }
}
