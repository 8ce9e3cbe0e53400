//! Binds claims to volumes and back again, as two state machines over the same two kinds: `claim` finds
//! a claim its volume, `volume` says what has become of a volume, and each wakes the other.
//!
//! A binding is written in four steps (volume's claimRef, volume's phase, claim's volumeName, claim's
//! phase), each of which is idempotent and is found again by the next attempt: a volume that refers to a
//! claim is that claim's first choice.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
            PersistentVolumeStatus, Pod,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;
use tracing::info;
use windlass_informers::{Informer, Key, recorder::Recorder, volumes};

use crate::runtime::{
    Context, Controller, Outcome, Queue, Result, patch, patch_status, run_workers,
};

/// What there is to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Claim(Key),
    Volume(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

pub(super) struct Binder {
    pub(super) context: Context,
    pub(super) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(super) volumes: Arc<Informer<PersistentVolume>>,
    pub(super) classes: Arc<Informer<StorageClass>>,
    pub(super) pods: Arc<Informer<Pod>>,
    pub(super) recorder: Recorder,
    pub(super) queue: Arc<Queue<Subject>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (claims, volumes, classes, pods) = context
        .synced::<(PersistentVolumeClaim, PersistentVolume, StorageClass, Pod)>()
        .await;

    let (of_claims, view) = (Arc::clone(&queue), Arc::clone(&volumes));
    let _of_claims = claims.on_change(move |change| {
        let claim = change.object();
        of_claims.add(Subject::Claim(Key::of(claim.as_ref())));
        // The volume of a claim that is gone is released; one that was reserved for it is told too.
        let name = volumes::volume_name(claim).map(ToOwned::to_owned);
        let reserved = view
            .list()
            .into_iter()
            .filter(|volume| volumes::is_reserved_for(volume, claim))
            .map(|volume| volume.name_any());
        for name in name.into_iter().chain(reserved) {
            of_claims.add(Subject::Volume(name));
        }
    });
    let (of_volumes, view) = (Arc::clone(&queue), Arc::clone(&claims));
    let _of_volumes = volumes.on_change(move |change| {
        let volume = change.object();
        of_volumes.add(Subject::Volume(volume.name_any()));
        match claim_ref(volume) {
            Some((key, _)) => of_volumes.add(Subject::Claim(key)),
            // A free volume may be what some claim waits for.
            None => {
                for claim in view.list() {
                    if !volumes::is_bound(&claim) {
                        of_volumes.add(Subject::Claim(Key::of(claim.as_ref())));
                    }
                }
            }
        }
    });
    let (of_classes, view) = (Arc::clone(&queue), Arc::clone(&claims));
    let _of_classes = classes.on_change(move |_| {
        for claim in view.list() {
            if !volumes::is_bound(&claim) {
                of_classes.add(Subject::Claim(Key::of(claim.as_ref())));
            }
        }
    });

    let binder = Arc::new(Binder {
        recorder: context.recorder.named("persistentvolume-controller"),
        context: context.clone(),
        claims,
        volumes,
        classes,
        pods,
        queue: Arc::clone(&queue),
    });
    run_workers(binder, queue, 4, &context.cancel).await;
}

/// The claim that a volume refers to, and its uid once the reference is complete.
pub(super) fn claim_ref(volume: &PersistentVolume) -> Option<(Key, Option<&str>)> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    Some((
        Key::new(
            reference.namespace.clone().unwrap_or_default(),
            reference.name.clone().unwrap_or_default(),
        ),
        uid,
    ))
}

impl Controller for Binder {
    type Key = Subject;
    const NAME: &'static str = "persistentvolume-binder";

    async fn reconcile(&self, subject: &Subject) -> Result<Outcome> {
        match subject {
            Subject::Claim(key) => match self.claims.by_key(key) {
                Some(claim) => self.sync_claim(&claim).await?,
                None => return Ok(Outcome::Done),
            },
            Subject::Volume(name) => match self.volumes.get("", name) {
                Some(volume) => self.sync_volume(&volume).await?,
                None => {
                    // Whoever had it has lost it.
                    let owners = self.claims.list().into_iter();
                    for claim in owners.filter(|claim| volumes::volume_name(claim) == Some(name)) {
                        self.queue.add(Subject::Claim(Key::of(claim.as_ref())));
                    }
                }
            },
        }
        Ok(Outcome::Done)
    }
}

