//! VolumeBinding: a pod runs where its volumes are, or where volumes for its claims can be had.

use std::sync::Arc;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    storage::{Claims, Storage, claims, decide},
};

pub(crate) struct VolumeBinding(pub(crate) Arc<dyn Storage>);

struct Reachable<'a> {
    storage: &'a dyn Storage,
    claims: Claims,
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn refuse(&self, pod: &PodInfo) -> Option<String> {
        claims(self.0.as_ref(), pod).err()
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let claims = claims(self.0.as_ref(), pod).ok()?;
        (!claims.bound.is_empty() || !claims.waiting.is_empty()).then(|| {
            Box::new(Reachable {
                storage: self.0.as_ref(),
                claims,
            }) as Box<dyn Filter>
        })
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Storage | Event::Node(_) | Event::PodChanged)
    }
}

impl Filter for Reachable<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        match decide(self.storage, &self.claims, node) {
            Ok(_) => Ok(()),
            Err(reasons) => Err(Rejection {
                plugin: "VolumeBinding",
                reasons: reasons.into_iter().map(ToOwned::to_owned).collect(),
                unresolvable: true,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::tests::*;

    fn user() -> Arc<PodInfo> {
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        pod("p", json!({}), json!({"volumes": volumes}))
    }

    fn local(name: &str, host: &str) -> serde_json::Value {
        json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "5Gi"},
            "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "host", "operator": "In", "values": [host]}]}]}}},
            "status": {"phase": "Available"}})
    }

    fn claim(more: serde_json::Value) -> serde_json::Value {
        let mut claim = json!({"metadata": {"name": "data", "namespace": "ns", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            for (inner, value) in value.as_object().into_iter().flatten() {
                claim[key][inner] = value.clone();
            }
        }
        claim
    }

    fn class(provisioner: &str, mode: &str) -> serde_json::Value {
        json!({"metadata": {"name": "local"}, "provisioner": provisioner, "volumeBindingMode": mode})
    }

    fn two_hosts() -> Snapshot {
        let host = |name: &str| node(name, json!({"host": name}), json!({}), &[]);
        Snapshot::of([host("a"), host("b")])
    }

    #[test]
    fn a_pod_follows_its_bound_volume() {
        let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": "v"}});
        let storage = Disks::new(&[claim(bound)], &[local("v", "b")], &[]);
        let plugin = VolumeBinding(Arc::new(storage));
        assert_eq!(plugin.refuse(&user()), None);
        assert_eq!(
            reasons(&plugin, &user(), &two_hosts()),
            [
                Some("node(s) didn't match PersistentVolume's node affinity".to_owned()),
                None
            ]
        );
    }

    #[test]
    fn a_waiting_claim_goes_where_a_volume_is_or_can_be_made() {
        let waiting = "WaitForFirstConsumer";
        let none = "kubernetes.io/no-provisioner";
        let by_hand = Disks::new(
            &[claim(json!({}))],
            &[local("v", "b")],
            &[class(none, waiting)],
        );
        let plugin = VolumeBinding(Arc::new(by_hand));
        assert_eq!(
            reasons(&plugin, &user(), &two_hosts()),
            [
                Some("node(s) didn't find available persistent volumes to bind".to_owned()),
                None
            ]
        );
        let made = Disks::new(&[claim(json!({}))], &[], &[class("disks.example", waiting)]);
        let plugin = VolumeBinding(Arc::new(made));
        assert_eq!(reasons(&plugin, &user(), &two_hosts()), [None, None]);
    }

    #[test]
    fn without_its_claim_no_node_is_asked() {
        let refused = |claims: &[serde_json::Value], mode| {
            let storage = Disks::new(claims, &[], &[class("disks.example", mode)]);
            VolumeBinding(Arc::new(storage)).refuse(&user())
        };
        assert_eq!(
            refused(&[], "Immediate").as_deref(),
            Some("persistentvolumeclaim \"data\" not found")
        );
        assert_eq!(
            refused(&[claim(json!({}))], "Immediate").as_deref(),
            Some("pod has unbound immediate PersistentVolumeClaims")
        );
        assert_eq!(refused(&[claim(json!({}))], "WaitForFirstConsumer"), None);
    }
}
