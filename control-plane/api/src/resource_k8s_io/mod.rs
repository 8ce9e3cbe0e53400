//! Dynamic resource allocation: `resource.k8s.io/v1`.

use crate::resource::Resource;

fn dynamic(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("resource.k8s.io", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        dynamic("DeviceClass", "deviceclasses")
            .cluster()
            .columns("Age"),
        dynamic("ResourceClaim", "resourceclaims")
            .status()
            .columns("State, Age"),
        dynamic("ResourceClaimTemplate", "resourceclaimtemplates").columns("Age"),
        dynamic("ResourceSlice", "resourceslices")
            .cluster()
            .columns("Node, Driver, Pool, Age"),
    ]
}
