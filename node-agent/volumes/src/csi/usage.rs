//! How full a driver's volume is.

use std::path::Path;

use windlass_proto::csi::v1::volume_usage::Unit;
use windlass_proto::csi::v1::{NodeGetVolumeStatsRequest, VolumeUsage};

use super::Csi;
use super::client::Ability;
use crate::Result;
use crate::usage::{Room, Usage};
use crate::volume::blocking;

impl Csi {
    /// Of the volume `name` that the pod with this folder uses; none if it uses no such one.
    pub(crate) async fn usage(&self, pod: &Path, name: &str) -> Result<Option<Usage>> {
        let uses = self.uses_of(pod).into_iter();
        let mut named = uses.filter(|found| found.place.mark.ends_with(name));
        let Some(found) = named.next() else {
            return Ok(None);
        };
        let (record, place) = (found.record, found.place);
        let driver = self.driver(&record.driver_name).await?;
        if driver.can(Ability::GetVolumeStats).await? {
            let path = |path: &Path| path.to_string_lossy().into_owned();
            let request = NodeGetVolumeStatsRequest {
                volume_id: record.volume_handle,
                volume_path: path(&place.target),
                staging_target_path: match place.staging.exists() {
                    true => path(&place.staging),
                    false => String::new(),
                },
            };
            return driver.usage(request).await.map(|told| Some(sum_up(&told)));
        }
        if place.block {
            return Ok(None);
        }
        let target = place.target;
        blocking(move || Usage::of_file_system(&target))
            .await
            .map(Some)
    }
}

fn sum_up(told: &[VolumeUsage]) -> Usage {
    let of = |unit: Unit| {
        let told = told.iter().find(|one| one.unit() == unit);
        told.map(|one| Room {
            total: one.total,
            available: one.available,
            used: one.used,
        })
        .unwrap_or_default()
    };
    Usage {
        bytes: of(Unit::Bytes),
        inodes: of(Unit::Inodes),
    }
}
