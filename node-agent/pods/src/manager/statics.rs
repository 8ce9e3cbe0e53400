//! The manager's part in static pods: which run, and that the API shows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::{Manager, gone};
use crate::model::{PodId, is_static};
use crate::static_pods::{Chores, Key, Mirror, key};

/// What the node's own manifests say, and how the API shows it.
#[derive(Default)]
pub(super) struct Statics {
    pub(super) pods: HashMap<Key, Arc<Pod>>,
    pub(super) mirrors: HashMap<Key, Mirror>,
    /// The uid of each static pod's present mirror.
    told: HashMap<Key, watch::Sender<Option<String>>>,
}

impl Manager {
    /// Takes in what the manifests say now.
    pub(super) fn take_manifests(&mut self, pods: Vec<Pod>) {
        let pods = pods.into_iter().map(|pod| (key(&pod), Arc::new(pod)));
        self.statics.pods = pods.collect();
        let wanted: HashSet<&String> = self
            .statics
            .pods
            .values()
            .filter_map(|pod| pod.metadata.uid.as_ref())
            .collect();
        for (uid, handle) in self.handles.iter().filter(|(_, handle)| handle.is_static) {
            if !wanted.contains(uid) {
                gone(handle, None);
            }
        }
        self.start_statics();
        self.tend_mirrors();
    }

    /// Starts the static pods that do not run. A changed one waits for the end of the old one,
    /// with which it shares its name and perhaps ports.
    pub(super) fn start_statics(&mut self) {
        let held: HashSet<Key> = self
            .handles
            .values()
            .filter(|handle| handle.is_static)
            .map(|handle| key(&handle.desired.borrow().pod))
            .collect();
        let due = self
            .statics
            .pods
            .iter()
            .filter(|(key, _)| !held.contains(*key));
        let due: Vec<Arc<Pod>> = due.map(|(_, pod)| pod.clone()).collect();
        for pod in due {
            self.wanted((*pod).clone());
        }
    }

    /// Has the API show what runs, one round at a time.
    pub(super) fn tend_mirrors(&mut self) {
        for (key, told) in &self.statics.told {
            let pod = self.statics.pods.get(key);
            let mirror = self.statics.mirrors.get(key);
            let uid = mirror
                .filter(|mirror| pod.is_some_and(|pod| mirror.shows(pod)))
                .map(|mirror| mirror.uid.clone());
            told.send_if_modified(|known| {
                let changed = *known != uid;
                *known = uid;
                changed
            });
        }
        if !self.synced || !self.mirroring.is_empty() {
            return;
        }
        let chores = Chores::find(&self.statics.pods, &self.statics.mirrors);
        let Some(node) = self
            .node
            .object
            .borrow()
            .clone()
            .filter(|_| !chores.is_empty())
        else {
            return;
        };
        self.mirroring
            .spawn(chores.perform(self.node.client.clone(), node));
    }

    /// Where a static pod's status goes.
    pub(super) fn mirror_of(
        &mut self,
        id: &PodId,
        pod: &Pod,
    ) -> Option<watch::Receiver<Option<String>>> {
        if !is_static(pod) {
            return None;
        }
        let key = (id.namespace.clone(), id.name.clone());
        let told = self.statics.told.entry(key).or_default();
        Some(told.subscribe())
    }
}