impl Binder {
    /// Writes both ends of a binding.
    pub(super) async fn bind(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<()> {
        let volume = self.point_to_claim(volume, claim).await?;
        let volume = self.set_volume_phase(&volume, "Bound", None).await?;
        let claim = self.point_to_volume(claim, &volume).await?;
        self.set_claim_phase(&claim, "Bound", Some(&volume)).await
    }

    async fn point_to_claim(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolume> {
        let mut updated = volume.clone();
        let spec = updated.spec.get_or_insert_default();
        let by_us = spec.claim_ref.is_none();
        let complete = spec
            .claim_ref
            .as_ref()
            .is_some_and(|reference| reference.uid == claim.metadata.uid);
        if complete {
            return Ok(updated);
        }
        spec.claim_ref = Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: claim.namespace(),
            name: Some(claim.name_any()),
            uid: claim.uid(),
            resource_version: claim.resource_version(),
            ..Default::default()
        });
        if by_us {
            updated
                .annotations_mut()
                .insert(volumes::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        info!(
            volume = volume.name_any(),
            namespace = claim.namespace(),
            claim = claim.name_any(),
            "volume bound"
        );
        let written = patch(&self.context.cluster_api(), volume, &updated).await?;
        Ok(written.unwrap_or(updated))
    }

    async fn point_to_volume(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolumeClaim> {
        let mut updated = claim.clone();
        let name = volume.name_any();
        let by_us = volumes::volume_name(claim) != Some(&name);
        updated.spec.get_or_insert_default().volume_name = Some(name);
        let annotations = updated.annotations_mut();
        if by_us {
            annotations.insert(volumes::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        annotations.insert(volumes::BIND_COMPLETED.to_owned(), "yes".to_owned());
        let api = self.context.api(&claim.namespace().unwrap_or_default());
        let written = patch(&api, claim, &updated).await?;
        Ok(written.unwrap_or(updated))
    }

    /// A bound claim shows what it got; capacity afterwards is whoever expands the volume's to write.
    pub(super) async fn set_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<()> {
        let mut status = claim.status.clone().unwrap_or_default();
        let was_bound = status.phase.as_deref() == Some("Bound");
        status.phase = Some(phase.to_owned());
        match volume {
            Some(volume) => {
                let spec = volume.spec.clone().unwrap_or_default();
                status.access_modes = spec.access_modes;
                if !was_bound {
                    status.capacity = spec.capacity;
                    status.current_volume_attributes_class_name = spec.volume_attributes_class_name;
                }
            }
            None => {
                status = PersistentVolumeClaimStatus {
                    access_modes: None,
                    capacity: None,
                    current_volume_attributes_class_name: None,
                    ..status
                };
            }
        }
        let updated = PersistentVolumeClaim {
            status: Some(status),
            ..claim.clone()
        };
        let api = self.context.api(&claim.namespace().unwrap_or_default());
        patch_status(&api, claim, &updated).await.map(drop)
    }

    /// Says what has become of a volume; the message of a failure goes with its state.
    pub(super) async fn set_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<PersistentVolume> {
        let old = volume.status.clone().unwrap_or_default();
        if old.phase.as_deref() == Some(phase)
            && (message.is_none() || old.message.as_deref() == message)
        {
            return Ok(volume.clone());
        }
        let updated = PersistentVolume {
            status: Some(PersistentVolumeStatus {
                phase: Some(phase.to_owned()),
                message: message.map(ToOwned::to_owned),
                last_phase_transition_time: Some(Time(Timestamp::now())),
                ..old
            }),
            ..volume.clone()
        };
        let written = patch_status(&self.context.cluster_api(), volume, &updated).await?;
        Ok(written.unwrap_or(updated))
    }
}
