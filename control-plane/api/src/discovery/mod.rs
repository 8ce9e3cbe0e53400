//! Endpoints of Services in slices: `discovery.k8s.io/v1`.

pub mod endpoint_slice;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .columns("AddressType, Ports, Endpoints, Age")
            .rules(endpoint_slice::EndpointSlice),
    ]
}
