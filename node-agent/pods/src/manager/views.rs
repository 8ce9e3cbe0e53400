//! What others may see of the node's pods, at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::model::PodId;
use crate::snapshot::{Container, Snapshot};

/// A pod as others may see it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The newest object.
    pub pod: Arc<Pod>,
    /// The runtime's state when it was last looked at.
    pub snapshot: Arc<Snapshot>,
}

impl PodView {
    /// The newest container of this name; without a name, of the only or first one.
    pub fn container(&self, name: Option<&str>) -> Option<&Container> {
        let name = match name {
            Some(name) => name,
            None => crate::model::main_slots(&self.pod).next()?.name(),
        };
        self.snapshot.newest(name)
    }
}

/// The current view of each pod.
#[derive(Default)]
pub(crate) struct Views {
    /// By namespace and name.
    pub(super) pods: RwLock<BTreeMap<(String, String), PodView>>,
    /// Counts changes, for those who wait for one.
    pub(super) changes: watch::Sender<u64>,
}

impl Views {
    pub(crate) fn show(&self, id: &PodId, pod: Arc<Pod>, snapshot: Snapshot) {
        let view = PodView {
            pod,
            snapshot: Arc::new(snapshot),
        };
        let key = (id.namespace.clone(), id.name.clone());
        let mut pods = self.pods.write();
        // A pod on its way out does not hide a later one of its name.
        let newer = pods.get(&key).is_some_and(|shown| {
            shown.pod.metadata.uid != view.pod.metadata.uid
                && shown.pod.metadata.creation_timestamp > view.pod.metadata.creation_timestamp
        });
        if newer {
            return;
        }
        pods.insert(key, view);
        drop(pods);
        self.changes.send_modify(|count| *count += 1);
    }

    /// A later pod of the same name stays shown.
    pub(crate) fn hide(&self, id: &PodId) {
        let key = (id.namespace.clone(), id.name.clone());
        let mut views = self.pods.write();
        let same = |view: &PodView| view.pod.metadata.uid.as_deref() == Some(id.uid.as_str());
        if views.get(&key).is_some_and(same) {
            views.remove(&key);
        }
        drop(views);
        self.changes.send_modify(|count| *count += 1);
    }
}
