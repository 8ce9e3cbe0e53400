//! What a claim is told of the devices that it gets.

use std::collections::HashSet;

use k8s_openapi::{
    api::{
        core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
        resource::v1::{
            AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
            DeviceRequestAllocationResult,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    Inventory,
    allocate::{Taken, Way, Wish},
    offers::Offer,
    rules::is_of,
};
use crate::node::NodeInfo;

/// The result of a claim that got these devices on the node.
pub(super) fn of(
    inventory: &Inventory,
    wish: &Wish,
    given: &[(&Taken, &Offer)],
    node: &NodeInfo,
) -> AllocationResult {
    let results = given.iter().map(|(taken, offer)| {
        let device = offer.device();
        let tolerations = wish.way(&taken.name).map(|way| way.tolerations.clone());
        DeviceRequestAllocationResult {
            request: taken.name.clone(),
            driver: offer.id.driver.clone(),
            pool: offer.id.pool.clone(),
            device: offer.id.device.clone(),
            admin_access: taken.admin.then_some(true),
            binding_conditions: device.binding_conditions.clone(),
            binding_failure_conditions: device.binding_failure_conditions.clone(),
            tolerations: tolerations.filter(|all| !all.is_empty()),
            ..Default::default()
        }
    });
    let config = config(inventory, wish, given);
    AllocationResult {
        devices: Some(DeviceAllocationResult {
            results: Some(results.collect()),
            config: (!config.is_empty()).then_some(config),
        }),
        node_selector: nodes_of(given.iter().map(|(_, offer)| *offer), node),
        allocation_timestamp: Some(Time(jiff::Timestamp::now())),
    }
}

/// What drivers are told of the devices: by their classes first, by the claim after that.
fn config(
    inventory: &Inventory,
    wish: &Wish,
    given: &[(&Taken, &Offer)],
) -> Vec<DeviceAllocationConfiguration> {
    let mut config = Vec::new();
    let mut told = HashSet::new();
    for (taken, _) in given {
        if !told.insert(&taken.name) {
            continue;
        }
        let class = wish.way(&taken.name).map(|way: &Way| way.class.as_str());
        let class = class.and_then(|class| inventory.classes.get(class));
        let of_class = class.and_then(|class| class.spec.config.as_ref());
        let of_class = of_class.into_iter().flatten();
        config.extend(of_class.map(|entry| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(vec![taken.name.clone()]),
            opaque: entry.opaque.clone(),
        }));
    }
    let devices = wish.claim.spec.devices.as_ref();
    let of_claim = devices.and_then(|devices| devices.config.as_ref());
    for entry in of_claim.into_iter().flatten() {
        let wanted = entry.requests.as_deref().unwrap_or_default();
        let concerns = |name: &str| wanted.iter().any(|wanted| is_of(wanted, name));
        if wanted.is_empty() || given.iter().any(|(taken, _)| concerns(&taken.name)) {
            config.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: entry.requests.clone(),
                opaque: entry.opaque.clone(),
            });
        }
    }
    config
}

/// From where all the devices are reached; none if from everywhere.
fn nodes_of<'a>(offers: impl Iterator<Item = &'a Offer>, node: &NodeInfo) -> Option<NodeSelector> {
    let mut expressions: Vec<NodeSelectorRequirement> = Vec::new();
    let mut fields: Vec<NodeSelectorRequirement> = Vec::new();
    let add = |list: &mut Vec<_>, requirement: NodeSelectorRequirement| {
        if !list.contains(&requirement) {
            list.push(requirement);
        }
    };
    for offer in offers {
        if offer.node_name().is_some() {
            let here = NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.name.clone()]),
            };
            add(&mut fields, here);
        } else if let Some(selector) = offer.node_selector() {
            for term in selector.node_selector_terms.iter().take(1) {
                for wanted in term.match_expressions.iter().flatten() {
                    add(&mut expressions, wanted.clone());
                }
                for wanted in term.match_fields.iter().flatten() {
                    add(&mut fields, wanted.clone());
                }
            }
        }
    }
    if expressions.is_empty() && fields.is_empty() {
        return None;
    }
    Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: (!expressions.is_empty()).then_some(expressions),
            match_fields: (!fields.is_empty()).then_some(fields),
        }],
    })
}
