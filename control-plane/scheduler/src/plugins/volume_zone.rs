//! VolumeZone: a volume whose labels name a zone or region is used there.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use windlass_informers::volumes::{claims_of, volume_name};

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::Storage,
};

/// Each label with the older name that means the same.
const LABELS: [(&str, &str); 2] = [
    (
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/zone",
    ),
    (
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ),
];

pub(crate) struct VolumeZone(pub(crate) Arc<dyn Storage>);

/// One wanted label of a node: its two names and the values that will do.
struct Wanted(Vec<(&'static str, &'static str, Vec<String>)>);

fn places(volume: &PersistentVolume) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let labels = volume.labels();
    let mut wanted = Vec::new();
    for (name, older) in LABELS {
        if let Some(value) = labels.get(name).or_else(|| labels.get(older)) {
            // A volume that is replicated over zones joins their names.
            let values = value.split("__").map(ToOwned::to_owned).collect();
            wanted.push((name, older, values));
        }
    }
    wanted
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let wanted: Vec<_> = claims_of(&pod.pod)
            .into_iter()
            .filter_map(|name| self.0.claim(pod.namespace(), &name))
            .filter_map(|claim| self.0.volume(volume_name(&claim)?))
            .flat_map(|volume| places(&volume))
            .collect();
        (!wanted.is_empty()).then(|| Box::new(Wanted(wanted)) as Box<dyn Filter>)
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Storage | Event::Node(_))
    }
}

impl Filter for Wanted {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let labelled = LABELS
            .iter()
            .any(|(name, older)| node.label(name).or_else(|| node.label(older)).is_some());
        // A node without any such label is in a cluster without zones.
        let fits = !labelled
            || self.0.iter().all(|(name, older, values)| {
                node.label(name)
                    .or_else(|| node.label(older))
                    .is_some_and(|value| values.iter().any(|wanted| wanted == value))
            });
        if fits {
            return Ok(());
        }
        Err(Rejection {
            plugin: "VolumeZone",
            reasons: vec!["node(s) had no available volume zone".to_owned()],
            unresolvable: true,
        })
    }
}
