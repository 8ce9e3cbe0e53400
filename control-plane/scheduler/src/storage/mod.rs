//! Where a pod's volumes may be: which of its claims are bound, and for those that wait for their first
//! consumer which volume would serve them on a node (KEP-490). Deciding is pure; `bind.rs` writes it.

mod bind;

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
    storage::v1::{CSINode, StorageClass},
};
use kube::ResourceExt;
use windlass_informers::{
    Informer, Informers,
    volumes::{self, NO_PROVISIONER, SELECTED_NODE},
};

use crate::{
    devices::{self, DeviceId, Inventory, Promises},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) use bind::{Binder, Reservation};

/// What is known of storage.
pub(crate) trait Storage: Send + Sync {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn drivers(&self, node: &str) -> Option<Arc<CSINode>>;
    /// With the devices that it was promised.
    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>>;
    fn devices(&self) -> Inventory;
    /// Whether a volume was promised to another claim whose binding is being written.
    fn is_promised(&self, volume: &str, claim_uid: Option<&str>) -> bool;
}

/// The claims of one pod, sorted by what they need.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) bound: Vec<Arc<PersistentVolumeClaim>>,
    /// These take a volume that suits the node of their first pod.
    pub(crate) waiting: Vec<Arc<PersistentVolumeClaim>>,
}

/// How a waiting claim gets a volume on a certain node.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// There is one already.
    Take {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    /// The provisioner of its class makes one there.
    Provision { claim: Arc<PersistentVolumeClaim> },
}

impl Decision {
    pub(crate) fn claim(&self) -> &Arc<PersistentVolumeClaim> {
        match self {
            Self::Take { claim, .. } | Self::Provision { claim } => claim,
        }
    }
}

pub(crate) const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
pub(crate) const UNREACHABLE: &str = "node(s) didn't match PersistentVolume's node affinity";
pub(crate) const NOT_EXISTING: &str =
    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// Sorts the claims of a pod, or says why no node can take it yet.
pub(crate) fn claims(storage: &dyn Storage, pod: &PodInfo) -> Result<Claims, String> {
    let mut sorted = Claims::default();
    let all = pod.spec().volumes.as_deref().unwrap_or_default();
    for volume in all {
        let Some(name) = volumes::claim_name(&pod.pod, volume) else {
            continue;
        };
        let Some(claim) = storage.claim(pod.namespace(), &name) else {
            return Err(if volume.ephemeral.is_some() {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            });
        };
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Lost") {
            let volume = volumes::volume_name(&claim).unwrap_or_default();
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let ours = claim
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == pod.uid);
        if volume.ephemeral.is_some() && !ours {
            return Err(format!(
                "PVC {}/{name} was not created for pod {} (pod is not owner)",
                pod.namespace(),
                pod.key
            ));
        }
        if volumes::is_bound(&claim) {
            sorted.bound.push(claim);
        } else if volumes::volume_name(&claim).is_none() && waits_for_consumer(storage, &claim) {
            sorted.waiting.push(claim);
        } else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
    }
    Ok(sorted)
}

fn waits_for_consumer(storage: &dyn Storage, claim: &PersistentVolumeClaim) -> bool {
    storage
        .class(volumes::class_of(claim))
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    volumes::reaches(volume, &node.name, node.labels())
}

