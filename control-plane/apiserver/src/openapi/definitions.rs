//! The schemas of the built-in types, as OpenAPI v3 components.
//!
//! Structure and descriptions come from `k8s-openapi`'s own schemas; what clients need for patches
//! (`x-kubernetes-list-type`, `-patch-merge-key`, …) is added from the schema table that the server itself
//! works with, so the two cannot disagree. Built on demand and not kept: the whole is several megabytes.

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use windlass_machinery::schema::{Field, ListType, Schema};

/// Where a definition is referred to.
pub(super) const REFERENCE: &str = "#/components/schemas/";

macro_rules! register {
    ($generator:ident, $module:path { $($kind:ident)* }) => {{
        use $module as module;
        $( let _ = $generator.subschema_for::<module::$kind>(); )*
    }};
}

/// The definitions of the types of one API group version, with everything that they refer to.
pub(super) fn definitions(group: &str, version: &str) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    register!(generator, meta { DeleteOptions Status APIResourceList APIGroup APIGroupList });
    kinds(&mut generator, group, version);
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    let schema = Schema::builtin();
    for (name, definition) in &mut definitions {
        wrap_references(definition);
        annotate(&schema, name, definition);
        // `k8s-openapi` has it always; Kubernetes does not ask for it.
        if let Some(required) = definition["required"].as_array_mut() {
            required.retain(|field| field != "metadata");
        }
    }
    definitions
}

fn kinds(generator: &mut SchemaGenerator, group: &str, version: &str) {
    match (group, version) {
        ("", "v1") => {
            register!(generator, api::core::v1 {
                Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node
                PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController
                ResourceQuota Secret Service ServiceAccount
            });
            register!(generator, api::autoscaling::v1 { Scale });
            register!(generator, api::authentication::v1 { TokenRequest });
            register!(generator, api::policy::v1 { Eviction });
        }
        ("apps", "v1") => {
            register!(generator, api::apps::v1 {
                ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet
            });
            register!(generator, api::autoscaling::v1 { Scale });
        }
        ("batch", "v1") => register!(generator, api::batch::v1 { CronJob Job }),
        ("autoscaling", "v1") => {
            register!(generator, api::autoscaling::v1 { HorizontalPodAutoscaler Scale });
        }
        ("autoscaling", "v2") => register!(
            generator,
            api::autoscaling::v2 {
                HorizontalPodAutoscaler
            }
        ),
        ("policy", "v1") => register!(generator, api::policy::v1 { Eviction PodDisruptionBudget }),
        ("networking.k8s.io", "v1") => register!(generator, api::networking::v1 {
            IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR
        }),
        ("discovery.k8s.io", "v1") => register!(generator, api::discovery::v1 { EndpointSlice }),
        ("coordination.k8s.io", "v1") => register!(generator, api::coordination::v1 { Lease }),
        ("events.k8s.io", "v1") => register!(generator, api::events::v1 { Event }),
        ("rbac.authorization.k8s.io", "v1") => register!(generator, api::rbac::v1 {
            ClusterRole ClusterRoleBinding Role RoleBinding
        }),
        ("storage.k8s.io", "v1") => register!(generator, api::storage::v1 {
            CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
        }),
        ("scheduling.k8s.io", "v1") => register!(generator, api::scheduling::v1 { PriorityClass }),
        ("node.k8s.io", "v1") => register!(generator, api::node::v1 { RuntimeClass }),
        ("certificates.k8s.io", "v1") => {
            register!(
                generator,
                api::certificates::v1 {
                    CertificateSigningRequest
                }
            );
        }
        ("admissionregistration.k8s.io", "v1") => {
            register!(generator, api::admissionregistration::v1 {
                MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
                ValidatingWebhookConfiguration
            })
        }
        ("apiextensions.k8s.io", "v1") => {
            register!(
                generator,
                apiextensions {
                    CustomResourceDefinition
                }
            );
        }
        ("apiregistration.k8s.io", "v1") => register!(generator, apiregistration { APIService }),
        ("authentication.k8s.io", "v1") => register!(generator, api::authentication::v1 {
            SelfSubjectReview TokenRequest TokenReview
        }),
        ("authorization.k8s.io", "v1") => register!(generator, api::authorization::v1 {
            LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
        }),
        ("flowcontrol.apiserver.k8s.io", "v1") => {
            register!(generator, api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration });
        }
        ("resource.k8s.io", "v1") => register!(generator, api::resource::v1 {
            DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice
        }),
        (windlass_api::metrics::GROUP, "v1beta1") => {
            register!(generator, super::metrics { NodeMetrics PodMetrics });
        }
        // Custom resources bring their own schemas.
        _ => {}
    }
}

/// For which version of OpenAPI schemas are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    V2,
    V3,
}

