//! CustomResourceDefinitions.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::{approval, defaults, names, versions};
use crate::admissionregistration::webhook::client_config;
use crate::resource::Strategy;
use crate::table::created_at;
use crate::tree::{self, Tree};
use crate::validate::{immutable, one_of};

pub struct CustomResourceDefinition;

impl Strategy for CustomResourceDefinition {
    fn default(&self, object: &mut Value) {
        let kind = object.text("spec.names.kind").to_owned();
        tree::fill(object, "spec.names.singular", kind.to_lowercase());
        if !kind.is_empty() {
            tree::fill(object, "spec.names.listKind", format!("{kind}List"));
        }
        tree::fill(object, "spec.conversion.strategy", "None");
        tree::fill_in(
            object,
            "spec.conversion.webhook.clientConfig.service.port",
            443,
        );
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let status = json!({
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": storage_version(object).map(|v| vec![v]).unwrap_or_default(),
        });
        tree::set(object, "status", status);
    }

    /// Objects may be stored in any version that ever was the storage version, until someone migrates them.
    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        let Some(version) = storage_version(new) else {
            return;
        };
        let mut stored = new.list("status.storedVersions").to_vec();
        if !stored.iter().any(|v| *v == version) {
            stored.push(version.into());
            tree::set(new, "status.storedVersions", stored);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let expected = format!("{}.{}", spec.text("names.plural"), spec.text("group"));
        let name = object.text("metadata.name");
        if name != expected {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
        names::group(spec.text("group"), &path.child("group"), errors);
        one_of(spec, "scope", &["Cluster", "Namespaced"], &path, errors);
        versions::validate(spec, &path, errors);
        names::validate(spec.at("names"), &path.child("names"), errors);
        conversion(spec, &path.child("conversion"), errors);
        if spec.flag("preserveUnknownFields") {
            let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                          spec.versions[*].schema instead";
            errors.invalid(&path.child("preserveUnknownFields"), true, detail);
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        approval::validate(object, errors);
        let versions = object.list("spec.versions");
        for (i, version) in versions.iter().enumerate() {
            let path = Path::new("spec").child("versions").index(i);
            let path = path.child("schema").child("openAPIV3Schema");
            let schema = version.at("schema.openAPIV3Schema");
            defaults::validate(schema, &Value::Null, &path, errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if approval::annotation(new) != approval::annotation(old) {
            approval::validate(new, errors);
        }
        for (i, version) in new.list("spec.versions").iter().enumerate() {
            let path = Path::new("spec").child("versions").index(i);
            let path = path.child("schema").child("openAPIV3Schema");
            let mut before = old.list("spec.versions").iter();
            let before = before.find(|old| old.text("name") == version.text("name"));
            let before = before.map_or(&Value::Null, |old| old.at("schema.openAPIV3Schema"));
            defaults::validate(version.at("schema.openAPIV3Schema"), before, &path, errors);
        }
        let established = old
            .list("status.conditions")
            .iter()
            .any(|c| c.text("type") == "Established" && c.text("status") == "True");
        immutable(new, old, "spec.group", errors);
        if established {
            for field in ["spec.scope", "spec.names.kind", "spec.names.plural"] {
                immutable(new, old, field, errors);
            }
        }
        stored_versions(new, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        stored_versions(new, errors);
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        created_at(object)
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

fn storage_version(object: &Value) -> Option<String> {
    let storage = object
        .list("spec.versions")
        .iter()
        .find(|version| version.flag("storage"))?;
    Some(storage.text("name").to_owned())
}

/// A version in which objects may be stored must stay listed.
fn stored_versions(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("storedVersions");
    let stored = object.list("status.storedVersions");
    if stored.is_empty() {
        errors.invalid(&path, json!([]), "must have at least one stored version");
    }
    for (i, version) in stored.iter().enumerate() {
        let listed = object
            .list("spec.versions")
            .iter()
            .any(|v| Some(v.text("name")) == version.as_str());
        if !listed {
            errors.invalid(
                &path.index(i),
                version.clone(),
                "must appear in spec.versions",
            );
        }
    }
}

fn conversion(spec: &Value, path: &Path, errors: &mut Errors) {
    let conversion = spec.at("conversion");
    one_of(conversion, "strategy", &["None", "Webhook"], path, errors);
    let webhook = conversion.at("webhook");
    let webhook_path = path.child("webhook");
    if conversion.text("strategy") != "Webhook" {
        if !webhook.is_null() {
            let detail = "should not be set when strategy is not set to Webhook";
            errors.forbidden(&webhook_path, detail);
        }
        return;
    }
    if webhook.is_null() {
        errors.required(&webhook_path, "required when strategy is set to Webhook");
        return;
    }
    let config_path = webhook_path.child("clientConfig");
    if webhook.has("clientConfig") {
        client_config(webhook.at("clientConfig"), &config_path, errors);
    } else {
        errors.required(&config_path, "required when strategy is set to Webhook");
    }
    let reviews = webhook.list("conversionReviewVersions");
    let reviews_path = webhook_path.child("conversionReviewVersions");
    if reviews.is_empty() {
        errors.required(&reviews_path, "");
    } else if !reviews.iter().any(|v| v == "v1" || v == "v1beta1") {
        let value = webhook.at("conversionReviewVersions").clone();
        errors.invalid(
            &reviews_path,
            value,
            "must include at least one of v1, v1beta1",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    fn definition() -> Value {
        let mut object = json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{
                    "name": "v1",
                    "served": true,
                    "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                    }}},
                }],
            },
        });
        CustomResourceDefinition.default(&mut object);
        CustomResourceDefinition.prepare_for_create(&mut object);
        object
    }

    #[test]
    fn a_usual_definition_is_completed_and_has_no_faults() {
        let object = definition();
        assert_eq!(object["spec"]["names"]["singular"], "widget");
        assert_eq!(object["spec"]["names"]["listKind"], "WidgetList");
        assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
        let found = lines(|e| CustomResourceDefinition.validate(&object, None, e));
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn names_must_agree_and_stay() {
        let mut object = definition();
        object["metadata"]["name"] = "widgets.example.org".into();
        assert_eq!(
            lines(|e| CustomResourceDefinition.validate(&object, None, e)),
            [
                "metadata.name: Invalid value: \"widgets.example.org\": must be \
                 spec.names.plural+\".\"+spec.group"
            ]
        );
        let mut old = definition();
        old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut new = old.clone();
        new["spec"]["scope"] = "Cluster".into();
        assert_eq!(
            lines(|e| CustomResourceDefinition.validate_update(&new, &old, e)),
            ["spec.scope: Invalid value: \"Cluster\": field is immutable"]
        );
    }

    #[test]
    fn a_stored_version_cannot_be_dropped() {
        let old = definition();
        let mut new = old.clone();
        new["spec"]["versions"][0]["name"] = "v2".into();
        CustomResourceDefinition.prepare_for_update(&mut new, &old);
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
        assert_eq!(
            lines(|e| CustomResourceDefinition.validate_update(&new, &old, e)),
            ["status.storedVersions[0]: Invalid value: \"v1\": must appear in spec.versions"]
        );
    }
}
