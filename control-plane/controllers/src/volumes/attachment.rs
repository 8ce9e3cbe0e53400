//! Attaches CSI volumes to the nodes whose pods use them, by VolumeAttachments that each driver's
//! external-attacher carries out, and detaches them when nothing uses them any more.
//!
//! A node's kubelet mounts a volume only once `status.volumesAttached` lists it, and a volume in its
//! `status.volumesInUse` may still be mounted: it is taken off the list before it is detached, and detached
//! only when the node says that it is free, or when the node is gone for good. The true state is the
//! VolumeAttachments'; the node's list is written after them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
};
use kube::{
    ResourceExt,
    api::{ObjectMeta, PostParams},
};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
    volumes,
};

use crate::{
    pods,
    runtime::{
        Context, Controller, Outcome, Queue, Result, ResultExt, delete, patch_status, run_workers,
    },
};

/// How long a node that is not ready keeps a volume that no pod needs (upstream's
/// maxWaitForUnmountDuration): nobody can say whether it is still mounted there.
const PATIENCE: Duration = Duration::from_mins(6);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Attachments {
    context: Context,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    recorder: Recorder,
}

pub(crate) async fn start(context: Context) {
    let (nodes, pods, claims, volumes, drivers, attachments) = context
        .synced::<(
            Node,
            Pod,
            PersistentVolumeClaim,
            PersistentVolume,
            CSIDriver,
            VolumeAttachment,
        )>()
        .await;
    let controller = Arc::new(Attachments {
        nodes,
        pods,
        claims,
        volumes,
        drivers,
        attachments,
        recorder: context.recorder.named("attachdetach-controller"),
        context: context.clone(),
    });
    // Keys are nodes: what a node has attached is one decision.
    let queue: Arc<Queue<Key>> = Queue::new();
    let of_nodes = Arc::clone(&queue);
    let _of_nodes = controller.nodes.on_change(move |change| {
        let facts = |node: &Node| {
            let status = node.status.as_ref();
            (
                status.and_then(|status| status.volumes_in_use.clone()),
                status.and_then(|status| status.volumes_attached.clone()),
                is_out_of_service(node),
            )
        };
        let node = change.object();
        if change
            .previous()
            .is_none_or(|old| facts(old) != facts(node))
        {
            of_nodes.add(Key::new("", node.name_any()));
        }
    });
    let of_pods = Arc::clone(&queue);
    let _of_pods = controller.pods.on_change(move |change| {
        let pod = change.object();
        if let Some(node) = pods::node_name(pod)
            && !volumes::claims_of(pod).is_empty()
        {
            of_pods.add(Key::new("", node));
        }
    });
    let (of_claims, view) = (Arc::clone(&queue), Arc::clone(&controller));
    let _of_claims = controller.claims.on_change(move |change| {
        let claim = change.object();
        for node in view.nodes_with(&claim.namespace().unwrap_or_default(), &claim.name_any()) {
            of_claims.add(Key::new("", node));
        }
    });
    let of_attachments = Arc::clone(&queue);
    let _of_attachments = controller.attachments.on_change(move |change| {
        of_attachments.add(Key::new("", change.object().spec.node_name.clone()));
    });
    for attachment in controller.attachments.list() {
        queue.add(Key::new("", attachment.spec.node_name.clone()));
    }
    run_workers(controller, queue, 2, &context.cancel).await;
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints
        .into_iter()
        .flatten()
        .any(|taint| taint.key == OUT_OF_SERVICE)
}

/// How long the node has not been ready.
fn unready_for(node: &Node, now: Timestamp) -> Option<Duration> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    let since = ready.last_transition_time.as_ref()?.0;
    (ready.status != "True")
        .then(|| Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// A volume as its driver, and thereby the kubelet, names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    driver: String,
    handle: String,
    /// Of the PersistentVolume.
    name: String,
    one_node_only: bool,
}

impl Disk {
    fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        Some(Self {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            name: volume.name_any(),
            one_node_only: !modes.is_empty()
                && modes
                    .iter()
                    .all(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod"),
        })
    }

