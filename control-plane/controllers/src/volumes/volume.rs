//! A volume's state machine: Available, Bound, then Released and dealt with by its reclaim policy.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use windlass_informers::{Key, recorder::EventType, volumes};

use super::binder::{Binder, claim_ref};
use crate::runtime::{Result, ResultExt, patch};

impl Binder {
    pub(super) async fn sync_volume(&self, volume: &Arc<PersistentVolume>) -> Result<()> {
        let Some((key, uid)) = claim_ref(volume) else {
            return self
                .set_volume_phase(volume, "Available", None)
                .await
                .map(drop);
        };
        let Some(uid) = uid else {
            // Reserved by name: free for that claim alone, which may come at any time.
            self.set_volume_phase(volume, "Available", None).await?;
            self.wake_claim(key);
            return Ok(());
        };
        match self.claim(&key, uid).await? {
            None => self.release(volume).await,
            Some(claim) => match volumes::volume_name(&claim) {
                None => {
                    self.wake_claim(key);
                    Ok(())
                }
                Some(name) if name == volume.name_any() => {
                    self.set_volume_phase(volume, "Bound", None).await.map(drop)
                }
                Some(_) => self.let_go(volume).await,
            },
        }
    }

    /// The claim with this uid. A view that does not show it may lag, and to release a volume that is in
    /// use would cost its data: the server is asked.
    async fn claim(&self, key: &Key, uid: &str) -> Result<Option<PersistentVolumeClaim>> {
        let is_it = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_deref() == Some(uid);
        if let Some(claim) = self.claims.by_key(key)
            && is_it(&claim)
        {
            return Ok(Some(claim.as_ref().clone()));
        }
        let fresh = self
            .context
            .api::<PersistentVolumeClaim>(&key.namespace)
            .get_opt(&key.name)
            .await
            .doing(|| format!("get claim {key}"))?;
        Ok(fresh.filter(is_it))
    }

    /// The claim has another volume.
    async fn let_go(&self, volume: &Arc<PersistentVolume>) -> Result<()> {
        if is_provisioned(volume) && policy(volume) == "Delete" {
            return self.release(volume).await;
        }
        let mut updated = volume.as_ref().clone();
        let by_us = updated
            .annotations_mut()
            .remove(volumes::BOUND_BY_CONTROLLER)
            .is_some();
        let spec = updated.spec.get_or_insert_default();
        match spec.claim_ref.as_mut() {
            Some(reference) if !by_us => {
                // A person reserved it; only what made the reservation complete goes.
                reference.uid = None;
                reference.resource_version = None;
            }
            _ => spec.claim_ref = None,
        }
        if updated.annotations().is_empty() {
            updated.metadata.annotations = None;
        }
        let written = patch(&self.context.cluster_api(), volume.as_ref(), &updated).await?;
        let volume = written.unwrap_or(updated);
        self.set_volume_phase(&volume, "Available", None)
            .await
            .map(drop)
    }

    /// The claim is gone: the volume is what its reclaim policy says.
    async fn release(&self, volume: &Arc<PersistentVolume>) -> Result<()> {
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let volume = if phase == Some("Failed") {
            volume.as_ref().clone()
        } else {
            self.set_volume_phase(volume, "Released", None).await?
        };
        match policy(&volume) {
            // Whoever provisioned it deletes it: its driver's provisioner watches for Released.
            "Delete" if is_provisioned(&volume) || is_csi(&volume) => Ok(()),
            "Delete" => {
                self.fail(
                    &volume,
                    "VolumeFailedDelete",
                    "no deletable volume plugin matched",
                )
                .await
            }
            "Recycle" => {
                self.fail(
                    &volume,
                    "VolumeFailedRecycle",
                    "no recyclable volume plugin matched",
                )
                .await
            }
            _ => Ok(()),
        }
    }

    async fn fail(&self, volume: &PersistentVolume, reason: &str, message: &str) -> Result<()> {
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase != Some("Failed") {
            self.recorder
                .record(volume, EventType::Warning, reason, message.to_owned());
        }
        self.set_volume_phase(volume, "Failed", Some(message))
            .await
            .map(drop)
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or("Retain")
}

fn is_provisioned(volume: &PersistentVolume) -> bool {
    volume.annotations().contains_key(volumes::PROVISIONED_BY)
}

fn is_csi(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some())
}
