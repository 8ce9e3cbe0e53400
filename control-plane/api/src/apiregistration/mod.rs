//! Registration of other API servers: `apiregistration.k8s.io/v1`.

pub mod api_service;

use crate::resource::{NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("apiregistration.k8s.io", "v1", "APIService", "apiservices")
            .cluster()
            .category("api-extensions")
            .prefix("/registry/apiregistration.k8s.io/apiservices")
            .names(NameRule::PathSegment)
            .status()
            .columns("Service, Available, Age")
            .rules(api_service::ApiService),
    ]
}
