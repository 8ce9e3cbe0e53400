//! Topology hints of the annotation `service.kubernetes.io/topology-mode: Auto` (KEP-2433): endpoints are
//! shared out among zones by how much CPU each has, so that traffic can stay in its zone. Pure.
//!
//! Where zones have too few endpoints, or some node's zone is not known, there are no hints at all: traffic
//! that goes everywhere is right everywhere.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::{Endpoint, EndpointHints, ForZone},
};
use kube::ResourceExt;
use windlass_machinery::quantity::Quantity;

use super::{ZONE_LABEL, plan::Group};

/// A zone may get this much more traffic for each of its endpoints than if all were shared evenly.
const OVERLOAD: f64 = 0.2;
const MODES: [&str; 2] = [
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
];

/// Whether a Service wants hints by the CPU of zones; a trafficDistribution says otherwise.
pub(super) fn wants_hints(service: &Service) -> bool {
    let distributed = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.traffic_distribution.is_some());
    let mode = MODES
        .iter()
        .find_map(|name| service.annotations().get(*name));
    !distributed && mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto"))
}

/// Each zone's share of the CPU of all ready nodes; `None` where it cannot be told or there is one zone only.
pub(super) fn shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<BTreeMap<String, f64>> {
    let mut cpus: BTreeMap<String, f64> = BTreeMap::new();
    for node in nodes {
        let labels = node.labels();
        let control_plane = [
            "node-role.kubernetes.io/control-plane",
            "node-role.kubernetes.io/master",
        ];
        if control_plane
            .iter()
            .any(|label| labels.contains_key(*label))
            || !is_ready(node)
        {
            continue;
        }
        let allocatable = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?;
        let cpu = Quantity::parse(&allocatable.0).ok()?.as_f64();
        *cpus.entry(labels.get(ZONE_LABEL)?.clone()).or_default() += cpu;
    }
    let total: f64 = cpus.values().sum();
    (cpus.len() > 1 && total > 0.0).then(|| {
        cpus.into_iter()
            .map(|(zone, cpu)| (zone, cpu / total))
            .collect()
    })
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn takes_traffic(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_none_or(|conditions| conditions.ready != Some(false))
}

/// Gives every endpoint of a group that takes traffic to one zone.
pub(super) fn give_hints(group: &mut Group, shares: &BTreeMap<String, f64>) {
    let serving: Vec<String> = group
        .endpoints
        .iter()
        .filter(|(_, endpoint)| takes_traffic(endpoint))
        .map(|(identity, _)| identity.clone())
        .collect();
    let Some(mut owed) = allocations(serving.len(), shares) else {
        return;
    };
    let mut homeless = Vec::new();
    // First come those that are where they are needed.
    for identity in serving {
        let zone = group
            .endpoints
            .get(&identity)
            .and_then(|endpoint| endpoint.zone.clone());
        match zone
            .as_ref()
            .and_then(|zone| owed.get_mut(zone))
            .filter(|left| **left > 0)
        {
            Some(left) => {
                *left -= 1;
                hint(group, &identity, zone.unwrap_or_default());
            }
            None => homeless.push(identity),
        }
    }
    for identity in homeless {
        let neediest = owed.iter_mut().max_by_key(|(_, left)| **left);
        if let Some((zone, left)) = neediest {
            *left -= 1;
            hint(group, &identity, zone.clone());
        }
    }
}

fn hint(group: &mut Group, identity: &str, zone: String) {
    if let Some(endpoint) = group.endpoints.get_mut(identity) {
        endpoint.hints = Some(EndpointHints {
            for_zones: Some(vec![ForZone { name: zone }]),
            for_nodes: None,
        });
    }
}

/// How many endpoints each zone gets; `None` when some zone would be overloaded with what there is.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts of endpoints are small"
)]
fn allocations(endpoints: usize, shares: &BTreeMap<String, f64>) -> Option<BTreeMap<String, i64>> {
    let total = endpoints as f64;
    let mut owed: BTreeMap<String, i64> = BTreeMap::new();
    let mut rests: Vec<(f64, String)> = Vec::new();
    for (zone, share) in shares {
        let desired = share * total;
        // The fewest with which no endpoint gets more than its share and a fifth.
        let least = (desired / (1.0 + OVERLOAD)).ceil().max(1.0);
        let floor = desired.floor().max(least);
        owed.insert(zone.clone(), floor as i64);
        rests.push((desired - floor, zone.clone()));
    }
    let given: i64 = owed.values().sum();
    let mut left = endpoints as i64 - given;
    if left < 0 {
        return None;
    }
    rests.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, zone) in rests.iter().cycle() {
        if left == 0 {
            break;
        }
        *owed.entry(zone.clone()).or_default() += 1;
        left -= 1;
    }
    Some(owed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, zone: Option<&str>, cpu: &str) -> Node {
        let labels = zone.map(|zone| json!({ ZONE_LABEL: zone }));
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap()
    }

    fn group(zones: &[&str]) -> Group {
        let endpoint = |(at, zone): (usize, &&str)| {
            let endpoint = json!({"addresses": [format!("10.0.0.{at}")], "zone": zone,
                "conditions": {"ready": true}});
            (format!("{at}"), serde_json::from_value(endpoint).unwrap())
        };
        Group {
            ports: Vec::new(),
            endpoints: zones.iter().enumerate().map(endpoint).collect(),
        }
    }

    /// How many endpoints are hinted for each zone.
    fn hinted(zones: &[&str], cpus: &[(&str, &str)]) -> BTreeMap<String, usize> {
        let nodes: Vec<_> = cpus
            .iter()
            .map(|(zone, cpu)| node(zone, Some(zone), cpu))
            .collect();
        let shares = shares(nodes.iter()).unwrap();
        let mut group = group(zones);
        give_hints(&mut group, &shares);
        let mut counts = BTreeMap::new();
        for endpoint in group.endpoints.into_values() {
            for zone in endpoint
                .hints
                .into_iter()
                .flat_map(|hints| hints.for_zones)
                .flatten()
            {
                *counts.entry(zone.name).or_default() += 1;
            }
        }
        counts
    }

    fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
        expected
            .iter()
            .map(|(zone, count)| ((*zone).to_owned(), *count))
            .collect()
    }

    #[test]
    fn zones_get_endpoints_by_their_share_of_the_cpu() {
        let even = [("a", "2"), ("b", "2")];
        assert_eq!(
            hinted(&["a", "a", "b", "b"], &even),
            counts(&[("a", 2), ("b", 2)])
        );
        // All are in one zone: half of them serve the other.
        assert_eq!(
            hinted(&["a", "a", "a", "a"], &even),
            counts(&[("a", 2), ("b", 2)])
        );
        let uneven = [("a", "6"), ("b", "2")];
        assert_eq!(
            hinted(&["a", "a", "b", "b"], &uneven),
            counts(&[("a", 3), ("b", 1)])
        );
    }

    #[test]
    fn too_few_endpoints_have_no_hints() {
        let uneven = [("a", "5"), ("b", "5"), ("c", "5")];
        assert!(hinted(&["a", "b"], &uneven).is_empty());
        assert!(hinted(&["a"], &[("a", "1"), ("b", "1")]).is_empty());
    }

    #[test]
    fn shares_need_two_zones_and_every_nodes_zone() {
        let one = [node("x", Some("a"), "2"), node("y", Some("a"), "2")];
        assert_eq!(shares(one.iter()), None);
        let unknown = [node("x", Some("a"), "2"), node("y", None, "2")];
        assert_eq!(shares(unknown.iter()), None);
        let two = [node("x", Some("a"), "3"), node("y", Some("b"), "1")];
        assert!((shares(two.iter()).unwrap()["a"] - 0.75).abs() < 1e-9);
    }
}
