//! DynamicResources: a pod runs where its ResourceClaims have their devices, or can get them all.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceClaim;
use windlass_informers::placement::term_matches;

use crate::{
    cache::Snapshot,
    devices::{self, Inventory, allocation},
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::Storage,
};

pub(crate) struct DynamicResources(pub(crate) Arc<dyn Storage>);

struct Claims {
    all: Vec<Arc<ResourceClaim>>,
    /// Only looked through if a claim has no devices yet.
    inventory: Inventory,
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn refuse(&self, pod: &PodInfo) -> Option<String> {
        devices::claims_of(self.0.as_ref(), pod).err()
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        pod.spec().resource_claims.as_ref()?;
        let all = devices::claims_of(self.0.as_ref(), pod).ok()?;
        if all.is_empty() {
            return None;
        }
        let waits = all.iter().any(|claim| allocation(claim).is_none());
        let inventory = match waits {
            true => self.0.devices(),
            false => Inventory::default(),
        };
        Some(Box::new(Claims { all, inventory }))
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Storage | Event::PodChanged | Event::Node(_))
    }
}

impl Filter for Claims {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let rejected = |reason: String| Rejection {
            plugin: "DynamicResources",
            reasons: vec![reason],
            unresolvable: true,
        };
        let reachable = self
            .all
            .iter()
            .filter_map(|claim| allocation(claim))
            .all(|given| {
                given.node_selector.as_ref().is_none_or(|selector| {
                    let mut terms = selector.node_selector_terms.iter();
                    terms.any(|term| term_matches(term, &node.name, node.labels()))
                })
            });
        if !reachable {
            return Err(rejected(
                "resourceclaim not available on the node".to_owned(),
            ));
        }
        devices::decide(&self.inventory, &self.all, node)
            .map(drop)
            .map_err(rejected)
    }
}
