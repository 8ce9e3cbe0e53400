//! NodeRestriction: a node's agent writes only what is its node's own, so that a stolen node credential is
//! worth one node and not the cluster. RBAC says which kinds a node may write; this says which objects.

mod node;
mod pod;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::authn::{GROUP_NODES, UserInfo};

const USER_PREFIX: &str = "system:node:";
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(node) = node_of(&attributes.context.user) else {
            return Ok(());
        };
        if node.is_empty() {
            let user = &attributes.context.user.name;
            let why = format!("could not determine node from user {user:?}");
            return Err(attributes.forbidden(&why));
        }
        let verdict = match (attributes.endpoint.group(), attributes.endpoint.plural()) {
            ("", "pods") => pod::check(node, &Write::of(attributes, object)),
            ("", "nodes") => node::check(node, &Write::of(attributes, object)),
            ("", "serviceaccounts") if attributes.subresource == "token" => {
                token(attributes, node, object)
            }
            ("coordination.k8s.io", "leases") => lease(node, attributes),
            ("storage.k8s.io", "csinodes") if attributes.name != node => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
            _ => Ok(()),
        };
        verdict.map_err(|why| attributes.forbidden(&why))
    }
}

/// The node whose agent the user is, empty if it does not say; `None` for anybody else.
fn node_of(user: &UserInfo) -> Option<&str> {
    if !user.in_group(GROUP_NODES) {
        return None;
    }
    // Others in the group, such as certificates for bootstrapping, are no node's agent.
    user.name.strip_prefix(USER_PREFIX)
}

/// What is being written.
struct Write<'a> {
    operation: Operation,
    subresource: &'a str,
    name: &'a str,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
}

impl<'a> Write<'a> {
    fn of(attributes: &Attributes<'a>, object: Option<&'a Value>) -> Self {
        Self {
            operation: attributes.operation,
            subresource: attributes.subresource,
            name: attributes.name,
            object,
            old: attributes.old,
        }
    }
}

fn lease(node: &str, attributes: &Attributes<'_>) -> Result<(), String> {
    if attributes.namespace != LEASE_NAMESPACE {
        return Err(format!(
            "can only access leases in the {LEASE_NAMESPACE:?} system namespace"
        ));
    }
    if attributes.name != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(why.to_owned());
    }
    Ok(())
}

/// A node may ask for tokens only on behalf of pods that run on it.
fn token(attributes: &Attributes<'_>, node: &str, request: Option<&Value>) -> Result<(), String> {
    let bound_to = request.map(|request| &request["spec"]["boundObjectRef"]);
    let text = |field: &str| {
        bound_to
            .and_then(|to| to[field].as_str())
            .unwrap_or_default()
    };
    if (text("apiVersion"), text("kind")) != ("v1", "Pod") || text("name").is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if text("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let pods = attributes.context.server.cacher("", "pods");
    let pod = pods.and_then(|pods| pods.get(attributes.namespace, text("name")));
    let pod = pod.and_then(|entry| entry.decode().ok());
    let pod = pod.ok_or_else(|| format!("pod {:?} not found", text("name")))?;
    if meta::uid(&pod) != text("uid") {
        return Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object \
             might have been deleted and then recreated",
            text("uid")
        ));
    }
    if pod["spec"]["nodeName"] != node {
        let why = "node requested token bound to a pod scheduled on a different node";
        return Err(why.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_known_by_name_and_group() {
        let table: [(&str, &[&str], Option<&str>); 4] = [
            ("system:node:n1", &[GROUP_NODES], Some("n1")),
            ("system:node:", &[GROUP_NODES], Some("")),
            ("system:node:n1", &["others"], None),
            ("alice", &[GROUP_NODES], None),
        ];
        for (name, groups, expected) in table {
            assert_eq!(node_of(&UserInfo::new(name, groups)), expected, "{name}");
        }
    }
}
