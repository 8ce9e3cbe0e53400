//! From a CustomResourceDefinition to the [`Resource`] that the generic code serves.

use std::sync::{Arc, Weak};

use anyhow::Context as _;
use serde_json::Value;
use windlass_api::resource::{
    Column, Conversion, NameRule, Resource, ScalePaths, Subresource, Text, Verbs, Version,
};
use windlass_machinery::meta;
use windlass_machinery::schema::Schema;

use super::conversion::{self, Form, Versions};
use super::strategy::{self, CustomResource};
use crate::server::ApiServer;

/// The resource of an accepted definition.
///
/// # Errors
/// When a schema cannot be compiled, which the definition's validation rules out.
pub(super) fn resource(definition: &Value, server: &Weak<ApiServer>) -> anyhow::Result<Resource> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let group = text(&spec["group"]);
    let kind = text(&names["kind"]);
    let listed = spec["versions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    // Objects may be stored in versions that are served no more; the first one is what others ask for.
    let mut listed: Vec<&Value> = listed.iter().collect();
    listed.sort_by_key(|version| version["served"] != true);
    let stored = listed
        .iter()
        .position(|v| v["storage"] == true)
        .context("no storage version")?;
    let storage = listed[stored];
    let storage_version = format!("{group}/{}", text(&storage["name"]));
    let mut shared = Versions::new(definition, &kind, storage_version, server);
    let mut versions: Vec<Version> = listed
        .iter()
        .map(|listed| {
            let version = version(&group, &kind, listed);
            let form = Form {
                schema: version.schema.clone(),
                type_id: version.type_id,
                has_defaults: listed["schema"].to_string().contains("\"default\":"),
            };
            shared.add(format!("{group}/{}", version.name), form);
            version
        })
        .collect();
    if versions.len() > 1 || shared.has_defaults() {
        let shared = Arc::new(shared);
        for (version, listed) in versions.iter_mut().zip(&listed) {
            let (columns, cells) = columns(listed);
            version.convert = Some(Conversion::Custom(Arc::new(conversion::Version {
                api_version: format!("{group}/{}", version.name),
                selectable: strategy::selectable(listed),
                strategy: Arc::new(CustomResource::new(listed, definition, &cells)?),
                columns,
                subresources: subresources(listed),
                shared: shared.clone(),
            })));
        }
    }
    let columns = columns(storage);
    let strategy = CustomResource::new(storage, definition, &columns.1)?;
    Ok(Resource {
        prefix: format!("/registry/{group}/{}", text(&names["plural"])).into(),
        group: group.into(),
        kind: kind.into(),
        list_kind: text(&names["listKind"]).into(),
        plural: text(&names["plural"]).into(),
        singular: text(&names["singular"]).into(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        versions,
        storage: stored,
        verbs: if meta::is_deleting(definition) {
            Verbs::Ending
        } else {
            Verbs::Custom
        },
        subresources: subresources(storage),
        columns: columns.0,
        name_rule: NameRule::DnsSubdomain,
        ttl: None,
        strategy: Arc::new(strategy),
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<Text> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| text(item).into())
        .collect()
}

fn version(group: &str, kind: &str, version: &Value) -> Version {
    let name = text(&version["name"]);
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let type_name = format!("{}.{name}.{kind}", reversed.join("."));
    let (schema, type_id) =
        Schema::from_structural(&type_name, &version["schema"]["openAPIV3Schema"]);
    Version {
        name: name.into(),
        schema: Arc::new(schema),
        type_id,
        convert: None,
        served: version["served"] == true,
        deprecation: (version["deprecated"] == true).then(|| {
            let warning = version["deprecationWarning"].as_str();
            let name = text(&version["name"]);
            warning
                .map_or_else(
                    || format!("{group}/{name} {kind} is deprecated"),
                    str::to_owned,
                )
                .into()
        }),
        openapi: Some(Arc::new(version["schema"]["openAPIV3Schema"].clone())),
    }
}

fn subresources(version: &Value) -> Vec<Subresource> {
    let listed = &version["subresources"];
    let mut subresources = Vec::new();
    if listed["status"].is_object() {
        subresources.push(Subresource::Status);
    }
    let scale = &listed["scale"];
    if scale.is_object() {
        let pointer = |key: &str| {
            scale[key]
                .as_str()
                .map(|path| Text::from(path.replace('.', "/")))
        };
        subresources.push(Subresource::Scale(ScalePaths {
            spec_replicas: pointer("specReplicasPath").unwrap_or_default(),
            status_replicas: pointer("statusReplicasPath").unwrap_or_default(),
            selector: pointer("labelSelectorPath"),
        }));
    }
    subresources
}

/// The printer columns, and the path of each one's cell.
fn columns(version: &Value) -> (Vec<Column>, Vec<(String, String)>) {
    let listed = version["additionalPrinterColumns"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if listed.is_empty() {
        let age = Column {
            name: "Age".into(),
            kind: "date".into(),
            format: "".into(),
            description: "The time since the object was created.".into(),
            priority: 0,
        };
        let cell = (".metadata.creationTimestamp".to_owned(), "date".to_owned());
        return (vec![age], vec![cell]);
    }
    listed
        .iter()
        .map(|column| {
            let (path, kind) = (text(&column["jsonPath"]), text(&column["type"]));
            let described = column["description"].as_str().unwrap_or_default();
            let description = match described {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                described => described.to_owned(),
            };
            let column = Column {
                name: text(&column["name"]).into(),
                kind: kind.clone().into(),
                format: text(&column["format"]).into(),
                description: description.into(),
                priority: column["priority"]
                    .as_i64()
                    .and_then(|p| i32::try_from(p).ok())
                    .unwrap_or(0),
            };
            (column, (path, kind))
        })
        .unzip()
}
