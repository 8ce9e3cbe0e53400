//! What the users of a cluster should see of this node's troubles: Events, and conditions of the Node.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

#[derive(Clone)]
pub(crate) struct NodeReports {
    recorder: Recorder,
    nodes: Api<Node>,
    node: String,
}

impl NodeReports {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter {
            controller: "windlass-node-agent".into(),
            instance: Some(node.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            nodes: Api::all(client),
            node: node.to_owned(),
        }
    }

    pub(crate) fn node_name(&self) -> &str {
        &self.node
    }

    /// The Node, for an Event about it. Its uid is its name, as kubelets write it.
    pub(crate) fn node(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        }
    }

    /// Records a warning, beside what the caller does.
    pub(crate) fn warn(
        &self,
        about: ObjectReference,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let event = Event {
                type_: EventType::Warning,
                reason: reason.to_owned(),
                note: Some(note),
                action: action.to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &about).await {
                tracing::debug!(%error, reason, "event not recorded");
            }
        });
    }

    /// Writes a condition of the Node.
    pub(crate) async fn set_condition(
        &self,
        kind: &str,
        status: &str,
        reason: &str,
        message: &str,
    ) {
        let now = jiff::Timestamp::now().to_string();
        // Merged by type: the conditions of others stay.
        let patch = Patch::Strategic(json!({"status": {"conditions": [{
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }]}}));
        let params = PatchParams::default();
        let patched = self.nodes.patch_status(&self.node, &params, &patch);
        if let Err(error) = patched.await {
            tracing::warn!(%error, "the node's condition is not told");
        }
    }

    /// The status of a condition, as the Node holds it.
    pub(crate) async fn condition(&self, kind: &str) -> Option<String> {
        match self.nodes.get(&self.node).await {
            Ok(node) => status_of(&node, kind),
            Err(error) => {
                tracing::debug!(%error, "the node's condition is not known");
                None
            }
        }
    }
}

fn status_of(node: &Node, kind: &str) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ours = conditions.iter().find(|it| it.type_ == kind)?;
    Some(ours.status.clone())
}
