//! Nobody grants what they do not hold: a role's rules must be held by who writes it, or they may `escalate`; those of a
//! bound role by who binds it, or they may `bind` (upstream's `policybased` storages of the four kinds).

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use super::{Attributes, Plugin};
use crate::authn::GROUP_MASTERS;
use crate::authz::{self, Rule, escalation};
use crate::registry;

pub(super) struct RbacEscalation;

const GROUP: &str = "rbac.authorization.k8s.io";

#[async_trait]
impl Plugin for RbacEscalation {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| attributes.endpoint.group() == GROUP) else {
            return Ok(());
        };
        let collected = |old| same_but_for_collection(object, old);
        if attributes.context.user.in_group(GROUP_MASTERS) || attributes.old.is_some_and(collected)
        {
            return Ok(());
        }
        match attributes.endpoint.plural() {
            "roles" | "clusterroles" => check_role(attributes, object),
            "rolebindings" | "clusterrolebindings" => check_binding(attributes, object).await,
            _ => Ok(()),
        }
    }
}

fn check_role(attributes: &Attributes<'_>, role: &Value) -> Result<(), ApiError> {
    let context = attributes.context;
    if context.may(&context.info.attributes(&context.user, "escalate")) {
        return Ok(());
    }
    check_held(attributes, &authz::rules(role))?;
    // It gathers anything, now and later, so whoever sets it or takes it away must hold everything.
    if [Some(role), attributes.old]
        .into_iter()
        .flatten()
        .any(aggregates)
    {
        check_held(attributes, &Rule::everything()).map_err(|_| {
            attributes.forbidden("must have cluster-admin privileges to use the aggregationRule")
        })?;
    }
    Ok(())
}

async fn check_binding(attributes: &Attributes<'_>, binding: &Value) -> Result<(), ApiError> {
    let context = attributes.context;
    let reference = &binding["roleRef"];
    let (kind, name) = (
        &reference["kind"],
        reference["name"].as_str().unwrap_or_default(),
    );
    let (resource, namespace) = match kind.as_str().unwrap_or_default() {
        "Role" => ("roles", attributes.namespace),
        _ => ("clusterroles", ""),
    };
    let bind = authz::Attributes {
        user: &context.user,
        verb: "bind",
        group: GROUP,
        version: "*",
        resource,
        subresource: "",
        // Where it is bound, for ClusterRoles too: the right may be given for one namespace.
        namespace: attributes.namespace,
        name,
        path: "",
    };
    if context.may(&bind) {
        return Ok(());
    }
    let server = &context.server;
    let Some(roles) = server.catalog.load().preferred(GROUP, resource) else {
        return Ok(());
    };
    // From the store: what was changed a moment ago counts. Of an aggregated role also what it has by now.
    let stored = registry::read(context, &roles, namespace, name).await?;
    let mut wanted = authz::rules(&stored.value);
    wanted.extend(server.rbac.rules_of(resource, namespace, name));
    check_held(attributes, &wanted)
}

fn check_held(attributes: &Attributes<'_>, wanted: &[Rule]) -> Result<(), ApiError> {
    let context = attributes.context;
    let held = context
        .server
        .rbac
        .rules_for(&context.user, attributes.namespace);
    match escalation::excess(&context.user, &held, wanted) {
        Some(why) => Err(attributes.forbidden(&why)),
        None => Ok(()),
    }
}

fn aggregates(role: &Value) -> bool {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    selectors.is_some_and(|selectors| !selectors.is_empty())
}

/// Whether nothing but what garbage collection writes differs: it may hold less than the role.
fn same_but_for_collection(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        if let Some(metadata) = rest["metadata"].as_object_mut() {
            for field in [
                "ownerReferences",
                "finalizers",
                "managedFields",
                "resourceVersion",
            ] {
                metadata.remove(field);
            }
        }
        rest
    };
    rest(new) == rest(old)
}
