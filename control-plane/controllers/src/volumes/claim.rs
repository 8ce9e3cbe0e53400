//! A claim's state machine: Pending until it has a volume, Bound while it has it, Lost when it is gone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use windlass_informers::{recorder::EventType, volumes};

use super::binder::{Binder, Subject, claim_ref};
use crate::runtime::{Result, patch};

/// Both names of the annotation that hands a claim to a provisioner are still read by some.
const PROVISIONERS: [&str; 2] = [
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/storage-provisioner",
];

impl Binder {
    pub(super) async fn sync_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<()> {
        if claim.annotations().contains_key(volumes::BIND_COMPLETED) {
            self.sync_bound(claim).await
        } else if let Some(name) = volumes::volume_name(claim) {
            self.sync_asking(claim, name).await
        } else {
            self.sync_open(claim).await
        }
    }

    /// Any volume will do.
    async fn sync_open(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<()> {
        let delayed = self.is_delayed(claim);
        // Where the first pod decides, only a volume that was reserved for the claim is taken.
        let found = volumes::best_match(claim, self.volumes.list(), |_| !delayed);
        if let Some(volume) = found {
            return self.bind(&volume, claim).await;
        }
        let class = volumes::class_of(claim);
        if delayed {
            self.explain_delay(claim);
        } else if class.is_empty() {
            let message =
                "no persistent volumes available for this claim and no storage class is set";
            self.tell(
                claim,
                EventType::Normal,
                "FailedBinding",
                message.to_owned(),
            );
        } else {
            return self.ask_provisioner(claim, class).await;
        }
        self.set_claim_phase(claim, "Pending", None).await
    }

    /// One volume is asked for by name.
    async fn sync_asking(&self, claim: &Arc<PersistentVolumeClaim>, name: &str) -> Result<()> {
        let Some(volume) = self.volumes.get("", name) else {
            return self.set_claim_phase(claim, "Pending", None).await;
        };
        let reserved = volumes::is_reserved_for(&volume, claim);
        if !reserved && claim_ref(&volume).is_some() {
            let message = format!("volume {name:?} already bound to a different claim.");
            self.tell(claim, EventType::Warning, "FailedBinding", message);
            return self.set_claim_phase(claim, "Pending", None).await;
        }
        if !reserved && let Some(why) = volumes::mismatch(&volume, claim) {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            self.tell(claim, EventType::Warning, "VolumeMismatch", message);
            return self.set_claim_phase(claim, "Pending", None).await;
        }
        self.bind(&volume, claim).await
    }

    /// It had a volume; it should have it still.
    async fn sync_bound(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<()> {
        let Some(name) = volumes::volume_name(claim) else {
            let message =
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        let Some(volume) = self.volumes.get("", name) else {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        if claim_ref(&volume).is_none() || volumes::is_reserved_for(&volume, claim) {
            self.note_expansion(claim, &volume);
            return self.bind(&volume, claim).await;
        }
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(claim, "ClaimMisbound", message).await
    }

    async fn lose(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let known = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Lost");
        if !known {
            self.tell(claim, EventType::Warning, reason, message.to_owned());
        }
        self.set_claim_phase(claim, "Lost", None).await
    }

    /// Whether the first pod that uses the claim decides where its volume is.
    fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        if claim.annotations().contains_key(volumes::SELECTED_NODE) {
            return false;
        }
        self.classes
            .get("", volumes::class_of(claim))
            .is_some_and(|class| {
                class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
            })
    }

    fn explain_delay(&self, claim: &Arc<PersistentVolumeClaim>) {
        let name = claim.name_any();
        let mut users: Vec<_> = self
            .pods
            .in_namespace(&claim.namespace().unwrap_or_default())
            .into_iter()
            .filter(|pod| volumes::claims_of(pod).contains(&name))
            .map(|pod| pod.name_any())
            .collect();
        users.sort();
        if users.is_empty() {
            let message = "waiting for first consumer to be created before binding".to_owned();
            self.tell(claim, EventType::Normal, "WaitForFirstConsumer", message);
        } else {
            let message = format!("waiting for pod {} to be scheduled", users.join(","));
            self.tell(claim, EventType::Normal, "WaitForPodScheduled", message);
        }
    }

    /// Hands the claim to the provisioner of its class, which makes a volume that refers to it.
    async fn ask_provisioner(&self, claim: &Arc<PersistentVolumeClaim>, class: &str) -> Result<()> {
        let Some(class) = self.classes.get("", class) else {
            let message = format!("storageclass.storage.k8s.io {class:?} not found");
            self.tell(claim, EventType::Warning, "ProvisioningFailed", message);
            return self.set_claim_phase(claim, "Pending", None).await;
        };
        let provisioner = &class.provisioner;
        if provisioner == volumes::NO_PROVISIONER {
            let message =
                "no persistent volumes available for this claim and no provisioner is set";
            self.tell(
                claim,
                EventType::Normal,
                "FailedBinding",
                message.to_owned(),
            );
            return self.set_claim_phase(claim, "Pending", None).await;
        }
        let mut updated = claim.as_ref().clone();
        for annotation in PROVISIONERS {
            updated
                .annotations_mut()
                .insert(annotation.to_owned(), provisioner.clone());
        }
        let written = patch(
            &self.context.api(&claim.namespace().unwrap_or_default()),
            claim.as_ref(),
            &updated,
        )
        .await?;
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or \
             manually by the system administrator. If volume creation is delayed, please verify that \
             the provisioner is running and correctly registered."
        );
        self.tell(claim, EventType::Normal, "ExternalProvisioning", message);
        self.set_claim_phase(&written.unwrap_or(updated), "Pending", None)
            .await
    }

    /// A claim that asks for more than its volume holds waits for the driver's own resizer.
    fn note_expansion(&self, claim: &Arc<PersistentVolumeClaim>, volume: &PersistentVolume) {
        let by_driver = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
        if by_driver && volumes::capacity(volume) < volumes::requested(claim) {
            let message = "waiting for an external controller to expand this PVC".to_owned();
            self.tell(claim, EventType::Normal, "ExternalExpanding", message);
        }
    }

    fn tell(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        self.recorder.record(claim.as_ref(), kind, reason, message);
    }

    /// Has the claim of a volume looked at again.
    pub(super) fn wake_claim(&self, key: windlass_informers::Key) {
        self.queue.add(Subject::Claim(key));
    }
}
