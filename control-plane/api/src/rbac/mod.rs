//! Roles and their bindings: `rbac.authorization.k8s.io/v1`.

use crate::resource::{NameRule, Resource};

fn rbac(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("rbac.authorization.k8s.io", "v1", kind, plural).names(NameRule::PathSegment)
}

pub fn resources() -> Vec<Resource> {
    let binding_columns = "Role, Age, +Users, +Groups, +ServiceAccounts";
    vec![
        rbac("ClusterRoleBinding", "clusterrolebindings")
            .cluster()
            .columns(binding_columns),
        rbac("ClusterRole", "clusterroles").cluster(),
        rbac("RoleBinding", "rolebindings").columns(binding_columns),
        rbac("Role", "roles"),
    ]
}
