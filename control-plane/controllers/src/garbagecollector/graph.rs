//! Who owns whom, over all kinds: nodes by uid, edges from ownerReferences. Pure; says what must be looked
//! at after each change, and leaves the looking to its caller.
//!
//! The graph is built from watches and lags. Nothing is deleted on its word alone: what it suspects is
//! checked against the API server first.

use std::collections::BTreeSet;

use ahash::{AHashMap, AHashSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// Where an object is found. The namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Identity {
    /// Where the owner that `reference` names would be, seen from a dependent in `namespace`.
    pub(crate) fn of_owner(reference: &OwnerReference, namespace: &str) -> Self {
        Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        }
    }
}

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// Perhaps nobody owns it any more, or it waits for its dependents.
    Examine(String),
    /// It is being deleted with `orphan`: its dependents are to be let go.
    Orphan(String),
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Examine(uid) => write!(f, "examine {uid}"),
            Self::Orphan(uid) => write!(f, "orphan {uid}"),
        }
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) dependents: AHashSet<String>,
    /// Named by a dependent but never seen.
    pub(crate) supposed: bool,
    pub(crate) deleting: bool,
    /// Being deleted with propagation Foreground.
    pub(crate) waits_for_dependents: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: AHashMap<String, Node>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(crate) fn dependents(&self, uid: &str) -> Vec<Node> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        node.dependents
            .iter()
            .filter_map(|uid| self.nodes.get(uid).cloned())
            .collect()
    }

    /// Dependents that do not allow `uid` to go before them.
    pub(crate) fn blocking_dependents(&self, uid: &str) -> Vec<Node> {
        self.dependents(uid)
            .into_iter()
            .filter(|dependent| {
                dependent
                    .owners
                    .iter()
                    .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
            })
            .collect()
    }

    /// Takes in what was seen of an object.
    pub(crate) fn observe(&mut self, identity: Identity, meta: &ObjectMeta) -> BTreeSet<Work> {
        let mut work = BTreeSet::new();
        let uid = identity.uid.clone();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let finalizer = |name: &str| {
            meta.finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        let deleting = meta.deletion_timestamp.is_some();
        let waits = deleting && finalizer(FOREGROUND);

        let before = self.nodes.get(&uid).cloned();
        let was_waiting = before
            .as_ref()
            .is_some_and(|node| node.waits_for_dependents);
        let node = Node {
            identity,
            owners: owners.clone(),
            dependents: before
                .as_ref()
                .map(|node| node.dependents.clone())
                .unwrap_or_default(),
            supposed: false,
            deleting,
            waits_for_dependents: waits,
        };
        let namespace = node.identity.namespace.clone();
        self.nodes.insert(uid.clone(), node);

        let old_owners = before.map(|node| node.owners).unwrap_or_default();
        self.link(&uid, &namespace, &old_owners, &owners, &mut work);

        if deleting && finalizer(ORPHAN) {
            work.insert(Work::Orphan(uid.clone()));
        }
        if waits {
            work.insert(Work::Examine(uid.clone()));
            if !was_waiting {
                let dependents = self.nodes[&uid].dependents.iter();
                work.extend(dependents.cloned().map(Work::Examine));
            }
        }
        work
    }

    fn link(
        &mut self,
        uid: &str,
        namespace: &str,
        old: &[OwnerReference],
        new: &[OwnerReference],
        work: &mut BTreeSet<Work>,
    ) {
        for gone in old
            .iter()
            .filter(|old| !new.iter().any(|new| new.uid == old.uid))
        {
            if let Some(owner) = self.nodes.get_mut(&gone.uid) {
                owner.dependents.remove(uid);
                if owner.waits_for_dependents {
                    work.insert(Work::Examine(gone.uid.clone()));
                }
            }
        }
        for reference in new {
            let owner = self.nodes.entry(reference.uid.clone()).or_insert_with(|| {
                // Perhaps its event is still to come, perhaps it never was: somebody must ask.
                work.insert(Work::Examine(reference.uid.clone()));
                Node {
                    identity: Identity::of_owner(reference, namespace),
                    owners: Vec::new(),
                    dependents: AHashSet::new(),
                    supposed: true,
                    deleting: false,
                    waits_for_dependents: false,
                }
            });
            owner.dependents.insert(uid.to_owned());
            let was = old.iter().find(|old| old.uid == reference.uid);
            let unblocked = was.is_some_and(|was| was.block_owner_deletion == Some(true))
                && reference.block_owner_deletion != Some(true);
            if owner.waits_for_dependents && unblocked {
                work.insert(Work::Examine(reference.uid.clone()));
            }
            if owner.waits_for_dependents && was.is_none() {
                work.insert(Work::Examine(uid.to_owned()));
            }
        }
    }

    /// An object is gone: its dependents may be nobody's now, and owners may have waited for it.
    pub(crate) fn forget(&mut self, uid: &str) -> BTreeSet<Work> {
        let mut work = BTreeSet::new();
        let Some(node) = self.nodes.remove(uid) else {
            return work;
        };
        for owner in &node.owners {
            let empty = match self.nodes.get_mut(&owner.uid) {
                Some(found) => {
                    found.dependents.remove(uid);
                    if found.waits_for_dependents {
                        work.insert(Work::Examine(owner.uid.clone()));
                    }
                    found.supposed && found.dependents.is_empty()
                }
                None => false,
            };
            if empty {
                self.nodes.remove(&owner.uid);
            }
        }
        work.extend(node.dependents.into_iter().map(Work::Examine));
        work
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn identity(uid: &str) -> Identity {
        Identity {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "ns".into(),
            name: uid.into(),
            uid: uid.into(),
        }
    }

    fn meta(owners: &[(&str, bool)], finalizers: &[&str]) -> ObjectMeta {
        ObjectMeta {
            owner_references: Some(
                owners
                    .iter()
                    .map(|(uid, blocks)| OwnerReference {
                        uid: (*uid).into(),
                        name: (*uid).into(),
                        block_owner_deletion: Some(*blocks),
                        ..Default::default()
                    })
                    .collect(),
            ),
            finalizers: Some(finalizers.iter().map(|name| (*name).to_owned()).collect()),
            deletion_timestamp: (!finalizers.is_empty()).then_some(Time(Timestamp::UNIX_EPOCH)),
            ..Default::default()
        }
    }

    fn examine(uids: &[&str]) -> BTreeSet<Work> {
        uids.iter()
            .map(|uid| Work::Examine((*uid).into()))
            .collect()
    }

    #[test]
    fn dependents_of_a_deleted_owner_are_examined() {
        let mut graph = Graph::default();
        assert_eq!(graph.observe(identity("rs"), &meta(&[], &[])), examine(&[]));
        assert_eq!(
            graph.observe(identity("a"), &meta(&[("rs", true)], &[])),
            examine(&[])
        );
        assert_eq!(
            graph.observe(identity("b"), &meta(&[("rs", true)], &[])),
            examine(&[])
        );
        assert_eq!(graph.forget("rs"), examine(&["a", "b"]));
    }

    #[test]
    fn an_owner_that_was_never_seen_is_examined_and_forgotten_with_its_last_dependent() {
        let mut graph = Graph::default();
        assert_eq!(
            graph.observe(identity("a"), &meta(&[("x", false)], &[])),
            examine(&["x"])
        );
        assert!(graph.get("x").unwrap().supposed);
        graph.observe(identity("x"), &meta(&[], &[]));
        assert!(!graph.get("x").unwrap().supposed);
        assert_eq!(graph.dependents("x").len(), 1);

        graph.observe(identity("b"), &meta(&[("y", false)], &[]));
        graph.forget("b");
        assert!(graph.get("y").is_none());
    }

    #[test]
    fn a_foreground_deletion_examines_dependents_and_then_itself_again() {
        let mut graph = Graph::default();
        graph.observe(identity("rs"), &meta(&[], &[]));
        graph.observe(identity("a"), &meta(&[("rs", true)], &[]));
        graph.observe(identity("b"), &meta(&[("rs", false)], &[]));
        let work = graph.observe(identity("rs"), &meta(&[], &[FOREGROUND]));
        assert_eq!(work, examine(&["a", "b", "rs"]));
        assert_eq!(graph.blocking_dependents("rs").len(), 1);
        assert_eq!(graph.forget("a"), examine(&["rs"]));
        assert!(graph.blocking_dependents("rs").is_empty());
        // A dependent that comes late is examined too.
        assert!(
            graph
                .observe(identity("c"), &meta(&[("rs", true)], &[]))
                .contains(&Work::Examine("c".into()))
        );
    }

    #[test]
    fn a_deletion_with_orphan_lets_go() {
        let mut graph = Graph::default();
        graph.observe(identity("rs"), &meta(&[], &[]));
        let work = graph.observe(identity("rs"), &meta(&[], &[ORPHAN]));
        assert_eq!(work, [Work::Orphan("rs".into())].into());
    }

    #[test]
    fn a_released_dependent_is_no_dependent() {
        let mut graph = Graph::default();
        graph.observe(identity("rs"), &meta(&[], &[]));
        graph.observe(identity("a"), &meta(&[("rs", true)], &[]));
        graph.observe(identity("a"), &meta(&[], &[]));
        assert_eq!(graph.forget("rs"), examine(&[]));
    }
}
