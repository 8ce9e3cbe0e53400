//! The downward API: fields and resources of a pod as text, for volumes and
//! environments alike.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use windlass_machinery::quantity::Quantity;

use crate::{Error, Result};

/// What the downward API tells of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The node's addresses, the first one of each family.
    pub ips: Vec<String>,
    /// What a container without a limit is told as its limit: `cpu`, `memory`, ...
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The value of a `fieldRef`. `pod_ips` are given apart, since the sandbox has its
/// addresses before the API object has them.
pub fn field(pod: &Pod, pod_ips: &[String], node: &NodeFacts, path: &str) -> Result<String> {
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(pod.metadata.name.as_ref()),
        "metadata.namespace" => text(pod.metadata.namespace.as_ref()),
        "metadata.uid" => text(pod.metadata.uid.as_ref()),
        "metadata.labels" => listed(pod.metadata.labels.as_ref()),
        "metadata.annotations" => listed(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => text(node.ips.first()),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => text(pod_ips.first()),
        "status.podIPs" => pod_ips.join(","),
        _ => {
            let (map, key) = match subscript(path) {
                Some(("metadata.labels", key)) => (pod.metadata.labels.as_ref(), key),
                Some(("metadata.annotations", key)) => (pod.metadata.annotations.as_ref(), key),
                _ => return Err(Error::Field(format!("unsupported fieldPath: {path}"))),
            };
            text(map.and_then(|map| map.get(key)))
        }
    })
}

/// The value of a `resourceFieldRef` for `container`: limits default to what the node
/// can allocate, requests to the limit.
pub fn resource(
    container: &Container,
    node: &NodeFacts,
    selector: &ResourceFieldSelector,
) -> Result<String> {
    let unsupported = || Error::Field(format!("unsupported resource: {}", selector.resource));
    let (side, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let given = |side: &str| -> Result<Option<Quantity>> {
        let resources = container.resources.as_ref();
        let map = resources.and_then(|resources| match side {
            "limits" => resources.limits.as_ref(),
            _ => resources.requests.as_ref(),
        });
        let text = map.and_then(|map| map.get(name));
        text.map(|text| parse(&text.0)).transpose()
    };
    let amount = match side {
        "limits" => match given("limits")? {
            Some(limit) => limit,
            None => node
                .allocatable
                .get(name)
                .copied()
                .unwrap_or(Quantity::ZERO),
        },
        "requests" => given("requests")?.unwrap_or(Quantity::ZERO),
        _ => return Err(unsupported()),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => parse(&divisor.0)?.milli_value(),
        None => 0,
    };
    Ok(divided_rounding_up(amount.milli_value(), divisor).to_string())
}

/// A divisor of zero counts as one.
fn divided_rounding_up(amount: i64, divisor: i64) -> i64 {
    let divisor = if divisor == 0 { 1000 } else { divisor };
    amount.div_euclid(divisor) + i64::from(amount.rem_euclid(divisor) != 0)
}

fn parse(text: &str) -> Result<Quantity> {
    Quantity::parse(text).map_err(|error| Error::Field(error.to_string()))
}

/// `metadata.labels['key']` -> (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, sorted, with the value quoted as Go's `%q` does.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let mut lines = String::new();
    for (key, value) in map.into_iter().flatten() {
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(key);
        lines.push('=');
        quote(value, &mut lines);
    }
    lines
}

fn quote(value: &str, out: &mut String) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && (c as u32) < 0x100 => {
                // Writing into a String cannot fail.
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1",
                "labels": {"tier": "front", "app": "web"},
                "annotations": {"note": "a \"b\"\nc"},
            },
            "spec": {"serviceAccountName": "builder", "containers": []},
        }))
        .unwrap()
    }

    fn node() -> NodeFacts {
        NodeFacts {
            name: "n1".into(),
            ips: vec!["10.0.0.1".into()],
            allocatable: [("cpu".to_owned(), "2".parse().unwrap())].into(),
        }
    }

    #[test]
    fn fields_are_told_as_kubernetes_tells_them() {
        let ips = ["10.244.0.5".to_owned(), "fd00::5".to_owned()];
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.labels", "app=\"web\"\ntier=\"front\""),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations", "note=\"a \\\"b\\\"\\nc\""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "builder"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIP", "10.244.0.5"),
            ("status.podIPs", "10.244.0.5,fd00::5"),
        ] {
            assert_eq!(
                field(&pod(), &ips, &node(), path).unwrap(),
                expected,
                "{path}"
            );
        }
        assert!(field(&pod(), &ips, &node(), "spec.containers").is_err());
    }

    #[test]
    fn a_limit_that_is_not_given_is_what_the_node_can_allocate() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
        }))
        .unwrap();
        let told = |resource_name: &str, divisor: Option<&str>| {
            let selector =
                serde_json::from_value(json!({"resource": resource_name, "divisor": divisor}));
            resource(&container, &node(), &selector.unwrap())
        };
        assert_eq!(told("limits.memory", Some("1Mi")).unwrap(), "64");
        assert_eq!(told("limits.cpu", None).unwrap(), "2");
        assert_eq!(told("requests.cpu", None).unwrap(), "1");
        assert_eq!(told("requests.cpu", Some("1m")).unwrap(), "250");
        assert!(told("cpu", None).is_err());
    }
}
