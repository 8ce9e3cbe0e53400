//! VolumeRestrictions: a ReadWriteOncePod claim is one pod's alone in the whole cluster (KEP-2485).

use std::sync::Arc;

use windlass_informers::volumes::claims_of;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::Storage,
};

pub(crate) struct VolumeRestrictions(pub(crate) Arc<dyn Storage>);

struct Exclusive<'a> {
    pod: &'a PodInfo,
    claims: Vec<String>,
    /// A node that runs a user now; a cluster without one needs no check.
    in_use: bool,
}

fn uses(pod: &PodInfo, other: &PodInfo, claims: &[String]) -> bool {
    other.uid != pod.uid
        && other.namespace() == pod.namespace()
        && claims_of(&other.pod)
            .iter()
            .any(|name| claims.contains(name))
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let mut claims = claims_of(&pod.pod);
        claims.retain(|name| {
            let claim = self.0.claim(pod.namespace(), name);
            claim.is_some_and(|claim| {
                let modes = claim
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.access_modes.as_ref());
                modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
            })
        });
        if claims.is_empty() {
            return None;
        }
        let in_use = snapshot
            .nodes
            .iter()
            .flat_map(|node| &node.pods)
            .any(|other| uses(pod, other, &claims));
        Some(Box::new(Exclusive {
            pod,
            claims,
            in_use,
        }))
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::PodGone(gone) => {
                let mine = claims_of(&pod.pod);
                gone.metadata.namespace.as_deref() == Some(pod.namespace())
                    && claims_of(gone).iter().any(|name| mine.contains(name))
            }
            Event::Storage => true,
            _ => false,
        }
    }
}

impl Filter for Exclusive<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.in_use {
            return Ok(());
        }
        // Preemption can help only on the node of the present user.
        let here = node
            .pods
            .iter()
            .any(|other| uses(self.pod, other, &self.claims));
        Err(Rejection {
            plugin: "VolumeRestrictions",
            reasons: vec![
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod \
                 access mode"
                    .to_owned(),
            ],
            unresolvable: !here,
        })
    }
}
