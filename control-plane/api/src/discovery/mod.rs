//! Endpoints of Services in slices: `discovery.k8s.io/v1`.

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .columns("AddressType, Ports, Endpoints, Age"),
    ]
}
