//! DynamicResources: a pod whose ResourceClaims have no devices yet runs nowhere, and one whose claims have
//! some runs where those are. Giving devices out is not done here: a claim is allocated by whoever knows
//! its devices, and a pod that ran without them would be worse than one that waits.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceClaim;
use windlass_informers::placement::term_matches;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::Storage,
};

pub(crate) struct DynamicResources(pub(crate) Arc<dyn Storage>);

struct Allocated(Vec<Arc<ResourceClaim>>);

impl DynamicResources {
    /// The pod's claims; an error says which is missing.
    fn claims(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let entries = pod.spec().resource_claims.as_deref().unwrap_or_default();
        let status = pod.pod.status.as_ref();
        let noted = status.and_then(|status| status.resource_claim_statuses.as_deref());
        let mut claims = Vec::new();
        for entry in entries {
            let made = || {
                let found = noted?.iter().find(|known| known.name == entry.name)?;
                found.resource_claim_name.clone()
            };
            let Some(name) = entry.resource_claim_name.clone().or_else(made) else {
                return Err(format!(
                    "pod {:?}: ResourceClaim not created yet",
                    pod.key.to_string()
                ));
            };
            let Some(claim) = self.0.resource_claim(pod.namespace(), &name) else {
                return Err(format!("resourceclaim {name:?} not found"));
            };
            claims.push(claim);
        }
        Ok(claims)
    }
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    let status = claim.status.as_ref();
    status.is_some_and(|status| status.allocation.is_some())
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn refuse(&self, pod: &PodInfo) -> Option<String> {
        match self.claims(pod) {
            Err(why) => Some(why),
            Ok(claims) => claims
                .iter()
                .any(|claim| !is_allocated(claim))
                .then(|| "cannot allocate all claims".to_owned()),
        }
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let claims = self.claims(pod).ok().filter(|claims| !claims.is_empty())?;
        Some(Box::new(Allocated(claims)))
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Storage | Event::PodChanged)
    }
}

impl Filter for Allocated {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let reachable = self.0.iter().all(|claim| {
            let status = claim.status.as_ref();
            let selector = status
                .and_then(|status| status.allocation.as_ref())
                .and_then(|allocation| allocation.node_selector.as_ref());
            selector.is_none_or(|selector| {
                let mut terms = selector.node_selector_terms.iter();
                terms.any(|term| term_matches(term, &node.name, node.labels()))
            })
        });
        if reachable {
            return Ok(());
        }
        Err(Rejection {
            plugin: "DynamicResources",
            reasons: vec!["resourceclaim not available on the node".to_owned()],
            unresolvable: true,
        })
    }
}
