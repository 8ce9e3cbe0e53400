//! What the users of a cluster should see when a node cannot hold its policies: a condition of the Node,
//! and an Event on it. Also what policies drop, where their authors ask for it.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use super::spec::PolicyName;
use crate::node_reports::NodeReports;

/// True while the policy tables are not what the cluster's policies say.
const DEGRADED: &str = "NetworkPolicyDegraded";

pub(super) struct Trouble {
    reports: NodeReports,
    /// What the Node was told last; none: an earlier run may have left anything.
    told: Option<String>,
    known: bool,
}

impl Trouble {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            reports: NodeReports::new(client, node),
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
        let node = self.reports.node();
        self.reports
            .warn(node, DEGRADED, "Write", message.to_owned());
    }

    /// An Event on a policy that asks for it.
    pub(super) fn dropped(&self, policy: &PolicyName, note: String) {
        let (version, kind, name) = match (&policy.namespace, policy.name.split_once('/')) {
            (Some(_), _) => (
                "networking.k8s.io/v1",
                "NetworkPolicy",
                policy.name.as_str(),
            ),
            // A predecessor is known by its kind and its name.
            (None, Some((kind, name))) => ("policy.networking.k8s.io/v1alpha1", kind, name),
            (None, None) => (
                "policy.networking.k8s.io/v1alpha2",
                "ClusterNetworkPolicy",
                policy.name.as_str(),
            ),
        };
        let about = ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(kind.to_owned()),
            namespace: policy.namespace.clone(),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.reports.warn(about, "PolicyDropped", "Enforce", note);
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
        let reports = self.reports.clone();
        tokio::spawn(async move {
            if only.is_some() && reports.condition(DEGRADED).await.as_deref() != only {
                return;
            }
            reports
                .set_condition(DEGRADED, status, reason, &message)
                .await;
        });
    }
}
