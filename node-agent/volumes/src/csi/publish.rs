//! Mounting: the driver prepares a volume for the node, once, and shows it to the pod.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIDriver;
use windlass_proto::csi::v1::{NodePublishVolumeRequest, NodeStageVolumeRequest};

use super::client::{Ability, Driver};
use super::expand::{self, Growth};
use super::record::{Place, Record, absent, make_folder};
use super::{Csi, CsiVolume, cluster};
use crate::error::io_error;
use crate::ownership::{self, ChangePolicy};
use crate::volume::{Context, Mounted, blocking};
use crate::{Error, Result};

/// How often a volume is looked at that the driver may want to publish anew, or that may have grown.
const AGAIN: Duration = Duration::from_secs(60);

/// Mounts a volume for the pod, or brings what is mounted up to date.
pub(crate) async fn set_up(
    context: &Context<'_>,
    volume: CsiVolume,
    growth: Option<Growth>,
) -> Result<Mounted> {
    let csi = context.csi;
    let driver = csi.driver(&volume.driver).await?;
    let object = context.objects.csi_driver(&volume.driver).await?;
    let object = object.as_deref();
    cluster::check_lifecycle(&volume, object)?;
    let attaches = !volume.ephemeral && cluster::attaches(object);
    let record = record(csi, &volume, attaches);
    let place = csi.place(context.folder, &volume.name, &record, volume.block);

    let republishes = object.is_some_and(|driver| driver.spec.requires_republish == Some(true));
    let there = csi.knows(&place.target) && Record::load(&place.records).is_some();
    if !there || republishes {
        let mounting = Mounting {
            context,
            csi,
            driver: &driver,
            object,
            volume: &volume,
            place: &place,
            record,
        };
        mounting.mount(attaches, there).await?;
    }
    let may_grow =
        !volume.ephemeral && !volume.read_only && driver.can(Ability::ExpandVolume).await?;
    if let Some(growth) = growth.filter(|_| may_grow) {
        let group = mount_group(context, &driver).await?;
        expand::expand(context, &driver, &volume, &place, growth, group).await?;
    }
    let again = (republishes || may_grow).then(|| crate::volume::later(AGAIN));
    Ok(mounted(&volume, &place, again))
}

fn mounted(volume: &CsiVolume, place: &Place, renew_at: Option<Timestamp>) -> Mounted {
    Mounted {
        path: place.target.clone(),
        read_only: volume.read_only,
        device: volume.block,
        follows: false,
        renew_at,
    }
}

fn record(csi: &Csi, volume: &CsiVolume, attaches: bool) -> Record {
    let mode = if volume.ephemeral {
        "Ephemeral"
    } else {
        "Persistent"
    };
    Record {
        spec_vol_id: volume.name.clone(),
        volume_handle: volume.handle.clone(),
        driver_name: volume.driver.clone(),
        node_name: csi.node_name.clone(),
        attachment_id: match attaches {
            true => volume.attachment_name(&csi.node_name),
            false => String::new(),
        },
        volume_lifecycle_mode: mode.to_owned(),
    }
}

/// The pod's group, where the driver itself gives files to it.
async fn mount_group(context: &Context<'_>, driver: &Driver) -> Result<Option<u32>> {
    match context.group() {
        Some(group) if driver.can(Ability::VolumeMountGroup).await? => Ok(Some(group)),
        _ => Ok(None),
    }
}

/// One attempt.
struct Mounting<'a> {
    context: &'a Context<'a>,
    csi: &'a Csi,
    driver: &'a Driver,
    object: Option<&'a CSIDriver>,
    volume: &'a CsiVolume,
    place: &'a Place,
    record: Record,
}

