//! Writes what was decided about a pod's volumes, before the pod itself is bound: a pod on a node whose
//! volumes are elsewhere could never start.

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::Notify, time::timeout};
use windlass_informers::{
    Informer,
    volumes::{self, BOUND_BY_CONTROLLER, SELECTED_NODE},
};

use super::Decision;

/// Volumes that were promised to claims, by name, with the claim's uid, until the view shows it.
#[derive(Default)]
pub(crate) struct Reservation(Mutex<AHashMap<String, String>>);

impl Reservation {
    pub(crate) fn is_promised(&self, volume: &str, claim_uid: Option<&str>) -> bool {
        let promised = self.0.lock();
        promised
            .get(volume)
            .is_some_and(|uid| Some(uid.as_str()) != claim_uid)
    }

    pub(crate) fn promise(&self, decisions: &[Decision]) {
        let mut promised = self.0.lock();
        for decision in decisions {
            if let Decision::Take { claim, volume } = decision {
                promised.insert(volume.name_any(), claim.uid().unwrap_or_default());
            }
        }
    }

    fn release(&self, decisions: &[Decision]) {
        let mut promised = self.0.lock();
        for decision in decisions {
            if let Decision::Take { volume, .. } = decision {
                promised.remove(&volume.name_any());
            }
        }
    }
}

/// See the module's documentation.
pub(crate) struct Binder {
    pub(crate) client: Client,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) reservations: Arc<Reservation>,
}

impl Binder {
    /// Carries out the decisions and waits until every claim has its volume.
    pub(crate) async fn carry_out(
        &self,
        decisions: &[Decision],
        node: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let result = self.write_and_wait(decisions, node, patience).await;
        self.reservations.release(decisions);
        result
    }

    async fn write_and_wait(
        &self,
        decisions: &[Decision],
        node: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        let _subscription = self.claims.on_change(move |_| wake.notify_one());
        for decision in decisions {
            let written = match decision {
                Decision::Take { claim, volume } => self.reserve(claim, volume).await,
                Decision::Provision { claim } => self.select_node(claim, node).await,
            };
            written.map_err(|error| format!("binding volumes: {error}"))?;
        }
        let waiting = async {
            loop {
                if self.all_bound(decisions, node)? {
                    return Ok(());
                }
                changed.notified().await;
            }
        };
        timeout(patience, waiting)
            .await
            .unwrap_or_else(|_elapsed| Err("binding volumes: timed out".to_owned()))
    }

    /// The volume's reference is what the binding controller completes.
    async fn reserve(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> kube::Result<()> {
        if volumes::is_reserved_for(volume, claim) {
            return Ok(());
        }
        let body = json!({
            "metadata": {
                "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version,
                "annotations": { BOUND_BY_CONTROLLER: "yes" },
            },
            "spec": { "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
                "resourceVersion": claim.resource_version(),
            }},
        });
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        api.patch(
            &volume.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&body),
        )
        .await
        .map(drop)
    }

    /// Tells the provisioner where the volume must be reachable.
    async fn select_node(&self, claim: &PersistentVolumeClaim, node: &str) -> kube::Result<()> {
        if claim.annotations().contains_key(SELECTED_NODE) {
            return Ok(());
        }
        let body = json!({ "metadata": {
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
            "annotations": { SELECTED_NODE: node },
        }});
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        api.patch(
            &claim.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&body),
        )
        .await
        .map(drop)
    }

    fn all_bound(&self, decisions: &[Decision], node: &str) -> Result<bool, String> {
        let mut all = true;
        for decision in decisions {
            let wanted = decision.claim();
            let name = wanted.name_any();
            let namespace = wanted.namespace().unwrap_or_default();
            let Some(claim) = self
                .claims
                .get(&namespace, &name)
                .filter(|claim| claim.uid() == wanted.uid())
            else {
                return Err(format!("claim {namespace}/{name} was deleted"));
            };
            if volumes::is_bound(&claim) {
                continue;
            }
            all = false;
            // A provisioner that cannot serve the node takes the annotation away: the pod is to go elsewhere.
            let newer = claim.resource_version() != wanted.resource_version();
            let chosen = claim.annotations().get(SELECTED_NODE);
            if matches!(decision, Decision::Provision { .. })
                && newer
                && chosen.is_some_and(|chosen| chosen != node)
            {
                return Err(format!(
                    "claim {namespace}/{name} was given to another node"
                ));
            }
        }
        Ok(all)
    }
}
