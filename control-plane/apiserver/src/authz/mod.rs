//! Authorization: what an identity may do.
//!
//! [`Authorizer`]s are asked in turn until one has an opinion; none means no. [`Rbac`] is the one for
//! everybody; `system:masters` is let through before it, so that a broken policy cannot lock the admin out.

mod access_review;
mod controller_roles;
pub mod default_policy;
pub(crate) mod escalation;
pub(crate) mod node;
mod rbac;

use windlass_machinery::status::ApiError;

pub(crate) use access_review::{resource_attributes, rules_review};
pub use rbac::Rbac;
pub(crate) use rbac::{Rule, rules};

use crate::authn::{GROUP_MASTERS, UserInfo};

/// What a request wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    /// `get`, `list`, … for resources; the lower-case HTTP method for other paths.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// Empty for a request that is not about a resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources and cluster-wide requests.
    pub namespace: &'a str,
    pub name: &'a str,
    /// The path of a request that is not about a resource.
    pub path: &'a str,
}

impl Attributes<'_> {
    /// The 403 in upstream's words; `reason` is the authorizer's and may be empty.
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let tail = if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        };
        let user = &self.user.name;
        if self.resource.is_empty() {
            let why = format!(
                "User {user:?} cannot {} path {:?}{tail}",
                self.verb, self.path
            );
            return ApiError::forbidden("", "", "", &why);
        }
        let resource = if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let why = format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}{tail}",
            self.verb, self.group
        );
        ApiError::forbidden(self.group, self.resource, self.name, &why)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Refused, whatever other authorizers think.
    Deny(String),
    NoOpinion,
}

pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// Lets `system:masters` do everything.
pub struct PrivilegedGroup;

impl Authorizer for PrivilegedGroup {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(GROUP_MASTERS) {
            Decision::Allow
        } else {
            Decision::NoOpinion
        }
    }
}

/// The first opinion counts.
pub struct Chain(pub Vec<std::sync::Arc<dyn Authorizer>>);

impl Authorizer for Chain {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.0
            .iter()
            .map(|authorizer| authorizer.authorize(attributes))
            .find(|decision| *decision != Decision::NoOpinion)
            .unwrap_or(Decision::NoOpinion)
    }
}
