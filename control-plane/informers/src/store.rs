//! The objects of one kind with the indices that controllers read by: namespace, controlling owner and
//! one index of the kind's own choice (a pod's node, a slice's Service).

use std::{collections::HashSet, sync::Arc};

use ahash::AHashMap;
use kube::{Resource, ResourceExt};

use crate::Key;

type Index = AHashMap<String, HashSet<Key, ahash::RandomState>>;

/// How the kind's own index value is read from an object.
pub(crate) type IndexBy<K> = fn(&K) -> Option<String>;

pub(crate) struct Store<K> {
    objects: AHashMap<Key, Arc<K>>,
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

impl<K: Resource> Store<K> {
    pub(crate) fn new(index_by: IndexBy<K>) -> Self {
        Self {
            objects: AHashMap::new(),
            by_namespace: Index::new(),
            by_controller: Index::new(),
            by_own_index: Index::new(),
            index_by,
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.objects.keys().cloned().collect()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.objects.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.resolve(&self.by_namespace, namespace)
    }

    pub(crate) fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.resolve(&self.by_controller, uid)
    }

    pub(crate) fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.resolve(&self.by_controller, &orphan_entry(namespace))
    }

    pub(crate) fn indexed(&self, value: &str) -> Vec<Arc<K>> {
        self.resolve(&self.by_own_index, value)
    }

    fn resolve(&self, index: &Index, entry: &str) -> Vec<Arc<K>> {
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
        let old = self.remove(&key);
        enter(&mut self.by_namespace, key.namespace.clone(), &key);
        enter(
            &mut self.by_controller,
            controller_entry(object.as_ref()),
            &key,
        );
        if let Some(value) = (self.index_by)(&object) {
            enter(&mut self.by_own_index, value, &key);
        }
        self.objects.insert(key, object);
        old
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        leave(&mut self.by_namespace, &key.namespace, key);
        leave(
            &mut self.by_controller,
            &controller_entry(old.as_ref()),
            key,
        );
        if let Some(value) = (self.index_by)(&old) {
            leave(&mut self.by_own_index, &value, key);
        }
        Some(old)
    }
}

fn enter(index: &mut Index, entry: String, key: &Key) {
    index.entry(entry).or_default().insert(key.clone());
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

    fn names(pods: Vec<Arc<Pod>>) -> Vec<String> {
        let mut names: Vec<_> = pods.iter().map(|p| p.name_any()).collect();
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
}
