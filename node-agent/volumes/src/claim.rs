//! A volume that outlives pods: from the claim to the PersistentVolume to a path on this node.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};

use crate::csi::{self, CsiVolume, Growth};
use crate::error::io_error;
use crate::ownership::{self, ChangePolicy};
use crate::volume::{Context, Mounted, blocking};
use crate::{Error, Result, host_path, mounts};

/// What a claim is made of on this node.
enum Source {
    /// A file or folder of the node, as the PersistentVolume names it.
    HostPath(k8s_openapi::api::core::v1::HostPathVolumeSource),
    /// A folder or block device that somebody prepared here.
    Local(PathBuf, Option<String>),
}

/// The name of the claim that a pod's volume stands for, if it stands for one.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    // A generic ephemeral volume's claim is made by a controller, under this name (KEP-1698).
    volume
        .ephemeral
        .as_ref()
        .map(|_| format!("{pod}-{}", volume.name))
}

/// Sets up the volume that is bound to the claim.
pub(crate) async fn set_up(context: &Context<'_>, volume: &Volume, name: &str) -> Result<Mounted> {
    let claim = context
        .objects
        .claim(context.namespace(), name)
        .await?
        .ok_or_else(|| missing("persistentvolumeclaim", name))?;
    if volume.ephemeral.is_some() && !is_owned(&claim, context.pod) {
        return Err(Error::Field(format!(
            "PVC {:?} was not created for pod {:?}: the pod is not its owner",
            name,
            context.pod.metadata.name.as_deref().unwrap_or_default()
        )));
    }
    let persistent = bound(context, &claim, name).await?;
    let read_only = volume
        .persistent_volume_claim
        .as_ref()
        .is_some_and(|source| source.read_only == Some(true));
    if let Some(csi) = CsiVolume::persistent(&persistent, read_only) {
        return csi::set_up(context, csi, Growth::of(&claim, &persistent)).await;
    }
    let spec = persistent.spec.clone().unwrap_or_default();
    let source = source(&spec, &persistent)?;
    let device = spec.volume_mode.as_deref() == Some("Block");
    let volume_name = persistent.metadata.name.clone().unwrap_or_default();
    let place = place(context.folder, &volume_name);
    let (group, policy) = (context.group(), ChangePolicy::of(context.pod));
    let path = blocking(move || match source {
        Source::HostPath(source) => host_path::set_up(&source).map(|()| source.path.into()),
        Source::Local(path, _) if device => checked_device(path),
        Source::Local(path, fs_type) => {
            let path = local_folder(&path, fs_type.as_deref(), &place)?;
            // A hostPath is the node's own and keeps its owners; a local volume is given away.
            if let Some(group) = group.filter(|_| !read_only) {
                ownership::give(&path, group, policy)?;
            }
            Ok(path)
        }
    })
    .await?;
    Ok(Mounted {
        path,
        read_only,
        device,
        follows: false,
        renew_at: None,
    })
}

fn place(pod_folder: &Path, volume: &str) -> PathBuf {
    pod_folder
        .join("volumes/kubernetes.io~local-volume")
        .join(volume)
}

/// Where the file system of a local volume is, once it is set up for the pod with this folder. A hostPath is a part of
/// the node's own.
pub(crate) fn local_path(volume: &PersistentVolume, pod_folder: &Path) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let local = spec.local.as_ref()?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return None;
    }
    let mounted = place(pod_folder, volume.metadata.name.as_deref()?);
    Some(match mounted.exists() {
        true => mounted,
        false => PathBuf::from(&local.path),
    })
}

fn missing(kind: &'static str, name: &str) -> Error {
    Error::Missing {
        kind,
        name: name.to_owned(),
    }
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref()
    })
}

/// The volume to which a claim is bound, and that is bound to no other claim.
async fn bound(
    context: &Context<'_>,
    claim: &PersistentVolumeClaim,
    name: &str,
) -> Result<std::sync::Arc<PersistentVolume>> {
    if claim.metadata.deletion_timestamp.is_some() {
        // Whoever runs on keeps it; a pod that starts now must not.
        return Err(Error::Field(format!(
            "persistentvolumeclaim {name:?} is being deleted"
        )));
    }
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let volume = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref());
    let Some(volume) = volume.filter(|name| !name.is_empty() && phase == Some("Bound")) else {
        return Err(Error::Field(format!(
            "persistentvolumeclaim {name:?} is not bound"
        )));
    };
    let found = context.objects.persistent_volume(volume).await?;
    let found = found.ok_or_else(|| missing("persistentvolume", volume))?;
    let holder = found.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let holder = holder.and_then(|reference| reference.uid.as_ref());
    if holder != claim.metadata.uid.as_ref() {
        return Err(Error::Field(format!(
            "persistentvolume {volume:?} is bound to another claim than {name:?}"
        )));
    }
    Ok(found)
}

fn source(spec: &PersistentVolumeSpec, volume: &PersistentVolume) -> Result<Source> {
    if let Some(source) = &spec.host_path {
        return Ok(Source::HostPath(source.clone()));
    }
    if let Some(local) = &spec.local {
        return Ok(Source::Local(
            local.path.clone().into(),
            local.fs_type.clone(),
        ));
    }
    Err(Error::Unsupported {
        name: volume.metadata.name.clone().unwrap_or_default(),
    })
}

fn checked_device(path: PathBuf) -> Result<PathBuf> {
    let is_block = fs::metadata(&path)
        .map_err(io_error("examine", &path))?
        .file_type()
        .is_block_device();
    match is_block {
        true => Ok(path),
        false => Err(Error::HostPathType {
            path,
            expected: "block device",
        }),
    }
}

/// A prepared folder is used where it is; a block device is mounted for the pod.
fn local_folder(path: &Path, fs_type: Option<&str>, place: &Path) -> Result<PathBuf> {
    let kind = fs::metadata(path)
        .map_err(io_error("examine", path))?
        .file_type();
    if kind.is_dir() {
        return Ok(path.to_owned());
    }
    if !kind.is_block_device() {
        return Err(Error::HostPathType {
            path: path.to_owned(),
            expected: "directory",
        });
    }
    fs::create_dir_all(place).map_err(io_error("create", place))?;
    mounts::device(
        path,
        place,
        fs_type.filter(|text| !text.is_empty()).unwrap_or("ext4"),
    )?;
    Ok(place.to_owned())
}
