//! What the users of a cluster should see of the service proxy's troubles, as Events.

use std::{collections::HashMap, net::IpAddr};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use super::{cleaning::ConnectionTable, parse::ServiceName, watches::NodeTopology};
use crate::node_reports::NodeReports;

/// The Node's condition while the service tables are not what they should be.
pub(super) const DEGRADED: &str = "ServiceDatapathDegraded";
/// The Node's condition while new connections are dropped because too many are tracked.
pub(super) const TABLE_FULL: &str = "ConnectionTableFull";
/// ... while they are dropped because every source port towards their destination is taken.
pub(super) const PORTS_EXHAUSTED: &str = "SourcePortsExhausted";

pub(super) struct Announcer {
    reports: NodeReports,
    /// Whether the Node says that it is degraded, as far as is known.
    degraded: bool,
    /// ... that its table of connections is full, and that it has no source ports.
    table_full: Shortage,
    ports_exhausted: Shortage,
    /// What was said of an object last: a slice that is refused is so at every change.
    said: HashMap<String, String>,
}

/// What is said of a shortage; an earlier run may have said anything.
#[derive(Default)]
struct Shortage {
    said: Option<bool>,
    node_says: bool,
}

impl Shortage {
    fn set_told(&mut self, node_says: bool) {
        if self.said != Some(true) && node_says {
            // Told anew by the next look.
            self.said = None;
        }
        self.node_says = node_says;
    }

    /// Whether what is so now has yet to be said.
    fn is_news(&mut self, is: bool) -> bool {
        let before = self.said.replace(is);
        before != Some(is) && (is || before == Some(true) || self.node_says)
    }
}

impl Announcer {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            reports: NodeReports::new(client, node),
            degraded: false,
            table_full: Shortage::default(),
            ports_exhausted: Shortage::default(),
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
    pub(super) fn set_told(&mut self, node: &NodeTopology) {
        self.degraded = node.degraded;
        self.table_full.set_told(node.table_full);
        self.ports_exhausted.set_told(node.ports_exhausted);
    }

    /// It does again: the next trouble is worth an Event even if it is the same.
    pub(super) fn recovered(&mut self) {
        self.said.retain(|key, _| !key.starts_with("Node/"));
        if std::mem::take(&mut self.degraded) {
            let message = "the service tables are written";
            self.tell_condition(DEGRADED, "False", "Written", message);
        }
    }

    /// How full the table of connections is, and whether there were ports for the new ones.
    pub(super) fn connections(&mut self, table: &ConnectionTable) {
        let ConnectionTable { used, capacity, .. } = table;
        if *capacity == 0 {
            return;
        }
        if self.table_full.is_news(table.full) {
            let message = format!("{used} of {capacity} entries are in use");
            self.shortage(TABLE_FULL, "Track", table.full, message);
        }
        if self.ports_exhausted.is_news(table.ports_exhausted) {
            let message = match table.ports_exhausted {
                true => "too many connections in the node's name to one address and port",
                false => "every new connection has found a source port",
            };
            let is = table.ports_exhausted;
            self.shortage(PORTS_EXHAUSTED, "Translate", is, message.to_owned());
        }
    }

    fn shortage(&mut self, kind: &'static str, action: &'static str, is: bool, message: String) {
        if is {
            self.tell_condition(kind, "True", "NewConnectionsAreDropped", &message);
            self.say(self.reports.node(), kind, action, message);
        } else {
            self.tell_condition(kind, "False", "ThereIsRoom", &message);
        }
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
