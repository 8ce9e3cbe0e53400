//! Pods that nothing tells apart: in one namespace, with equal labels and equal terms about other pods.
//!
//! A cluster has far fewer kin than pods. Whatever a selector or a term says of one pod holds for all of its
//! kin, so that a scheduling cycle asks once for each kin, and a node counts its pods by kin.

use std::sync::{Arc, LazyLock};

use ahash::{AHashMap, RandomState};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::pod::PodInfo;

/// What pods of one kin have in common: a fingerprint whose keys are drawn anew in each process, so that nobody
/// can make two kin look like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kin(u128);

impl Kin {
    pub(crate) fn of(pod: &Pod) -> Self {
        static HASHERS: LazyLock<[RandomState; 2]> =
            LazyLock::new(|| [RandomState::new(), RandomState::new()]);
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let terms = affinity.map(|it| (&it.pod_affinity, &it.pod_anti_affinity));
        // Written out: the types of the API have no hash.
        let terms = terms.and_then(|terms| serde_json::to_vec(&terms).ok());
        let namespace = &pod.metadata.namespace;
        let [high, low] = HASHERS
            .each_ref()
            .map(|hasher| u128::from(hasher.hash_one((namespace, pod.labels(), &terms))));
        Self(high << 64 | low)
    }
}

/// The pods of one kin on a node.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// One that is or was among them, to ask about.
    pub(crate) one: Arc<PodInfo>,
    pub(crate) pods: i64,
    /// Those of them that are not terminating.
    pub(crate) staying: i64,
}

/// The groups of a node's pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(Vec<Group>);

impl Groups {
    pub(crate) fn add(&mut self, pod: &Arc<PodInfo>) {
        let staying = i64::from(!pod.is_terminating());
        match self.0.iter_mut().find(|group| group.one.kin == pod.kin) {
            Some(group) => {
                group.pods += 1;
                group.staying += staying;
            }
            None => self.0.push(Group {
                one: Arc::clone(pod),
                pods: 1,
                staying,
            }),
        }
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo) {
        let Some(at) = self.0.iter().position(|group| group.one.kin == pod.kin) else {
            return;
        };
        let group = &mut self.0[at];
        group.pods -= 1;
        group.staying -= i64::from(!pod.is_terminating());
        if group.pods == 0 {
            self.0.swap_remove(at);
        }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Group> {
        self.0.iter()
    }
}

/// A question about pods, and what was answered for each kin.
pub(crate) struct Asked<F, T> {
    ask: F,
    answers: AHashMap<Kin, T>,
}

impl<F: Fn(&PodInfo) -> T, T> Asked<F, T> {
    pub(crate) fn new(ask: F) -> Self {
        Self {
            ask,
            answers: AHashMap::new(),
        }
    }

    pub(crate) fn of(&mut self, group: &Group) -> &T {
        let one = &group.one;
        self.answers
            .entry(one.kin)
            .or_insert_with(|| (self.ask)(one))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(labels: Value, spec: Value, deleted: Option<&str>) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "labels": labels, "deletionTimestamp": deleted},
            "spec": spec});
        PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn kin_have_equal_labels_and_terms_whatever_else_they_are() {
        let apart = |key: &str| {
            json!({"containers": [], "affinity": {"podAntiAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key}]}}})
        };
        let web = || json!({"app": "web"});
        let kin = |labels, spec| pod(labels, spec, None).kin;
        let plain = kin(web(), json!({"containers": []}));
        assert_eq!(
            plain,
            kin(web(), json!({"containers": [], "nodeName": "n"}))
        );
        assert_ne!(plain, kin(json!({"app": "db"}), json!({"containers": []})));
        assert_ne!(plain, kin(web(), apart("zone")));
        assert_ne!(kin(web(), apart("host")), kin(web(), apart("zone")));
        assert_eq!(kin(web(), apart("zone")), kin(web(), apart("zone")));
    }

    #[test]
    fn groups_count_who_is_there_and_who_stays() {
        let plain = || json!({"containers": []});
        let stays = pod(json!({"app": "web"}), plain(), None);
        let goes = pod(json!({"app": "web"}), plain(), Some("2026-01-01T00:00:00Z"));
        let other = pod(json!({}), plain(), None);
        let mut groups = Groups::default();
        for pod in [&stays, &goes, &other] {
            groups.add(pod);
        }
        let counts = |groups: &Groups| -> Vec<(i64, i64)> {
            groups.iter().map(|it| (it.pods, it.staying)).collect()
        };
        assert_eq!(counts(&groups), [(2, 1), (1, 1)]);
        groups.remove(&stays);
        assert_eq!(counts(&groups), [(1, 0), (1, 1)]);
        groups.remove(&goes);
        assert_eq!(counts(&groups), [(1, 1)]);
    }

    #[test]
    fn a_kin_is_asked_for_once() {
        let asked = std::cell::Cell::new(0);
        let mut question = Asked::new(|pod: &PodInfo| {
            asked.set(asked.get() + 1);
            pod.namespace() == "ns"
        });
        let mut groups = Groups::default();
        groups.add(&pod(json!({}), json!({"containers": []}), None));
        for _ in 0..3 {
            assert!(question.of(groups.iter().next().unwrap()));
        }
        assert_eq!(asked.get(), 1);
    }
}
