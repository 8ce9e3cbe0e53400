//! Leases: `coordination.k8s.io/v1`.

pub mod lease;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("coordination.k8s.io", "v1", "Lease", "leases")
            .columns("Holder, Age")
            .rules(lease::Lease),
    ]
}
