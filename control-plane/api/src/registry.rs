//! The list of all built-in resources, in the order in which discovery shows their groups.

use crate::resource::Resource;

/// Every built-in resource of Kubernetes v1.35 that is served by default.
///
/// # Panics
///
/// When the schema table lacks a type that is listed here, which the tests rule out.
pub fn builtin() -> Vec<Resource> {
    [
        crate::core::resources(),
        crate::apiregistration::resources(),
        crate::apps::resources(),
        crate::events::resources(),
        crate::authentication::resources(),
        crate::authorization::resources(),
        crate::autoscaling::resources(),
        crate::batch::resources(),
        crate::certificates::resources(),
        crate::networking::resources(),
        crate::policy::resources(),
        crate::rbac::resources(),
        crate::storage::resources(),
        crate::admissionregistration::resources(),
        crate::apiextensions::resources(),
        crate::scheduling::resources(),
        crate::coordination::resources(),
        crate::node::resources(),
        crate::discovery::resources(),
        crate::resource_k8s_io::resources(),
        crate::flowcontrol::resources(),
        crate::metrics::resources(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn no_two_resources_share_a_path_and_each_row_fills_its_columns() {
        let mut seen = HashSet::new();
        for resource in builtin() {
            assert!(
                seen.insert((resource.group.clone(), resource.plural.clone())),
                "{} is listed twice",
                resource.plural
            );
            let object =
                json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
            assert_eq!(
                resource.strategy.row(&object, 0).len(),
                resource.columns.len(),
                "{}: cells and columns differ",
                resource.plural
            );
        }
    }
}
