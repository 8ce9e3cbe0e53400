//! How full the volumes are that outlive pods: their driver says it, or the file system does.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use k8s_openapi::api::core::v1::Volume;

use crate::error::io_error;
use crate::volume::{Context, blocking};
use crate::{Result, claim};

/// How full a volume is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: Room,
    /// Files and folders; all zero if nobody says.
    pub inodes: Room,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Of all.
    pub total: i64,
    /// What a pod can still have.
    pub available: i64,
    /// What is taken.
    pub used: i64,
}

impl Usage {
    /// Of the file system on which `path` lies.
    pub(crate) fn of_file_system(path: &Path) -> Result<Self> {
        let told = statvfs(path).map_err(|errno| io_error("examine", path)(errno.into()))?;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let block = number(told.fragment_size());
        let bytes = |blocks: u64| number(blocks).saturating_mul(block);
        Ok(Self {
            bytes: Room {
                total: bytes(told.blocks()),
                available: bytes(told.blocks_available()),
                used: bytes(told.blocks() - told.blocks_free()),
            },
            inodes: Room {
                total: number(told.files()),
                available: number(told.files_free()),
                used: number(told.files() - told.files_free()),
            },
        })
    }
}

/// Of a volume that is set up for the pod and lies on storage of its own; nobody can say it of others.
pub async fn usage(context: &Context<'_>, volume: &Volume) -> Result<Option<Usage>> {
    if volume.csi.is_some() {
        return context.csi.usage(context.folder, &volume.name).await;
    }
    let Some(claim) = claim::claim_name(context.pod, volume) else {
        return Ok(None);
    };
    let claim = context.objects.claim(context.namespace(), &claim).await?;
    let bound = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
    let Some(name) = bound else {
        return Ok(None);
    };
    if let Some(told) = context.csi.usage(context.folder, &name).await? {
        return Ok(Some(told));
    }
    let volume = context.objects.persistent_volume(&name).await?;
    let Some(path) = volume.and_then(|volume| claim::local_path(&volume, context.folder)) else {
        return Ok(None);
    };
    blocking(move || Usage::of_file_system(&path))
        .await
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_says_how_full_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let Usage { bytes, inodes } = Usage::of_file_system(folder.path()).unwrap();
        assert!(bytes.total >= bytes.used + bytes.available && bytes.available > 0);
        assert_eq!(inodes.total, inodes.used + inodes.available);
        assert!(Usage::of_file_system(&folder.path().join("gone")).is_err());
    }
}