impl Mounting<'_> {
    /// `there`: it is mounted, and only to be published anew.
    async fn mount(&self, attaches: bool, there: bool) -> Result<()> {
        let (volume, place) = (self.volume, self.place);
        let stages = !volume.ephemeral && self.driver.can(Ability::StageUnstageVolume).await?;
        let group = mount_group(self.context, self.driver).await?;
        let capability = volume.capability(self.driver, group).await?;
        let mut attributes = volume.attributes.clone().into_iter().collect();
        let secret = volume.publish_secret.as_ref();
        let mut secrets = cluster::secret(self.context, secret).await?;
        cluster::tell_of_pod(
            self.context,
            volume,
            self.object,
            &mut attributes,
            &mut secrets,
        )
        .await?;

        let _turn = self.csi.turn(&volume.driver, &volume.handle).await;
        self.note(there)?;
        // Whoever gives a volume up looks for other uses first, and finds this one by now.
        let publish_context = match attaches {
            true => cluster::attachment(self.context, self.csi, volume).await?,
            false => Default::default(),
        };
        if stages && !self.csi.knows(&place.staging) {
            let request = NodeStageVolumeRequest {
                volume_id: volume.handle.clone(),
                publish_context: publish_context.clone(),
                staging_target_path: text(&place.staging),
                volume_capability: Some(capability.clone()),
                secrets: cluster::secret(self.context, volume.stage_secret.as_ref()).await?,
                volume_context: volume.attributes.clone().into_iter().collect(),
            };
            self.stage(request).await?;
        }
        let target = place.target.parent().unwrap_or(&place.target);
        make_folder(target)?;
        self.csi.untouched.lock().remove(&place.target);
        let published = self.driver.publish(NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context,
            staging_target_path: if stages {
                text(&place.staging)
            } else {
                String::new()
            },
            target_path: text(&place.target),
            volume_capability: Some(capability),
            readonly: volume.read_only,
            secrets,
            volume_context: attributes,
        });
        // A pod that has its volume keeps it, whatever the driver says of publishing it anew.
        let outcome = published.await;
        if !there {
            self.csi.note_outcome(&place.target, &outcome);
        }
        outcome?;
        self.give_away(group).await
    }

    /// Writes down what is about to be mounted.
    fn note(&self, there: bool) -> Result<()> {
        let place = self.place;
        if !there && Record::load(&place.records).is_none() {
            self.csi.untouched.lock().insert(place.target.clone());
        }
        self.record.save(&place.records)?;
        if place.block && place.mark.symlink_metadata().is_err() {
            make_folder(place.mark.parent().unwrap_or(&place.mark))?;
            std::os::unix::fs::symlink(&place.target, &place.mark)
                .map_err(io_error("link", &place.mark))?;
        }
        Ok(())
    }

    async fn stage(&self, request: NodeStageVolumeRequest) -> Result<()> {
        let place = self.place;
        if let (Some(folder), false) = (place.staging.parent(), place.block) {
            self.record.save(folder)?;
        }
        make_folder(&place.staging)?;
        self.csi.untouched.lock().remove(&place.staging);
        let outcome = self.driver.stage(request).await;
        self.csi.note_outcome(&place.staging, &outcome);
        outcome.map_err(|error| match error {
            Error::Driver { message, is_final } => Error::Driver {
                message: format!("staging: {message}"),
                is_final,
            },
            other => other,
        })
    }

    /// Gives the files to the pod's group, unless the driver has.
    async fn give_away(&self, by_driver: Option<u32>) -> Result<()> {
        let policy = self
            .object
            .and_then(|driver| driver.spec.fs_group_policy.as_deref());
        let group = self.context.group();
        let group = group.filter(|_| by_driver.is_none() && self.volume.is_given_away(policy));
        let Some(group) = group else {
            return Ok(());
        };
        let (root, policy) = (
            self.place.target.clone(),
            ChangePolicy::of(self.context.pod),
        );
        blocking(move || ownership::give(&root, group, policy)).await
    }
}

impl Csi {
    /// Whether the driver told this agent that the volume is mounted there.
    pub(super) fn knows(&self, path: &Path) -> bool {
        self.mounted.lock().contains(path)
    }

    /// Remembers what became of mounting something there. What the driver refused for good needs no unmounting, and a
    /// folder of ours that stays empty no keeping.
    pub(super) fn note_outcome(&self, path: &Path, outcome: &Result<()>) {
        let refused = matches!(outcome, Err(Error::Driver { is_final: true, .. }));
        let mut mounted = self.mounted.lock();
        match outcome.is_ok() {
            true => mounted.insert(path.to_owned()),
            false => mounted.remove(path),
        };
        drop(mounted);
        let mut all = self.untouched.lock();
        match refused {
            true => all.insert(path.to_owned()),
            false => all.remove(path),
        };
        if refused && let Err(error) = absent(std::fs::remove_dir(path)) {
            tracing::debug!(path = %path.display(), %error, "not removed after a refusal");
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
