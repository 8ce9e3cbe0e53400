//! The ReplicaSets of a Deployment: which is the newest, what the annotations on them say, and how the
//! next one is made.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use super::arithmetic::{Set, Wanted};
use crate::{runtime::controller_ref, template_hash::template_hash};

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const HASH_LABEL: &str = "pod-template-hash";

/// Annotations of a Deployment that say nothing about its ReplicaSets.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The old revisions that a ReplicaSet once was are kept in an annotation of bounded length.
const HISTORY_LIMIT: usize = 2000;

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(crate) fn status_replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

pub(crate) fn is_active(set: &ReplicaSet) -> bool {
    replicas(set) > 0
}

pub(crate) fn created(set: &ReplicaSet) -> i64 {
    set.metadata
        .creation_timestamp
        .as_ref()
        .map_or(i64::MAX, |time| time.0.as_second())
}

pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    set.annotations()
        .get(REVISION)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotations().get(annotation)?.parse().ok()
}

pub(crate) fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    number(set, DESIRED_REPLICAS)
}

/// The numbers that the arithmetic works on.
pub(crate) fn numbers(set: &ReplicaSet) -> Set {
    Set {
        name: set.name_any(),
        created: created(set),
        replicas: replicas(set),
        available: available(set),
        max_replicas: number(set, MAX_REPLICAS),
    }
}

/// All ReplicaSets of a Deployment, told apart.
#[derive(Clone)]
pub(crate) struct Sets {
    pub(crate) new: Option<Arc<ReplicaSet>>,
    /// Without the new one, oldest first.
    pub(crate) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub(crate) fn sort(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Self {
        all.sort_by_key(|set| (created(set), set.name_any()));
        let template = deployment
            .spec
            .as_ref()
            .map(|spec| without_hash(&spec.template));
        // The oldest that matches: a rollback finds the ReplicaSet that ran this template before.
        let at = all
            .iter()
            .position(|set| set_template(set).map(without_hash) == template);
        let new = at.map(|at| all.remove(at));
        Self { new, old: all }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub(crate) fn active(&self) -> Vec<&Arc<ReplicaSet>> {
        self.all().filter(|set| is_active(set)).collect()
    }

    pub(crate) fn total(&self) -> i32 {
        self.all().map(|set| replicas(set)).sum()
    }

    /// The revision that the new ReplicaSet is to have.
    pub(crate) fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
    }
}

fn set_template(set: &ReplicaSet) -> Option<&PodTemplateSpec> {
    set.spec.as_ref()?.template.as_ref()
}

/// Templates are equal whatever hash label was added to one of them.
fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut())
    {
        labels.remove(HASH_LABEL);
    }
    let meta = template.metadata.get_or_insert_default();
    // Absent and empty maps, and a template's creationTimestamp of null, mean the same.
    meta.creation_timestamp = None;
    for map in [&mut meta.labels, &mut meta.annotations] {
        if map.as_ref().is_some_and(BTreeMap::is_empty) {
            *map = None;
        }
    }
    template
}

pub(crate) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .map(|spec| without_hash(&spec.template));
    set_template(set).map(without_hash) == wanted
}

/// The ReplicaSet that a Deployment's template asks for, with no pods yet.
pub(crate) fn make(deployment: &Deployment, revision: i64) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash.clone());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate_new(deployment, &mut set, revision);
    annotate_size(&mut set, Wanted::of(deployment));
    Some(set)
}

/// Brings the annotations of the new ReplicaSet up to date: the Deployment's own, and the revision, which
/// moves up when an old ReplicaSet is rolled back to.
pub(crate) fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, next_revision: i64) {
    let before = revision(set);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.annotations() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if before < next_revision {
        annotations.insert(REVISION.to_owned(), next_revision.to_string());
        if before > 0 {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            *history = remember(history, before);
        }
    }
}

fn remember(history: &str, revision: i64) -> String {
    let mut past: Vec<&str> = history
        .split(',')
        .filter(|entry| !entry.is_empty())
        .collect();
    let revision = revision.to_string();
    past.push(&revision);
    while past.len() > 1 && past.iter().map(|entry| entry.len() + 1).sum::<usize>() > HISTORY_LIMIT
    {
        past.remove(0);
    }
    past.join(",")
}

/// Notes on a ReplicaSet for which total its size was chosen; returns whether that was news.
pub(crate) fn annotate_size(set: &mut ReplicaSet, wanted: Wanted) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, number) in [
        (DESIRED_REPLICAS, wanted.replicas),
        (MAX_REPLICAS, wanted.max_total()),
    ] {
        let number = number.to_string();
        if annotations.get(key) != Some(&number) {
            annotations.insert(key.to_owned(), number);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d",
                "annotations": {"note": "x", REVISION: "7"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": image}]}}},
        }))
        .unwrap()
    }

    #[test]
    fn a_made_replicaset_is_found_as_the_new_one_and_carries_the_hash_everywhere() {
        let deployment = deployment("a");
        let set = make(&deployment, 1).unwrap();
        let hash = set
            .metadata
            .name
            .as_deref()
            .unwrap()
            .strip_prefix("web-")
            .unwrap();
        assert_eq!(set.labels().get(HASH_LABEL).map(String::as_str), Some(hash));
        let spec = set.spec.as_ref().unwrap();
        assert_eq!(
            spec.selector
                .match_labels
                .as_ref()
                .unwrap()
                .get(HASH_LABEL)
                .unwrap(),
            hash
        );
        assert_eq!(set.annotations().get("note").map(String::as_str), Some("x"));
        assert_eq!(revision(&set), 1);
        let sets = Sets::sort(&deployment, vec![Arc::new(set)]);
        assert!(sets.new.is_some() && sets.old.is_empty());
    }

    #[test]
    fn a_rollback_finds_the_old_replicaset_and_gives_it_the_highest_revision() {
        let first = make(&deployment("a"), 1).unwrap();
        let second = make(&deployment("b"), 2).unwrap();
        let back = deployment("a");
        let sets = Sets::sort(&back, vec![Arc::new(first.clone()), Arc::new(second)]);
        assert_eq!(sets.new.as_ref().unwrap().name_any(), first.name_any());
        let mut again = first;
        annotate_new(&back, &mut again, sets.next_revision());
        assert_eq!(revision(&again), 3);
        assert_eq!(
            again
                .annotations()
                .get(REVISION_HISTORY)
                .map(String::as_str),
            Some("1")
        );
    }

    #[test]
    fn the_history_annotation_stays_bounded() {
        let mut history = String::new();
        for revision in 0..5000 {
            history = remember(&history, revision);
        }
        assert!(history.len() <= HISTORY_LIMIT);
        assert!(history.ends_with(",4998,4999"));
    }
}