    /// In a node's status.
    fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// The kubelet looks for the attachment under this name, so it is the same in every controller.
    fn attachment_name(&self, node: &str) -> String {
        let digest = Sha256::digest(format!("{}{}{node}", self.handle, self.driver));
        digest.iter().fold(String::from("csi-"), |mut name, byte| {
            // Writing into a string cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
    }
}

/// What becomes of an attachment that exists.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// In use, or about to be.
    Keep,
    /// Of no use, but perhaps still mounted: look again when the node speaks, or after this long.
    Wait(Option<Duration>),
    Detach,
}

fn fate(node: Option<&Node>, disk: &str, wanted: bool, now: Timestamp) -> Fate {
    let Some(node) = node else {
        return Fate::Detach;
    };
    if wanted {
        return Fate::Keep;
    }
    let in_use = node
        .status
        .as_ref()
        .and_then(|status| status.volumes_in_use.as_ref());
    if !in_use.is_some_and(|names| names.iter().any(|name| name == disk)) || is_out_of_service(node)
    {
        return Fate::Detach;
    }
    match unready_for(node, now) {
        Some(silent) if silent >= PATIENCE => Fate::Detach,
        Some(silent) => Fate::Wait(Some(PATIENCE.saturating_sub(silent))),
        None => Fate::Wait(None),
    }
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.metadata.deletion_timestamp.is_none()
        && attachment
            .status
            .as_ref()
            .is_some_and(|status| status.attached)
}

fn volume_of(attachment: &VolumeAttachment) -> Option<&str> {
    attachment.spec.source.persistent_volume_name.as_deref()
}

impl Attachments {
    fn nodes_with(&self, namespace: &str, claim: &str) -> BTreeSet<String> {
        let pods = self.pods.in_namespace(namespace);
        let using = pods
            .iter()
            .filter(|pod| volumes::claims_of(pod).iter().any(|name| name == claim));
        using
            .filter_map(|pod| pods::node_name(pod).map(str::to_owned))
            .collect()
    }

    fn needs_attaching(&self, driver: &str) -> bool {
        let driver = self.drivers.get("", driver);
        driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    /// The disks that the pods of a node use, by the name of their PersistentVolume, with a pod of each.
    fn wanted(&self, node: &str) -> BTreeMap<String, (Disk, Arc<Pod>)> {
        let mut wanted = BTreeMap::new();
        for pod in self.pods.indexed(node) {
            if pods::is_finished(&pod) {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            for name in volumes::claims_of(&pod) {
                let disk = self
                    .claims
                    .get(&namespace, &name)
                    .filter(|claim| volumes::is_bound(claim))
                    .and_then(|claim| self.volumes.get("", volumes::volume_name(&claim)?))
                    .and_then(|volume| Disk::of(&volume))
                    .filter(|disk| self.needs_attaching(&disk.driver));
                if let Some(disk) = disk {
                    wanted.insert(disk.name.clone(), (disk, Arc::clone(&pod)));
                }
            }
        }
        wanted
    }

    async fn attach(&self, node: &str, disk: &Disk, pod: &Pod) -> Result<()> {
        let elsewhere = disk.one_node_only
            && self.attachments.list().iter().any(|other| {
                volume_of(other) == Some(disk.name.as_str()) && other.spec.node_name != node
            });
        if elsewhere {
            let message = format!(
                "Multi-Attach error for volume {:?} Volume is already exclusively attached to one node \
                 and can't be attached to another",
                disk.name
            );
            self.recorder
                .record(pod, EventType::Warning, "FailedAttachVolume", message);
            return Ok(());
        }
        let attachment = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(disk.attachment_name(node)),
                ..Default::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: disk.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(disk.name.clone()),
                    ..Default::default()
                },
            },
            status: None,
        };
        let created = self
            .context
            .cluster_api::<VolumeAttachment>()
            .create(&PostParams::default(), &attachment)
            .await
            .doing(|| format!("attach volume {} to node {node}", disk.name));
        match created {
            Ok(_) => info!(volume = disk.name, node, "attaching"),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What the kubelet may mount.
    async fn report(&self, node: &Node, attached: BTreeSet<String>) -> Result<()> {
        let mut updated = node.clone();
        let volumes: Vec<_> = attached
            .into_iter()
            .map(|name| AttachedVolume {
                name,
                device_path: String::new(),
            })
            .collect();
        updated.status.get_or_insert_default().volumes_attached =
            (!volumes.is_empty()).then_some(volumes);
        patch_status(&self.context.cluster_api::<Node>(), node, &updated).await?;
        Ok(())
    }
}

impl Controller for Attachments {
    type Key = Key;
    const NAME: &'static str = "attachdetach";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let name = key.name.as_str();
        let node = self.nodes.get("", name);
        let wanted = match node {
            Some(_) => self.wanted(name),
            None => BTreeMap::new(),
        };
        let existing: Vec<_> = self
            .attachments
            .list()
            .into_iter()
            .filter(|attachment| attachment.spec.node_name == name)
            .collect();
        for (volume, (disk, pod)) in &wanted {
            if !existing
                .iter()
                .any(|attachment| volume_of(attachment) == Some(volume.as_str()))
            {
                self.attach(name, disk, pod).await?;
            }
        }
        let (mut usable, mut superfluous, mut again) =
            (BTreeSet::new(), Vec::new(), None::<Duration>);
        for attachment in existing {
            // Attachments of somebody else (without a volume of ours) are left alone.
            let volume = volume_of(&attachment).and_then(|volume| self.volumes.get("", volume));
            let disk = volume.and_then(|volume| Disk::of(&volume));
            let Some(disk) =
                disk.filter(|disk| attachment.name_any() == disk.attachment_name(name))
            else {
                continue;
            };
            let unique = disk.unique_name();
            match fate(
                node.as_deref(),
                &unique,
                wanted.contains_key(&disk.name),
                Timestamp::now(),
            ) {
                Fate::Detach if attachment.metadata.deletion_timestamp.is_none() => {
                    superfluous.push(attachment)
                }
                Fate::Detach => {}
                Fate::Wait(after) => {
                    usable.insert(unique);
                    again = again.into_iter().chain(after).min();
                }
                Fate::Keep if is_attached(&attachment) => {
                    usable.insert(unique);
                }
                Fate::Keep => {}
            }
        }
        if let Some(node) = &node {
            self.report(node, usable).await?;
        }
        let api = self.context.cluster_api::<VolumeAttachment>();
        for attachment in superfluous {
            let volume = volume_of(&attachment).unwrap_or_default();
            match node
                .as_deref()
                .and_then(|node| unready_for(node, Timestamp::now()))
            {
                None => info!(volume, node = name, "detaching"),
                Some(silent) => {
                    warn!(
                        volume,
                        node = name,
                        unready_s = silent.as_secs(),
                        "detaching from a node that is not ready"
                    );
                }
            }
            delete(&api, attachment.as_ref()).await?;
        }
        Ok(again.map_or(Outcome::Done, Outcome::Again))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DISK: &str = "kubernetes.io/csi/d.example^h";

