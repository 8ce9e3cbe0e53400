//! Finding the schema type of an `apiVersion` and `kind` that a protobuf body names.

use std::sync::Arc;

use windlass_machinery::schema::{Schema, TypeId, type_name};

/// Options that are sent under any group's version.
const META_KINDS: [&str; 11] = [
    "DeleteOptions",
    "CreateOptions",
    "UpdateOptions",
    "PatchOptions",
    "ListOptions",
    "Status",
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "ListMeta",
];

/// The built-in type, in the names of OpenAPI.
pub(crate) fn builtin(api_version: &str, kind: &str) -> Option<(Arc<Schema>, TypeId)> {
    let schema = Schema::builtin();
    let name = name(api_version, kind);
    let id = schema.type_id(&name)?;
    Some((schema, id))
}

/// `io.k8s.api.apps.v1.Deployment` for `apps/v1` and `Deployment`.
pub(crate) fn name(api_version: &str, kind: &str) -> String {
    if META_KINDS.contains(&kind) {
        return format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    type_name(group, version, kind)
}