/// The definition of a kind's list.
/// `items` says what the items are, in words: `replication controllers`.
pub(super) fn list_definition(
    (list_kind, items): (&str, &str),
    item: &str,
    group: &str,
    version: &str,
) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": format!("{list_kind} is a list of objects."),
        "required": ["items"],
        "properties": {
            "apiVersion": text("The version of this representation of the object."),
            "kind": text("The REST resource that this object represents."),
            "metadata": {
                "allOf": [{"$ref": format!("{REFERENCE}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")}],
                "default": {},
            },
            "items": {
                "type": "array",
                "description": format!("List of {items}."),
                "items": {"allOf": [{"$ref": format!("{REFERENCE}{item}")}], "default": {}},
            },
        },
        "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": list_kind}],
    })
}

/// The list's metadata, which no single object refers to.
pub(super) fn list_meta() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    register!(generator, meta { ListMeta });
    generator.take_definitions(true)
}

/// The metadata of every object; built-in kinds refer to it by themselves.
pub(super) fn metadata() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    register!(generator, meta { ObjectMeta });
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(wrap_references);
    definitions
}

/// `apiVersion` and `kind`, described as every kind describes them.
fn type_meta() -> Vec<(String, Value)> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    register!(generator, meta { Status });
    let mut definitions = generator.take_definitions(true);
    let status = definitions.remove("io.k8s.apimachinery.pkg.apis.meta.v1.Status");
    let mut properties = status.map_or(Value::Null, |mut status| status["properties"].take());
    ["apiVersion", "kind"]
        .map(|field| (field.to_owned(), properties[field].take()))
        .into()
}

/// The definition of a custom resource: its own schema, with what every object has.
pub(super) fn custom(schema: &Value, form: Form) -> Value {
    // kubectl reads properties as all that there may be.
    if form == Form::V2 && schema["x-kubernetes-preserve-unknown-fields"] == true {
        return json!({"type": "object"});
    }
    let mut schema = schema.clone();
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    for (field, described) in type_meta() {
        schema["properties"][field] = described;
    }
    schema["properties"]["metadata"] = json!({
        "allOf": [{"$ref": format!("{REFERENCE}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")}],
        "default": {},
        "description": "Standard object's metadata.",
    });
    schema
}

/// In OpenAPI 3.0 whatever stands beside a `$ref` is ignored, so a described reference goes into `allOf`.
fn wrap_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(wrap_references);
            // JSONSchemaProps has a property of that name; a reference is a string.
            if map.len() > 1
                && map.get("$ref").is_some_and(Value::is_string)
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

/// Adds what the schema table knows about the fields of a type.
fn annotate(schema: &Schema, name: &str, definition: &mut Value) {
    let Some(id) = schema.type_id(name) else {
        return;
    };
    let properties = definition
        .get_mut("properties")
        .and_then(Value::as_object_mut);
    let Some(properties) = properties else {
        return;
    };
    for (property, value) in properties {
        if let (Some(field), Some(map)) = (schema.get(id).field(property), value.as_object_mut()) {
            annotate_field(field, map);
        }
    }
}

fn annotate_field(field: &Field, map: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| map.insert(format!("x-kubernetes-{key}"), value);
    match &field.list_type {
        ListType::Map(keys) => {
            set("list-type", json!("map"));
            set("list-map-keys", json!(keys));
        }
        ListType::Set => {
            set("list-type", json!("set"));
        }
        ListType::Atomic => {}
    }
    let strategy: Vec<&str> = [
        (field.patch_strategy.merge, "merge"),
        (field.patch_strategy.retain_keys, "retainKeys"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect();
    if !strategy.is_empty() {
        set("patch-strategy", json!(strategy.join(",")));
    }
    if let Some(key) = &field.patch_merge_key {
        set("patch-merge-key", json!(key));
    }
    if field.atomic {
        set("map-type", json!("atomic"));
    }
    if let Some(default) = &field.default {
        map.insert("default".to_owned(), default.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_version_describes_its_kinds_and_all_that_they_refer_to() {
        let definitions = definitions("apps", "v1");
        let deployment = &definitions["io.k8s.api.apps.v1.Deployment"];
        assert!(
            deployment["description"]
                .as_str()
                .unwrap()
                .contains("Deployment")
        );
        let text = Value::Object(definitions.clone()).to_string();
        for reference in text.split(REFERENCE).skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(
                definitions.contains_key(name),
                "{name} is referred to and not defined"
            );
        }
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
    }

    #[test]
    fn a_described_reference_is_wrapped() {
        let mut value = json!({"a": {"$ref": "#/x", "description": "d"}, "b": {"$ref": "#/y"}});
        wrap_references(&mut value);
        assert_eq!(
            value["a"],
            json!({"allOf": [{"$ref": "#/x"}], "description": "d"})
        );
        assert_eq!(value["b"], json!({"$ref": "#/y"}));
    }
}
