//! What the users of a cluster should see of the service proxy's troubles, as Events.

use std::{collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use super::{cleaning::ConnectionTable, parse::ServiceName};
use crate::node_reports::NodeReports;

/// The Node's condition while the service tables are not what they should be.
pub(super) const DEGRADED: &str = "ServiceDatapathDegraded";
/// The Node's condition while new connections are dropped because too many are tracked.
pub(super) const TABLE_FULL: &str = "ConnectionTableFull";

pub(super) struct Announcer {
    reports: NodeReports,
    /// Whether the Node says that it is degraded, as far as is known.
    degraded: bool,
    /// ... and that its table of connections is full; an earlier run may have said anything.
    table_full: Option<bool>,
    node_says_full: bool,
    /// What was said of an object last: a slice that is refused is so at every change.
    said: HashMap<String, String>,
}

impl Announcer {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            reports: NodeReports::new(client, node),
            degraded: false,
            table_full: None,
            node_says_full: false,
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

    /// A Service asks for what there is not.
    pub(super) fn misread(&mut self, service: ObjectReference, why: String) {
        self.say(service, "UnknownLoadBalancing", "Compile", why);
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
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            ..ObjectReference::default()
        };
        let node = self.reports.node_name();
        let note = format!(
            "node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"
        );
        self.say(reference, "FailedToStartServiceHealthcheck", "Listen", note);
    }

    /// The datapath does not hold what it should.
    pub(super) fn degraded(&mut self, reason: &str) {
        let node = self.reports.node();
        self.say(node, DEGRADED, "Write", reason.to_owned());
        if !std::mem::replace(&mut self.degraded, true) {
            self.tell_condition(DEGRADED, "True", "CannotWrite", reason);
        }
    }

    /// What the Node says: an earlier run may have left it so.
    pub(super) fn set_told(&mut self, degraded: bool, table_full: bool) {
        self.degraded = degraded;
        if self.table_full != Some(true) && table_full {
            // Told anew by the next look at the table.
            self.table_full = None;
        }
        self.node_says_full = table_full;
    }

    /// It does again: the next trouble is worth an Event even if it is the same.
    pub(super) fn recovered(&mut self) {
        self.said.retain(|key, _| !key.starts_with("Node/"));
        if std::mem::take(&mut self.degraded) {
            let message = "the service tables are written";
            self.tell_condition(DEGRADED, "False", "Written", message);
        }
    }

    /// How full the table of connections is.
    pub(super) fn connections(&mut self, table: &ConnectionTable) {
        if table.capacity == 0 || self.table_full == Some(table.full) {
            return;
        }
        let ConnectionTable { used, capacity, .. } = table;
        let message = format!("{used} of {capacity} entries are in use");
        if table.full {
            self.tell_condition(TABLE_FULL, "True", "NewConnectionsAreDropped", &message);
            self.say(self.reports.node(), TABLE_FULL, "Track", message);
        } else if self.table_full == Some(true) || self.node_says_full {
            self.tell_condition(TABLE_FULL, "False", "ThereIsRoom", &message);
        }
        self.table_full = Some(table.full);
    }

    fn tell_condition(
        &self,
        kind: &'static str,
        status: &'static str,
        reason: &'static str,
        message: &str,
    ) {
        let (reports, message) = (self.reports.clone(), message.to_owned());
        tokio::spawn(async move { reports.set_condition(kind, status, reason, &message).await });
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
        self.reports.warn(about, reason, action, note);
    }
}
