//! Dynamic resource allocation: `resource.k8s.io/v1`.

pub mod claim;
mod claim_status;
mod device;
pub mod device_class;
pub mod slice;

use crate::resource::Resource;

fn dynamic(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("resource.k8s.io", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        dynamic("DeviceClass", "deviceclasses")
            .cluster()
            .columns("Age")
            .rules(device_class::DeviceClass),
        dynamic("ResourceClaim", "resourceclaims")
            .status()
            .columns("State, Age")
            .rules(claim::ResourceClaim),
        dynamic("ResourceClaimTemplate", "resourceclaimtemplates")
            .columns("Age")
            .rules(claim::ResourceClaimTemplate),
        dynamic("ResourceSlice", "resourceslices")
            .cluster()
            .columns("Node, Driver, Pool, Age")
            .rules(slice::ResourceSlice),
    ]
}
