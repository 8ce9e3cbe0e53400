//! What the users of a cluster should see when a node cannot hold its policies: a condition of the Node,
//! and an Event on it.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

/// True while the policy tables are not what the cluster's policies say.
const DEGRADED: &str = "NetworkPolicyDegraded";

pub(super) struct Trouble {
    recorder: Recorder,
    nodes: Api<Node>,
    node: String,
    /// What the Node was told last; none: an earlier run may have left anything.
    told: Option<String>,
    known: bool,
}

impl Trouble {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter {
            controller: "windlass-node-agent".into(),
            instance: Some(node.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            nodes: Api::all(client),
            node: node.to_owned(),
            told: None,
            known: false,
        }
    }

    pub(super) fn failed(&mut self, message: &str) {
        self.known = true;
        if self.told.as_deref() == Some(message) {
            return;
        }
        self.told = Some(message.to_owned());
        self.tell("True", "CannotWrite", message.to_owned(), None);
        let (recorder, note) = (self.recorder.clone(), message.to_owned());
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        tokio::spawn(async move {
            let event = Event {
                type_: EventType::Warning,
                reason: DEGRADED.to_owned(),
                note: Some(note),
                action: "Write".to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &about).await {
                tracing::debug!(%error, reason = DEGRADED, "event not recorded");
            }
        });
    }

    pub(super) fn recovered(&mut self) {
        let first = !std::mem::replace(&mut self.known, true);
        if self.told.take().is_some() || first {
            let only = first.then_some("True");
            self.tell(
                "False",
                "Written",
                "the policy tables are written".into(),
                only,
            );
        }
    }

    /// `only`: when the Node says this now.
    fn tell(
        &self,
        status: &'static str,
        reason: &'static str,
        message: String,
        only: Option<&'static str>,
    ) {
        let (nodes, node) = (self.nodes.clone(), self.node.clone());
        tokio::spawn(async move {
            if let Some(only) = only {
                let says = match nodes.get(&node).await {
                    Ok(held) => condition(&held),
                    Err(error) => {
                        tracing::debug!(%error, "the node's condition is not known");
                        None
                    }
                };
                if says.as_deref() != Some(only) {
                    return;
                }
            }
            let now = jiff::Timestamp::now().to_string();
            let patch = json!({"status": {"conditions": [{
                "type": DEGRADED, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }]}});
            // Merged by type: the conditions of others stay.
            let patch = Patch::Strategic(patch);
            let params = PatchParams::default();
            if let Err(error) = nodes.patch_status(&node, &params, &patch).await {
                tracing::warn!(%error, "the node's condition is not told");
            }
        });
    }
}

fn condition(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ours = conditions.iter().find(|it| it.type_ == DEGRADED)?;
    Some(ours.status.clone())
}
