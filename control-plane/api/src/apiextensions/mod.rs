//! Definitions of custom resources: `apiextensions.k8s.io/v1`.

pub mod approval;
mod defaults;
pub mod definition;
pub mod names;
mod rules;
pub mod schema;
pub mod structural;
pub mod versions;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        )
        .cluster()
        .short("crd")
        .short("crds")
        .category("api-extensions")
        .prefix("/registry/apiextensions.k8s.io/customresourcedefinitions")
        .status()
        .rules(definition::CustomResourceDefinition),
    ]
}