/// How the waiting claims would be served on a node, or why they cannot be.
pub(crate) fn decide(
    storage: &dyn Storage,
    claims: &Claims,
    node: &NodeInfo,
) -> Result<Vec<Decision>, Vec<&'static str>> {
    let mut reasons = Vec::new();
    for claim in &claims.bound {
        let reason = match volumes::volume_name(claim).and_then(|name| storage.volume(name)) {
            None => NOT_EXISTING,
            Some(volume) if !reaches(&volume, node) => UNREACHABLE,
            Some(_) => continue,
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let mut decisions = Vec::new();
    let mut taken = HashSet::new();
    for claim in &claims.waiting {
        match serve(storage, claim, node, &taken) {
            Some(decision) => {
                if let Decision::Take { volume, .. } = &decision {
                    taken.insert(volume.name_any());
                }
                decisions.push(decision);
            }
            None if reasons.contains(&NO_VOLUME) => {}
            None => reasons.push(NO_VOLUME),
        }
    }
    if reasons.is_empty() {
        Ok(decisions)
    } else {
        Err(reasons)
    }
}

fn serve(
    storage: &dyn Storage,
    claim: &Arc<PersistentVolumeClaim>,
    node: &NodeInfo,
    taken: &HashSet<String>,
) -> Option<Decision> {
    let provision = || Decision::Provision {
        claim: Arc::clone(claim),
    };
    // Provisioning has begun on a node: the pod can only go there.
    if let Some(chosen) = claim.annotations().get(SELECTED_NODE) {
        return (*chosen == node.name).then(provision);
    }
    let uid = claim.metadata.uid.as_deref();
    let usable = |volume: &PersistentVolume| {
        let name = volume.name_any();
        reaches(volume, node) && !taken.contains(&name) && !storage.is_promised(&name, uid)
    };
    let found = volumes::best_match(claim, storage.volumes(), usable);
    if let Some(volume) = found {
        // One that was reserved for the claim is the only one it may have, wherever that is.
        return reaches(&volume, node).then(|| Decision::Take {
            claim: Arc::clone(claim),
            volume,
        });
    }
    let class = storage.class(volumes::class_of(claim))?;
    (class.provisioner != NO_PROVISIONER && allows(&class, node)).then(provision)
}

/// Whether a class may provision for a node.
fn allows(class: &StorageClass, node: &NodeInfo) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    terms.is_empty()
        || terms.iter().any(|term| {
            let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
            expressions.iter().all(|wanted| {
                node.label(&wanted.key)
                    .is_some_and(|value| wanted.values.iter().any(|allowed| allowed == value))
            })
        })
}

/// Answers from the shared informers and the reservations of the binder.
pub(crate) struct InformerStorage {
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) classes: Arc<Informer<StorageClass>>,
    pub(crate) drivers: Arc<Informer<CSINode>>,
    pub(crate) resource_claims: Arc<Informer<ResourceClaim>>,
    pub(crate) slices: Arc<Informer<ResourceSlice>>,
    pub(crate) device_classes: Arc<Informer<DeviceClass>>,
    pub(crate) promises: Arc<Promises>,
    pub(crate) reservations: Arc<Reservation>,
}

impl InformerStorage {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.get(),
            volumes: informers.get(),
            classes: informers.get(),
            drivers: informers.get(),
            resource_claims: informers.get(),
            slices: informers.get(),
            device_classes: informers.get(),
            promises: Arc::default(),
            reservations: Arc::default(),
        }
    }

    pub(crate) async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.drivers.synced().await;
        self.resource_claims.synced().await;
        self.slices.synced().await;
        self.device_classes.synced().await;
    }
}

impl Storage for InformerStorage {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name)
    }

    fn drivers(&self, node: &str) -> Option<Arc<CSINode>> {
        self.drivers.get("", node)
    }

    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let claim = self.resource_claims.get(namespace, name)?;
        let Some(promised) = self.promises.of(&claim) else {
            return Some(claim);
        };
        let mut claim = claim.as_ref().clone();
        claim.status.get_or_insert_default().allocation = Some(promised);
        Some(Arc::new(claim))
    }

    fn devices(&self) -> Inventory {
        let mut in_use = HashSet::new();
        for claim in self.resource_claims.list() {
            let promised = self.promises.of(&claim);
            let given = devices::allocation(&claim).or(promised.as_ref());
            let given = given.and_then(|given| given.devices.as_ref());
            let results = given.and_then(|devices| devices.results.as_ref());
            let taken = results.into_iter().flatten();
            let taken = taken.filter(|result| result.admin_access != Some(true));
            in_use.extend(taken.map(|result| DeviceId {
                driver: result.driver.clone(),
                pool: result.pool.clone(),
                device: result.device.clone(),
            }));
        }
        let classes = self.device_classes.list().into_iter();
        Inventory {
            slices: self.slices.list(),
            classes: classes.map(|class| (class.name_any(), class)).collect(),
            in_use,
        }
    }

    fn is_promised(&self, volume: &str, claim_uid: Option<&str>) -> bool {
        self.reservations.is_promised(volume, claim_uid)
    }
}
