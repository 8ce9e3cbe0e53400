//! A volume as a driver is told of it, from a PersistentVolume or from the pod's own spec.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, SecretReference, Volume};
use windlass_proto::csi::v1::VolumeCapability;
use windlass_proto::csi::v1::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};

use super::client::{Ability, Driver};
use super::digest;
use crate::Result;
use crate::volume::Context;

/// What there is to mount.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CsiVolume {
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// The PersistentVolume's name, or the volume's own in the pod.
    pub(crate) name: String,
    /// It lives and dies with the pod.
    pub(crate) ephemeral: bool,
    pub(crate) block: bool,
    pub(crate) read_only: bool,
    pub(crate) fs_type: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) mount_flags: Vec<String>,
    pub(crate) access_modes: Vec<String>,
    pub(crate) stage_secret: Option<SecretReference>,
    pub(crate) publish_secret: Option<SecretReference>,
    pub(crate) expand_secret: Option<SecretReference>,
}

impl CsiVolume {
    /// Of a PersistentVolume, if a CSI driver serves it.
    pub(crate) fn persistent(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.clone()?;
        Some(Self {
            driver: csi.driver,
            handle: csi.volume_handle,
            name: volume.metadata.name.clone().unwrap_or_default(),
            ephemeral: false,
            block: spec.volume_mode.as_deref() == Some("Block"),
            read_only: read_only || csi.read_only == Some(true),
            fs_type: csi.fs_type.unwrap_or_default(),
            attributes: csi.volume_attributes.unwrap_or_default(),
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            stage_secret: csi.node_stage_secret_ref,
            publish_secret: csi.node_publish_secret_ref,
            expand_secret: csi.node_expand_secret_ref,
        })
    }

    /// Of a volume that stands in the pod's spec itself.
    pub(crate) fn inline(context: &Context<'_>, volume: &Volume) -> Option<Self> {
        let csi = volume.csi.clone()?;
        let uid = context.pod.metadata.uid.as_deref().unwrap_or_default();
        Some(Self {
            driver: csi.driver,
            // Nobody else names it: so it is the same at every attempt, and in every kubelet.
            handle: format!("csi-{}", digest(&format!("{uid}{}", volume.name))),
            name: volume.name.clone(),
            ephemeral: true,
            block: false,
            read_only: csi.read_only == Some(true),
            fs_type: csi.fs_type.unwrap_or_default(),
            attributes: csi.volume_attributes.unwrap_or_default(),
            mount_flags: Vec::new(),
            access_modes: Vec::new(),
            stage_secret: None,
            publish_secret: csi.node_publish_secret_ref.map(|secret| SecretReference {
                name: Some(secret.name),
                namespace: Some(context.namespace().to_owned()),
            }),
            expand_secret: None,
        })
    }

    pub(super) fn attachment_name(&self, node: &str) -> String {
        format!(
            "csi-{}",
            digest(&format!("{}{}{node}", self.handle, self.driver))
        )
    }

    /// How it is to be accessed; `group` only if the driver itself gives the files to it.
    pub(super) async fn capability(
        &self,
        driver: &Driver,
        group: Option<u32>,
    ) -> Result<VolumeCapability> {
        let tells_apart = driver.can(Ability::SingleNodeMultiWriter).await?;
        let mode = access_mode(self.access_modes.first().map(String::as_str), tells_apart);
        let access_type = match self.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_flags.clone(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            }),
        };
        Ok(VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access_type),
        })
    }

    /// Whether the agent gives the files to the pod's group, by the driver's policy.
    pub(super) fn is_given_away(&self, policy: Option<&str>) -> bool {
        if self.block || self.read_only {
            return false;
        }
        match policy {
            Some("None") => false,
            Some("File") => true,
            // ReadWriteOnceWithFSType: shared files belong to whoever shares them.
            _ => {
                let alone = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
                !self.fs_type.is_empty() && (self.ephemeral || self.access_modes.iter().any(alone))
            }
        }
    }
}

fn access_mode(mode: Option<&str>, tells_apart: bool) -> Mode {
    match (mode, tells_apart) {
        (Some("ReadOnlyMany"), _) => Mode::MultiNodeReaderOnly,
        (Some("ReadWriteMany"), _) => Mode::MultiNodeMultiWriter,
        (Some("ReadWriteOncePod"), true) => Mode::SingleNodeSingleWriter,
        (_, true) => Mode::SingleNodeMultiWriter,
        (_, false) => Mode::SingleNodeWriter,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(modes: &[&str], fs_type: &str, more: serde_json::Value) -> CsiVolume {
        let mut spec = json!({"accessModes": modes,
            "csi": {"driver": "d", "volumeHandle": "h", "fsType": fs_type}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let object = json!({"metadata": {"name": "pv"}, "spec": spec});
        let object: PersistentVolume = serde_json::from_value(object).unwrap();
        CsiVolume::persistent(&object, false).unwrap()
    }

    #[test]
    fn access_modes_are_told_as_finely_as_the_driver_knows_them() {
        let modes = |mode| {
            (
                access_mode(Some(mode), false),
                access_mode(Some(mode), true),
            )
        };
        assert_eq!(
            modes("ReadWriteOnce"),
            (Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter)
        );
        assert_eq!(
            modes("ReadWriteOncePod"),
            (Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter)
        );
        assert_eq!(modes("ReadWriteMany").0, Mode::MultiNodeMultiWriter);
        assert_eq!(modes("ReadOnlyMany").1, Mode::MultiNodeReaderOnly);
        assert_eq!(access_mode(None, false), Mode::SingleNodeWriter);
    }

    #[test]
    fn a_volume_is_given_to_the_group_by_the_drivers_policy() {
        let disk = volume(&["ReadWriteOnce"], "ext4", json!({}));
        assert!(disk.is_given_away(None) && disk.is_given_away(Some("File")));
        assert!(!disk.is_given_away(Some("None")));
        let share = volume(&["ReadWriteMany"], "nfs", json!({}));
        assert!(!share.is_given_away(None) && share.is_given_away(Some("File")));
        assert!(!volume(&["ReadWriteOnce"], "", json!({})).is_given_away(None));
        let block = volume(&["ReadWriteOnce"], "ext4", json!({"volumeMode": "Block"}));
        assert!(!block.is_given_away(Some("File")));
    }

    #[test]
    fn names_are_those_of_other_kubelets() {
        let disk = volume(&[], "", json!({}));
        // sha256("hdnode")
        assert_eq!(
            disk.attachment_name("node"),
            format!("csi-{}", digest("hdnode"))
        );
        assert_eq!(
            digest("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
