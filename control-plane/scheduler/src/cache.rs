//! The scheduler's own view of nodes and their pods: what the informers say plus the pods that it has
//! decided about but that are not bound yet ("assumed"), so that the next decision counts them.
//!
//! The true state is the API server's. A snapshot is what one scheduling cycle works on; taking it
//! replaces only the nodes that changed since the last one.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::{
    node::NodeInfo,
    pod::{PodInfo, is_finished, node_name},
};

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Cache {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: AHashMap<String, Arc<NodeInfo>>,
    /// Node and form of every pod on a node, by uid.
    pods: AHashMap<String, (String, Arc<PodInfo>)>,
    assumed: AHashSet<String>,
    dirty: AHashSet<String>,
    /// A node came or went: the snapshot's list must be made anew.
    reshaped: bool,
    /// How many nodes have each image.
    images: AHashMap<String, usize>,
    /// `images` changed since the last snapshot.
    repainted: bool,
}

/// Counts the images of a node in (+1) or out (-1).
fn tally(images: &mut AHashMap<String, usize>, node: &NodeInfo, by: isize) {
    for name in node.images.keys() {
        let count = images.entry(name.clone()).or_default();
        *count = count.saturating_add_signed(by);
    }
    if by < 0 {
        images.retain(|_, count| *count > 0);
    }
}

/// The nodes that exist, as of one moment.
#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: Vec<Arc<NodeInfo>>,
    /// Shared: made anew only when nodes come or go.
    at: Arc<AHashMap<String, usize>>,
    /// How many nodes have each image.
    images: Arc<AHashMap<String, usize>>,
}

impl Snapshot {
    #[cfg(test)]
    pub(crate) fn of(nodes: impl IntoIterator<Item = NodeInfo>) -> Self {
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        let at = nodes
            .iter()
            .enumerate()
            .map(|(at, node)| (node.name.clone(), at))
            .collect();
        let mut images = AHashMap::new();
        for node in &nodes {
            tally(&mut images, node, 1);
        }
        Self {
            nodes,
            at: Arc::new(at),
            images: Arc::new(images),
        }
    }

    pub(crate) fn having(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(*self.at.get(name)?)
    }

    /// The same moment with another state of one node: what would be if pods came or went.
    pub(crate) fn with(&self, node: NodeInfo) -> Self {
        let mut changed = self.clone();
        if let Some(at) = changed.at.get(&node.name) {
            changed.nodes[*at] = Arc::new(node);
        }
        changed
    }
}

impl State {
    fn change(&mut self, node: &str, change: impl FnOnce(&mut NodeInfo)) {
        let info = self
            .nodes
            .entry(node.to_owned())
            .or_insert_with(|| Arc::new(NodeInfo::named(node)));
        change(Arc::make_mut(info));
        self.dirty.insert(node.to_owned());
        if info.node.is_none() && info.pods.is_empty() {
            self.nodes.remove(node);
        }
    }

    /// A change that may alter which images the node has.
    fn repaint(&mut self, node: &str, change: impl FnOnce(&mut NodeInfo)) {
        let before = self.nodes.get(node).cloned();
        self.change(node, change);
        let after = self.nodes.get(node).cloned();
        let painted =
            |node: &Option<Arc<NodeInfo>>| node.as_ref().map(|node| Arc::clone(&node.images));
        if painted(&before).unwrap_or_default() == painted(&after).unwrap_or_default() {
            return;
        }
        self.repainted = true;
        if let Some(before) = before {
            tally(&mut self.images, &before, -1);
        }
        if let Some(after) = after {
            tally(&mut self.images, &after, 1);
        }
    }

    fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.displace(&pod.uid);
        self.pods
            .insert(pod.uid.clone(), (node.to_owned(), Arc::clone(&pod)));
        self.change(node, |info| info.add(pod));
    }

    fn displace(&mut self, uid: &str) -> bool {
        let Some((node, _)) = self.pods.remove(uid) else {
            return false;
        };
        self.change(&node, |info| {
            info.remove(uid);
        });
        true
    }
}

impl Cache {
    pub(crate) fn set_node(&self, node: &Arc<Node>) {
        let mut state = self.state.lock();
        let name = node.name_any();
        let known = state
            .nodes
            .get(&name)
            .is_some_and(|info| info.node.is_some());
        state.reshaped |= !known;
        state.repaint(&name, |info| info.set_node(Arc::clone(node)));
    }

    pub(crate) fn remove_node(&self, name: &str) {
        let mut state = self.state.lock();
        state.reshaped = true;
        state.repaint(name, |info| {
            info.node = None;
            info.images = Arc::default();
        });
    }

    /// What the informer says of a pod that has a node.
    pub(crate) fn set_pod(&self, pod: &Arc<Pod>) {
        let Some(node) = node_name(pod) else { return };
        let uid = pod.uid().unwrap_or_default();
        let mut state = self.state.lock();
        state.assumed.remove(&uid);
        if is_finished(pod) {
            state.displace(&uid);
        } else {
            state.place(node, PodInfo::new(Arc::clone(pod)));
        }
    }