    fn node(in_use: bool, ready: &str, taints: Value) -> Node {
        let in_use: Vec<&str> = if in_use { vec![DISK] } else { vec![] };
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status":
            {"volumesInUse": in_use, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:01:00Z"}]}}))
        .unwrap()
    }

    #[test]
    fn a_volume_leaves_a_node_only_when_it_is_certainly_not_mounted_there() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let judge = |node: &Node, wanted| fate(Some(node), DISK, wanted, at(120));
        assert_eq!(judge(&node(true, "True", json!([])), true), Fate::Keep);
        assert_eq!(
            judge(&node(true, "True", json!([])), false),
            Fate::Wait(None)
        );
        assert_eq!(judge(&node(false, "True", json!([])), false), Fate::Detach);
        let silent = node(true, "Unknown", json!([]));
        assert_eq!(
            judge(&silent, false),
            Fate::Wait(Some(Duration::from_mins(5)))
        );
        assert_eq!(fate(Some(&silent), DISK, false, at(60 + 360)), Fate::Detach);
        let dead = json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
        assert_eq!(judge(&node(true, "Unknown", dead), false), Fate::Detach);
        assert_eq!(fate(None, DISK, true, at(0)), Fate::Detach);
    }

    #[test]
    fn names_are_those_that_a_kubelet_looks_for() {
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d.example", "volumeHandle": "h"}}});
        let disk = Disk::of(&serde_json::from_value(volume).unwrap()).unwrap();
        assert!(disk.one_node_only);
        assert_eq!(disk.unique_name(), DISK);
        // sha256 of "hd.examplen".
        assert_eq!(disk.attachment_name("n"), format!("csi-{EXPECTED}"));
    }

    const EXPECTED: &str = "c9bcba1d279a5fa4fd20367ba087d6e8df4e8a5e822d1104a6acc787250602ba";
}
