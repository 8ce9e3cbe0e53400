//! The claims of a StatefulSet's pods: made before the pod, kept or let go by the retention policy.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{Key, recorder::EventType};

use super::{
    StatefulSets, identity,
    plan::{Wanted, ordinal},
};
use crate::runtime::{Result, ResultExt, controller_ref, patch};

impl StatefulSets {
    pub(super) async fn create_claims(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        ordinal: i32,
    ) -> Result<()> {
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for claim in identity::claims(set, ordinal) {
            let name = claim.name_any();
            if self.claims.get(&key.namespace, &name).is_some() {
                continue;
            }
            let created = api
                .create(&PostParams::default(), &claim)
                .await
                .doing(|| format!("create claim {name}"));
            match created {
                Ok(_) => {
                    let message =
                        format!("create Claim {name} in StatefulSet {} success", key.name);
                    self.recorder.record(
                        set.as_ref(),
                        EventType::Normal,
                        "SuccessfulCreate",
                        message,
                    );
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes claims go with the set or with their pod where the retention policy says so (KEP-1847).
    pub(super) async fn retain_claims(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        wanted: &Wanted,
    ) -> Result<()> {
        let policy = set
            .spec
            .as_ref()
            .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
            .unwrap_or_default();
        let with_set = policy.when_deleted.as_deref() == Some("Delete");
        let with_scale = policy.when_scaled.as_deref() == Some("Delete");
        let has_claims = set.spec.as_ref().is_some_and(|spec| {
            spec.volume_claim_templates
                .as_ref()
                .is_some_and(|t| !t.is_empty())
        });
        if !has_claims {
            return Ok(());
        }
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        let ordinals: Vec<i32> = self
            .pods
            .controlled_by(set.metadata.uid.as_deref().unwrap_or_default())
            .iter()
            .filter_map(|pod| ordinal(&key.name, &pod.name_any()))
            .collect();
        for number in ordinals {
            let condemned = !(wanted.start..wanted.start + wanted.replicas).contains(&number);
            let pod = self
                .pods
                .get(&key.namespace, &format!("{}-{number}", key.name));
            let owner = match (condemned && with_scale, with_set) {
                (true, _) => pod.as_deref().map(pod_owner),
                (false, true) => Some(plain(controller_ref(set.as_ref()))),
                (false, false) => None,
            };
            for claim in identity::claims(set, number) {
                let Some(existing) = self.claims.get(&key.namespace, &claim.name_any()) else {
                    continue;
                };
                let mut updated = existing.as_ref().clone();
                let owners = updated.metadata.owner_references.get_or_insert_default();
                let ours = |reference: &OwnerReference| {
                    Some(&reference.uid) == set.metadata.uid.as_ref()
                        || (reference.kind == "Pod"
                            && reference.name == format!("{}-{number}", key.name))
                };
                owners.retain(|reference| !ours(reference));
                owners.extend(owner.clone());
                if owners.is_empty() {
                    updated.metadata.owner_references = None;
                }
                patch(&api, existing.as_ref(), &updated).await?;
            }
        }
        Ok(())
    }
}

fn pod_owner(pod: &Pod) -> OwnerReference {
    plain(controller_ref(pod))
}

/// A claim is owned, not controlled.
fn plain(reference: OwnerReference) -> OwnerReference {
    OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..reference
    }
}
