//! What the users of a cluster should see of the service proxy's troubles, as Events.

use std::{collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use serde_json::json;

use super::parse::ServiceName;

/// The Node's condition while the service tables are not what they should be.
pub(super) const DEGRADED: &str = "ServiceDatapathDegraded";

pub(super) struct Announcer {
    recorder: Recorder,
    nodes: Api<Node>,
    node: String,
    /// Whether the Node says that it is degraded, as far as is known.
    degraded: bool,
    /// What was said of an object last: a slice that is refused is so at every change.
    said: HashMap<String, String>,
}

impl Announcer {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter {
            controller: "windlass-node-agent".into(),
            instance: Some(node.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            nodes: Api::all(client),
            node: node.to_owned(),
            degraded: false,
            said: HashMap::new(),
        }
    }

    /// A slice lists addresses that would make the node talk to itself.
    pub(super) fn refused(&mut self, slice: ObjectReference, addresses: &[IpAddr]) {
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let note = format!(
            "addresses are no endpoints (loopback, link-local, multicast or unspecified): {}",
            list.join(", ")
        );
        self.say(slice, "EndpointAddressRefused", "Compile", note);
    }

    pub(super) fn health_check_failed(
        &mut self,
        service: &ServiceName,
        port: u16,
        error: &std::io::Error,
    ) {
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            ..ObjectReference::default()
        };
        let node = &self.node;
        let note = format!(
            "node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"
        );
        self.say(reference, "FailedToStartServiceHealthcheck", "Listen", note);
    }

    /// The datapath does not hold what it should.
    pub(super) fn degraded(&mut self, reason: &str) {
        let node = self.node();
        self.say(node, DEGRADED, "Write", reason.to_owned());
        if !std::mem::replace(&mut self.degraded, true) {
            self.tell_condition("True", "CannotWrite", reason);
        }
    }

    /// What the Node says: an earlier run may have left it so.
    pub(super) fn set_degraded(&mut self, degraded: bool) {
        self.degraded = degraded;
    }

    /// It does again: the next trouble is worth an Event even if it is the same.
    pub(super) fn recovered(&mut self) {
        self.said.retain(|key, _| !key.starts_with("Node/"));
        if std::mem::take(&mut self.degraded) {
            self.tell_condition("False", "Written", "the service tables are written");
        }
    }

    fn tell_condition(&self, status: &'static str, reason: &'static str, message: &str) {
        let now = jiff::Timestamp::now().to_string();
        let patch = json!({"status": {"conditions": [{
            "type": DEGRADED, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }]}});
        let (nodes, node) = (self.nodes.clone(), self.node.clone());
        tokio::spawn(async move {
            // Merged by type: the conditions of others stay.
            let patch = Patch::Strategic(patch);
            let params = PatchParams::default();
            if let Err(error) = nodes.patch_status(&node, &params, &patch).await {
                tracing::warn!(%error, "the node's condition is not told");
            }
        });
    }

    fn node(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        }
    }

    fn say(
        &mut self,
        about: ObjectReference,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let (kind, namespace) = (part(&about.kind), part(&about.namespace));
        let key = format!("{kind}/{namespace}/{}/{reason}", part(&about.name));
        if self.said.insert(key, note.clone()).as_ref() == Some(&note) {
            return;
        }
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
}
