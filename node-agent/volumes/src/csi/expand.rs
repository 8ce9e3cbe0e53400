//! Growing: the file system of a volume that has become larger is made as large, while it is mounted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use windlass_machinery::quantity::Quantity;
use windlass_proto::csi::v1::{CapacityRange, NodeExpandVolumeRequest};

use super::client::Driver;
use super::record::Place;
use super::{CsiVolume, cluster};
use crate::Result;
use crate::volume::Context;

/// A claim that tells of less than its volume has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Growth {
    claim: String,
    /// As the PersistentVolume says it.
    capacity: String,
}

impl Growth {
    /// None if the claim tells of all that there is.
    pub(crate) fn of(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Self> {
        let storage = |of: Option<&BTreeMap<String, _>>| -> Option<(String, i64)> {
            let amount: &k8s_openapi::apimachinery::pkg::api::resource::Quantity =
                of?.get("storage")?;
            Some((amount.0.clone(), Quantity::parse(&amount.0).ok()?.value()))
        };
        let status = claim.status.as_ref()?;
        let (_, told) = storage(status.capacity.as_ref())?;
        let (capacity, has) = storage(volume.spec.as_ref()?.capacity.as_ref())?;
        (has > told).then(|| Self {
            claim: claim.metadata.name.clone().unwrap_or_default(),
            capacity,
        })
    }
}

/// Has the driver make the file system larger, and tells the claim.
pub(super) async fn expand(
    context: &Context<'_>,
    driver: &Driver,
    volume: &CsiVolume,
    place: &Place,
    growth: Growth,
    group: Option<u32>,
) -> Result<()> {
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let bytes = Quantity::parse(&growth.capacity).map_or(0, |amount| amount.value());
    let request = NodeExpandVolumeRequest {
        volume_id: volume.handle.clone(),
        volume_path: path(&place.target),
        capacity_range: Some(CapacityRange {
            required_bytes: bytes,
            limit_bytes: 0,
        }),
        staging_target_path: match place.staging.exists() {
            true => path(&place.staging),
            false => String::new(),
        },
        volume_capability: Some(volume.capability(driver, group).await?),
        secrets: cluster::secret(context, volume.expand_secret.as_ref()).await?,
    };
    let _turn = context.csi.turn(&volume.driver, &volume.handle).await;
    let now = driver.expand(request).await?;
    tracing::info!(volume = volume.name, bytes = now, "file system expanded");
    let namespace = context.namespace();
    let objects = context.objects;
    objects
        .expanded(namespace, &growth.claim, &growth.capacity)
        .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_grows_when_its_claim_tells_of_less() {
        let of = |told: &str, has: &str| {
            let claim =
                json!({"metadata": {"name": "c"}, "status": {"capacity": {"storage": told}}});
            let volume = json!({"metadata": {}, "spec": {"capacity": {"storage": has}}});
            Growth::of(
                &serde_json::from_value(claim).unwrap(),
                &serde_json::from_value(volume).unwrap(),
            )
        };
        assert_eq!(of("1Gi", "1024Mi"), None);
        assert_eq!(of("2Gi", "1Gi"), None);
        assert_eq!(of("1Gi", "2Gi").unwrap().capacity, "2Gi");
    }
}
