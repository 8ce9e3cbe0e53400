//! The objects of one kind with the indices that controllers read by: namespace, controlling owner and
//! one index of the kind's own choice (a pod's node, a slice's Service).
//!
//! Most objects of a large cluster are looked at once and then never again, and as a Rust value each takes
//! several times what it takes as JSON. So beyond [`LIVE`] objects of a kind the oldest are kept packed and
//! made into values again when somebody asks; a small cluster never packs anything.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use ahash::AHashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use windlass_packed::{Packed, Packer};

use crate::Key;

/// So many objects of a kind, those that changed last, are kept as values.
const LIVE: usize = 2_048;

type Index = AHashMap<String, HashSet<Arc<Key>, ahash::RandomState>>;

/// How the kind's own index value is read from an object.
pub(crate) type IndexBy<K> = fn(&K) -> Option<String>;

/// What an informer can keep.
pub trait Keepable:
    Resource + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K: Resource + Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Keepable for K {}

/// An object as the store holds it; cheap to clone.
pub(crate) enum Held<K> {
    Live(Arc<K>),
    Packed(Packed),
}

impl<K> Clone for Held<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Live(object) => Self::Live(object.clone()),
            Self::Packed(packed) => Self::Packed(packed.clone()),
        }
    }
}

/// All of an object that [`Held::metadata`] reads.
#[derive(Deserialize)]
struct Described {
    metadata: ObjectMeta,
}

const DECODES: &str = "what was encoded from a kind's type decodes as that type";

impl<K: Keepable> Held<K> {
    pub(crate) fn object(&self) -> Arc<K> {
        match self {
            Self::Live(object) => Arc::clone(object),
            Self::Packed(packed) => {
                let object = packed.read(|json| serde_json::from_slice(json));
                Arc::new(object.expect(DECODES))
            }
        }
    }

    /// Looks at the metadata only, which is cheaper than [`Self::object`].
    pub(crate) fn with_metadata<R>(&self, look: impl FnOnce(&ObjectMeta) -> R) -> R {
        match self {
            Self::Live(object) => look(object.meta()),
            Self::Packed(packed) => {
                let read = packed.read(|json| serde_json::from_slice::<Described>(json));
                look(&read.expect(DECODES).metadata)
            }
        }
    }
}

pub(crate) struct Store<K> {
    objects: AHashMap<Arc<Key>, Held<K>>,
    /// Which were written last, the oldest first; some again since, and some are gone.
    recent: VecDeque<Arc<Key>>,
    packer: Packer,
    by_namespace: Index,
    by_controller: Index,
    by_own_index: Index,
    index_by: IndexBy<K>,
}

/// The uid of the owner with `controller: true`, if there is one.
fn controller_uid<K: Resource>(object: &K) -> Option<String> {
    object
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true))
        .map(|owner| owner.uid.clone())
}

/// Objects that nobody controls are found by namespace: adoption asks for them.
fn controller_entry<K: Resource>(object: &K) -> String {
    controller_uid(object)
        .unwrap_or_else(|| orphan_entry(object.meta().namespace.as_deref().unwrap_or_default()))
}

fn orphan_entry(namespace: &str) -> String {
    // A uid never holds a slash.
    format!("orphan/{namespace}")
}

