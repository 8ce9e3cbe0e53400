//! NodeRestriction: a node's agent writes only what is its node's own, so that a stolen node credential is
//! worth one node and not the cluster. RBAC says which kinds a node may write; this says which objects.

mod node;
mod pod;
mod token;

use async_trait::async_trait;
use serde_json::Value;
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
                token::check(attributes, node, object)
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
