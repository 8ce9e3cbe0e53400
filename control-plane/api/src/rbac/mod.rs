//! Roles and their bindings: `rbac.authorization.k8s.io/v1`.

pub mod binding;
pub mod role;

use crate::resource::{NameRule, Resource};

pub const GROUP: &str = "rbac.authorization.k8s.io";

fn rbac(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new(GROUP, "v1", kind, plural).names(NameRule::PathSegment)
}

pub fn resources() -> Vec<Resource> {
    let binding_columns = "Role, Age, +Users, +Groups, +ServiceAccounts";
    vec![
        rbac("ClusterRoleBinding", "clusterrolebindings")
            .cluster()
            .columns(binding_columns)
            .rules(binding::Binding { namespaced: false }),
        rbac("ClusterRole", "clusterroles")
            .cluster()
            .rules(role::Role { namespaced: false }),
        rbac("RoleBinding", "rolebindings")
            .columns(binding_columns)
            .rules(binding::Binding { namespaced: true }),
        rbac("Role", "roles").rules(role::Role { namespaced: true }),
    ]
}
