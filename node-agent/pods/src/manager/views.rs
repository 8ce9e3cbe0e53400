//! What others may see of the node's pods, at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::model::{PodId, container_status};
use crate::snapshot::{Container, Snapshot};

/// A pod as others may see it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The newest object.
    pub pod: Arc<Pod>,
    /// The runtime's state when it was last looked at.
    pub snapshot: Arc<Snapshot>,
    /// What was told of it last; the object shows it when it has been to the API server and back.
    status: Arc<PodStatus>,
}

impl PodView {
    fn is(&self, id: &PodId) -> bool {
        self.pod.metadata.uid.as_deref() == Some(id.uid.as_str())
    }

    /// Why a container does not run yet.
    pub fn waiting_reason(&self, container: &str) -> Option<&str> {
        let state = container_status(&self.status, container)?.state.as_ref()?;
        state.waiting.as_ref()?.reason.as_deref()
    }

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
        let key = (id.namespace.clone(), id.name.clone());
        let mut pods = self.pods.write();
        let shown = pods.get(&key).filter(|shown| shown.is(id));
        let view = PodView {
            status: match shown {
                Some(shown) => shown.status.clone(),
                None => Arc::new(pod.status.clone().unwrap_or_default()),
            },
            pod,
            snapshot: Arc::new(snapshot),
        };
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

    /// What is told of a pod that is shown.
    pub(crate) fn tell(&self, id: &PodId, status: &PodStatus) {
        let key = (id.namespace.clone(), id.name.clone());
        if let Some(shown) = self.pods.write().get_mut(&key).filter(|shown| shown.is(id)) {
            shown.status = Arc::new(status.clone());
        }
    }

    /// A later pod of the same name stays shown.
    pub(crate) fn hide(&self, id: &PodId) {
        let key = (id.namespace.clone(), id.name.clone());
        let mut views = self.pods.write();
        if views.get(&key).is_some_and(|shown| shown.is(id)) {
            views.remove(&key);
        }
        drop(views);
        self.changes.send_modify(|count| *count += 1);
    }
}
