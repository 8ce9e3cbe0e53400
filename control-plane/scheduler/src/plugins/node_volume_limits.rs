//! NodeVolumeLimits: a CSI driver attaches only so many volumes to a node, as its CSINode says.

use std::{collections::HashSet, sync::Arc};

use windlass_informers::volumes::{claims_of, class_of, volume_name};

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::Storage,
};

pub(crate) struct NodeVolumeLimits(pub(crate) Arc<dyn Storage>);

struct Limits<'a> {
    storage: &'a dyn Storage,
    wanted: HashSet<(String, String)>,
}

/// Driver and handle of each volume of a pod; a volume that is still to be made has its claim's name.
fn attachments(storage: &dyn Storage, pod: &PodInfo) -> HashSet<(String, String)> {
    let of_claim = |name: String| {
        let claim = storage.claim(pod.namespace(), &name)?;
        if let Some(volume) = volume_name(&claim).and_then(|name| storage.volume(name)) {
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((csi.driver.clone(), csi.volume_handle.clone()));
        }
        let class = storage.class(class_of(&claim))?;
        Some((
            class.provisioner.clone(),
            format!("{}/{name}", pod.namespace()),
        ))
    };
    claims_of(&pod.pod)
        .into_iter()
        .filter_map(of_claim)
        .collect()
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let wanted = attachments(self.0.as_ref(), pod);
        (!wanted.is_empty()).then(|| {
            Box::new(Limits {
                storage: self.0.as_ref(),
                wanted,
            }) as Box<dyn Filter>
        })
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Storage | Event::Node(_) | Event::PodGone(_))
    }
}

impl Filter for Limits<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(drivers) = self.storage.drivers(&node.name) else {
            return Ok(());
        };
        let limits = drivers.spec.drivers.iter().filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.as_str(), usize::try_from(count).unwrap_or(0)))
        });
        let limits: Vec<_> = limits
            .filter(|(driver, _)| self.wanted.iter().any(|(wanted, _)| wanted == driver))
            .collect();
        if limits.is_empty() {
            return Ok(());
        }
        let mut attached: HashSet<_> = node
            .pods
            .iter()
            .flat_map(|pod| attachments(self.storage, pod))
            .collect();
        let fresh: Vec<_> = self.wanted.difference(&attached).cloned().collect();
        let news = |driver: &str| fresh.iter().any(|(of, _)| of == driver);
        let touched: Vec<_> = limits
            .into_iter()
            .filter(|(driver, _)| news(driver))
            .collect();
        attached.extend(fresh.iter().cloned());
        for (driver, most) in touched {
            if attached.iter().filter(|(of, _)| of == driver).count() > most {
                return Err(Rejection {
                    plugin: "NodeVolumeLimits",
                    reasons: vec!["node(s) exceed max volume count".to_owned()],
                    unresolvable: false,
                });
            }
        }
        Ok(())
    }
}
