//! Devices for pods (dynamic resource allocation, KEP-4381): what nodes offer in ResourceSlices, which of that a
//! claim's expressions select, and which devices the claims of a pod get together. Deciding is pure; `bind.rs` writes
//! it before the pod is bound.

mod allocate;
mod bind;
mod offers;
mod outcome;
mod rules;
mod selector;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use kube::ResourceExt;

use crate::{node::NodeInfo, pod::PodInfo, storage::Storage};

pub(crate) use bind::{DeviceBinder, Promises};
pub(crate) use offers::DeviceId;

/// The most devices of one claim (the API's own limit).
pub(crate) const MOST: usize = 32;

/// Everything that there is to give out, and what of it is given.
#[derive(Clone, Default)]
pub(crate) struct Inventory {
    pub(crate) slices: Vec<Arc<ResourceSlice>>,
    pub(crate) classes: HashMap<String, Arc<DeviceClass>>,
    pub(crate) in_use: HashSet<DeviceId>,
}

/// One claim of a pod on its way to a node.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) claim: Arc<ResourceClaim>,
    /// What it gets; none if it has its devices already.
    pub(crate) allocation: Option<AllocationResult>,
}

/// The devices that a claim has.
pub(crate) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The claims of a pod; an error says why it must wait.
pub(crate) fn claims_of(
    storage: &dyn Storage,
    pod: &PodInfo,
) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let entries = pod.spec().resource_claims.as_deref().unwrap_or_default();
    let status = pod.pod.status.as_ref();
    let noted = status.and_then(|status| status.resource_claim_statuses.as_deref());
    let mut claims = Vec::new();
    for entry in entries {
        let name = match &entry.resource_claim_name {
            Some(name) => name.clone(),
            None => {
                let made = noted.unwrap_or_default().iter();
                let Some(made) = made.into_iter().find(|known| known.name == entry.name) else {
                    let pod = pod.key.to_string();
                    return Err(format!("pod {pod:?}: ResourceClaim not created yet"));
                };
                // The template's controller found that none is needed.
                let Some(name) = &made.resource_claim_name else {
                    continue;
                };
                name.clone()
            }
        };
        let Some(claim) = storage.resource_claim(pod.namespace(), &name) else {
            return Err(format!("resourceclaim {name:?} not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        let ours = claim
            .owner_references()
            .iter()
            .any(|owner| owner.uid == pod.uid);
        if entry.resource_claim_template_name.is_some() && !ours {
            return Err(format!(
                "resourceclaim {name:?} was not created for pod {}",
                pod.key
            ));
        }
        claims.push(claim);
    }
    Ok(claims)
}

/// What the claims get on a node, or why they cannot have it there.
pub(crate) fn decide(
    inventory: &Inventory,
    claims: &[Arc<ResourceClaim>],
    node: &NodeInfo,
) -> Result<Vec<Grant>, String> {
    let missing: Vec<_> = claims
        .iter()
        .filter(|claim| allocation(claim).is_none())
        .cloned()
        .collect();
    let mut given = match missing.is_empty() {
        true => Vec::new(),
        false => allocate::allocate(inventory, &missing, node)?,
    }
    .into_iter();
    let grants = claims.iter().map(|claim| Grant {
        claim: Arc::clone(claim),
        allocation: match allocation(claim) {
            Some(_) => None,
            None => given.next(),
        },
    });
    Ok(grants.collect())
}
