//! The CSINode, which tells the cluster of this node's drivers: how they call the node, from where their volumes are
//! reached, and how many they attach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use windlass_volumes::csi::NodeInfo;

use crate::node::Node;

/// On the Node: how each driver calls it.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
const ATTEMPTS: usize = 5;
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct CsiNode {
    node: Arc<Node>,
    api: Api<CSINode>,
}

impl CsiNode {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let api = Api::all(node.client.clone());
        Self { node, api }
    }

    fn name(&self) -> &str {
        &self.node.config.node.name
    }

    /// Makes the object as soon as the Node is there, which owns it; without drivers it says that the node has none.
    pub(super) async fn make(&self) {
        let mut object = self.node.object.clone();
        if object.wait_for(Option::is_some).await.is_err() {
            return;
        }
        while let Err(error) = self.current().await {
            tracing::debug!(error, "csinode not made yet");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn current(&self) -> Result<CSINode, String> {
        let text = |error: kube::Error| format!("CSINode {}: {error}", self.name());
        if let Some(found) = self.api.get_opt(self.name()).await.map_err(text)? {
            return Ok(found);
        }
        let node = self.node.object.borrow().clone();
        let uid = node.and_then(|node| node.metadata.uid.clone());
        let owner = uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name().to_owned(),
            uid,
            ..OwnerReference::default()
        });
        let object = CSINode {
            metadata: ObjectMeta {
                name: Some(self.name().to_owned()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: CSINodeSpec::default(),
        };
        let made = self.api.create(&PostParams::default(), &object).await;
        made.map_err(text)
    }

    pub(super) async fn add(&self, driver: &str, info: &NodeInfo) -> Result<(), String> {
        let entry = CSINodeDriver {
            name: driver.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: Some(info.topology.keys().cloned().collect()),
            allocatable: info.most.map(|most| VolumeNodeResources {
                count: Some(i32::try_from(most).unwrap_or(i32::MAX)),
            }),
        };
        let id = Some(info.node_id.as_str());
        self.tell_node(driver, id, &info.topology).await?;
        self.change(driver, Some(&entry)).await
    }

    /// The Node keeps its labels: volumes are where they were.
    pub(super) async fn remove(&self, driver: &str) {
        let told = self.tell_node(driver, None, &BTreeMap::new()).await;
        let result = told.and(self.change(driver, None).await);
        if let Err(error) = result {
            tracing::warn!(
                driver,
                error,
                "the cluster is not told that the driver is gone"
            );
        }
    }

    async fn change(&self, driver: &str, entry: Option<&CSINodeDriver>) -> Result<(), String> {
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            let current = self.current().await?;
            let drivers = &current.spec.drivers;
            let known = drivers.iter().find(|known| known.name == driver);
            if known == entry {
                return Ok(());
            }
            let others = drivers.iter().filter(|known| known.name != driver);
            let wanted: Vec<&CSINodeDriver> = others.chain(entry).collect();
            let patch = json!({
                "metadata": {"uid": current.metadata.uid,
                             "resourceVersion": current.metadata.resource_version},
                "spec": {"drivers": wanted},
            });
            let params = PatchParams::default();
            match self
                .api
                .patch(self.name(), &params, &Patch::Merge(patch))
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) => problem = error.to_string(),
            }
        }
        Err(format!("CSINode {}: {problem}", self.name()))
    }

    /// The Node's annotation, and the labels by which volumes are kept near it.
    async fn tell_node(
        &self,
        driver: &str,
        id: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let nodes: Api<NodeObject> = Api::all(self.node.client.clone());
        let text = |error: kube::Error| format!("Node {}: {error}", self.name());
        let object = nodes.get(self.name()).await.map_err(text)?;
        let known = object.metadata.annotations.unwrap_or_default();
        let ids = with_id(known.get(NODE_IDS).map(String::as_str), driver, id);
        let patch = json!({"metadata": {
            "uid": object.metadata.uid, "labels": labels, "annotations": {NODE_IDS: ids},
        }});
        let params = PatchParams::default();
        let told = nodes
            .patch(self.name(), &params, &Patch::Merge(patch))
            .await;
        told.map(drop).map_err(text)
    }
}

/// The annotation's text with a driver's id, or without it; none if nothing is left.
fn with_id(known: Option<&str>, driver: &str, id: Option<&str>) -> Option<String> {
    let known = known.and_then(|text| serde_json::from_str(text).ok());
    let mut ids: BTreeMap<String, String> = known.unwrap_or_default();
    match id {
        Some(id) => ids.insert(driver.to_owned(), id.to_owned()),
        None => ids.remove(driver),
    };
    (!ids.is_empty()).then(|| serde_json::to_string(&ids).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_names_come_and_go_with_the_drivers() {
        let one = with_id(None, "a", Some("1"));
        assert_eq!(one.as_deref(), Some(r#"{"a":"1"}"#));
        let two = with_id(one.as_deref(), "b", Some("2"));
        assert_eq!(two.as_deref(), Some(r#"{"a":"1","b":"2"}"#));
        assert_eq!(
            with_id(two.as_deref(), "a", None).as_deref(),
            Some(r#"{"b":"2"}"#)
        );
        assert_eq!(with_id(one.as_deref(), "a", None), None);
        assert_eq!(with_id(Some("broken"), "a", None), None);
    }
}