impl<K: Keepable> Store<K> {
    pub(crate) fn new(index_by: IndexBy<K>) -> Self {
        Self {
            objects: AHashMap::new(),
            recent: VecDeque::new(),
            packer: Packer::default(),
            by_namespace: Index::new(),
            by_controller: Index::new(),
            by_own_index: Index::new(),
            index_by,
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Held<K>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<Arc<Key>> {
        self.objects.keys().cloned().collect()
    }

    pub(crate) fn list(&self) -> Vec<Held<K>> {
        self.objects.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Held<K>> {
        self.resolve(&self.by_namespace, namespace)
    }

    pub(crate) fn controlled_by(&self, uid: &str) -> Vec<Held<K>> {
        self.resolve(&self.by_controller, uid)
    }

    pub(crate) fn orphans(&self, namespace: &str) -> Vec<Held<K>> {
        self.resolve(&self.by_controller, &orphan_entry(namespace))
    }

    pub(crate) fn indexed(&self, value: &str) -> Vec<Held<K>> {
        self.resolve(&self.by_own_index, value)
    }

    pub(crate) fn index_values(&self) -> Vec<String> {
        self.by_own_index.keys().map(ToString::to_string).collect()
    }

    fn resolve(&self, index: &Index, entry: &str) -> Vec<Held<K>> {
        let Some(keys) = index.get(entry) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| self.objects.get(key).cloned())
            .collect()
    }

    /// Puts an object in and returns the one it replaced.
    pub(crate) fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let key = Key::of(object.as_ref());
        let (key, old) = match self.take(&key) {
            Some((key, old)) => (key, Some(old)),
            None => (Arc::new(key), None),
        };
        enter(&mut self.by_namespace, &key.namespace, &key);
        enter(
            &mut self.by_controller,
            &controller_entry(object.as_ref()),
            &key,
        );
        if let Some(value) = (self.index_by)(&object) {
            enter(&mut self.by_own_index, &value, &key);
        }
        self.recent.push_back(Arc::clone(&key));
        self.objects.insert(key, Held::Live(object));
        self.pack_oldest();
        old
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        self.take(key).map(|(_, old)| old)
    }

    fn take(&mut self, key: &Key) -> Option<(Arc<Key>, Arc<K>)> {
        let (key, held) = self.objects.remove_entry(key)?;
        let old = held.object();
        leave(&mut self.by_namespace, &key.namespace, &key);
        leave(
            &mut self.by_controller,
            &controller_entry(old.as_ref()),
            &key,
        );
        if let Some(value) = (self.index_by)(&old) {
            leave(&mut self.by_own_index, &value, &key);
        }
        Some((key, old))
    }

    fn pack_oldest(&mut self) {
        if self.recent.len() <= LIVE {
            return;
        }
        let oldest = self.recent.pop_front();
        let (Some(oldest), true) = (oldest, self.objects.len() > LIVE) else {
            return;
        };
        if let Some(held) = self.objects.get_mut(&oldest)
            && let Held::Live(object) = held
            // What cannot be encoded stays as it is.
            && let Ok(json) = serde_json::to_vec(object.as_ref())
        {
            *held = Held::Packed(self.packer.pack(&json));
        }
    }
}

fn enter(index: &mut Index, entry: &str, key: &Arc<Key>) {
    match index.get_mut(entry) {
        Some(keys) => drop(keys.insert(Arc::clone(key))),
        None => drop(index.insert(entry.to_owned(), [Arc::clone(key)].into_iter().collect())),
    }
}

fn leave(index: &mut Index, entry: &str, key: &Key) {
    if let Some(keys) = index.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

    use super::*;

    fn pod(name: &str, node: Option<&str>, owner: Option<&str>) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                name: Some(name.into()),
                owner_references: owner.map(|uid| {
                    vec![OwnerReference {
                        uid: uid.into(),
                        controller: Some(true),
                        ..Default::default()
                    }]
                }),
                ..Default::default()
            },
            spec: Some(PodSpec {
                node_name: node.map(Into::into),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn names(pods: Vec<Held<Pod>>) -> Vec<String> {
        let mut names: Vec<_> = pods.iter().map(|pod| pod.object().name_any()).collect();
        names.sort();
        names
    }

    #[test]
    fn indices_follow_an_object_that_changes_node_and_owner() {
        let mut store =
            Store::<Pod>::new(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
        store.insert(pod("a", None, None));
        store.insert(pod("b", Some("n1"), Some("u1")));
        assert_eq!(names(store.orphans("ns")), ["a"]);
        assert_eq!(names(store.indexed("n1")), ["b"]);
        assert!(store.index_values().contains(&"n1".to_owned()));

        store.insert(pod("a", Some("n1"), Some("u1")));
        assert_eq!(names(store.orphans("ns")), [""; 0]);
        assert_eq!(names(store.controlled_by("u1")), ["a", "b"]);
        assert_eq!(names(store.indexed("n1")), ["a", "b"]);

        store.remove(&Key::new("ns", "a"));
        assert_eq!(names(store.controlled_by("u1")), ["b"]);
        assert_eq!(names(store.in_namespace("ns")), ["b"]);
        store.remove(&Key::new("ns", "b"));
        assert!(store.by_own_index.is_empty() && store.by_namespace.is_empty());
    }

    #[test]
    fn what_is_packed_reads_as_it_was_put_in_and_is_found_by_the_same_indices() {
        let mut store =
            Store::<Pod>::new(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
        let name = |number: usize| format!("pod-{number}");
        let all = LIVE * 2;
        for number in 0..all {
            store.insert(pod(&name(number), Some("n1"), Some("u1")));
        }
        let packed = |held: &Held<Pod>| matches!(held, Held::Packed(_));
        assert_eq!(
            store.list().iter().filter(|held| packed(held)).count(),
            LIVE
        );

        let first = store.get(&Key::new("ns", name(0))).unwrap();
        assert!(packed(&first));
        assert_eq!(first.object(), pod(&name(0), Some("n1"), Some("u1")));
        first.with_metadata(|metadata| assert_eq!(metadata.name.as_deref(), Some("pod-0")));
        assert_eq!(store.indexed("n1").len(), all);

        let old = store.insert(pod(&name(0), Some("n2"), None));
        assert_eq!(old, Some(pod(&name(0), Some("n1"), Some("u1"))));
        assert_eq!(names(store.indexed("n2")), ["pod-0"]);
        assert_eq!(store.controlled_by("u1").len(), all - 1);
        for number in 0..all {
            assert!(store.remove(&Key::new("ns", name(number))).is_some());
        }
        assert!(store.by_own_index.is_empty() && store.by_controller.is_empty());
    }
}