    pub(crate) fn remove_pod(&self, uid: &str) {
        let mut state = self.state.lock();
        state.assumed.remove(uid);
        state.displace(uid);
    }

    /// Counts a pod on a node from now on, though it is not bound yet.
    pub(crate) fn assume(&self, pod: &Arc<PodInfo>, node: &str) {
        let mut state = self.state.lock();
        state.assumed.insert(pod.uid.clone());
        state.place(node, Arc::clone(pod));
    }

    /// The binding failed: the pod holds nothing. Whatever the informer has confirmed stays.
    pub(crate) fn forget(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.assumed.remove(uid) {
            state.displace(uid);
        }
    }

    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.state.lock().assumed.contains(uid)
    }

    /// Whether the pod is counted on a node.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.state.lock().pods.contains_key(uid)
    }

    /// Brings a snapshot up to date.
    pub(crate) fn refresh(&self, snapshot: &mut Snapshot) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.repainted) {
            snapshot.images = Arc::new(state.images.clone());
        }
        if std::mem::take(&mut state.reshaped) {
            state.dirty.clear();
            let mut nodes: Vec<_> = state
                .nodes
                .values()
                .filter(|info| info.node.is_some())
                .cloned()
                .collect();
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            let at = nodes.iter().enumerate();
            snapshot.at = Arc::new(at.map(|(at, node)| (node.name.clone(), at)).collect());
            snapshot.nodes = nodes;
            return;
        }
        let dirty = std::mem::take(&mut state.dirty);
        for name in dirty {
            if let (Some(at), Some(info)) = (snapshot.at.get(&name), state.nodes.get(&name)) {
                snapshot.nodes[*at] = Arc::clone(info);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: Option<&str>, phase: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"nodeName": node, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1"}},
                    "ports": [{"containerPort": 1, "hostPort": 1}]}]},
            "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn node(name: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4"}}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn cpu(cache: &Cache, snapshot: &mut Snapshot, node: &str) -> i64 {
        cache.refresh(snapshot);
        snapshot.get(node).unwrap().requested.milli_cpu
    }

    #[test]
    fn an_assumed_pod_counts_until_it_is_confirmed_or_forgotten() {
        let (cache, mut snapshot) = (Cache::default(), Snapshot::default());
        cache.set_node(&node("n"));
        let info = PodInfo::new(pod("a", None, "Pending"));
        cache.assume(&info, "n");
        assert_eq!(cpu(&cache, &mut snapshot, "n"), 1000);
        cache.forget("a");
        assert_eq!(cpu(&cache, &mut snapshot, "n"), 0);
        assert!(snapshot.get("n").unwrap().host_ports.is_empty());

        cache.assume(&info, "n");
        cache.set_pod(&pod("a", Some("n"), "Pending"));
        cache.forget("a");
        assert_eq!(
            cpu(&cache, &mut snapshot, "n"),
            1000,
            "confirmed: nothing to forget"
        );
        cache.set_pod(&pod("a", Some("n"), "Succeeded"));
        assert_eq!(cpu(&cache, &mut snapshot, "n"), 0);
    }

    #[test]
    fn pods_seen_before_their_node_count_when_it_comes() {
        let (cache, mut snapshot) = (Cache::default(), Snapshot::default());
        cache.set_pod(&pod("a", Some("n"), "Running"));
        cache.refresh(&mut snapshot);
        assert!(snapshot.nodes.is_empty());
        cache.set_node(&node("n"));
        assert_eq!(cpu(&cache, &mut snapshot, "n"), 1000);
        cache.remove_node("n");
        cache.refresh(&mut snapshot);
        assert!(snapshot.nodes.is_empty());
        cache.remove_pod("a");
        cache.set_node(&node("n"));
        assert_eq!(cpu(&cache, &mut snapshot, "n"), 0);
    }

    #[test]
    fn images_are_counted_as_nodes_come_change_and_go() {
        let (cache, mut snapshot) = (Cache::default(), Snapshot::default());
        let with = |name: &str, images: &[&str]| {
            let node = json!({"metadata": {"name": name}, "status":
                {"images": [{"names": images, "sizeBytes": 1}]}});
            Arc::new(serde_json::from_value::<Node>(node).unwrap())
        };
        let mut having = |image: &str| {
            cache.refresh(&mut snapshot);
            snapshot.having(image)
        };
        cache.set_node(&with("a", &["x:1", "y:1"]));
        cache.set_node(&with("b", &["x:1"]));
        assert_eq!((having("x:1"), having("y:1")), (2, 1));
        cache.set_node(&with("a", &["y:1"]));
        assert_eq!((having("x:1"), having("y:1")), (1, 1));
        cache.remove_node("b");
        assert_eq!((having("x:1"), having("y:1")), (0, 1));
    }
}
