//! CustomResourceDefinitions.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::schema::{self, Kept};
use super::{approval, names, versions};
use crate::admissionregistration::webhook::{client_config, is_review_version, review_versions};
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
        if !object.has("spec.conversion") {
            tree::fill(object, "spec.conversion.strategy", "None");
        }
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

    /// In the order of upstream, which tells of what may not change before it tells of the status.
    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let expected = format!("{}.{}", spec.text("names.plural"), spec.text("group"));
        let name = object.text("metadata.name");
        if old.is_none() && !name.is_empty() && name != expected {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
        let kept = old.map(Kept::of).unwrap_or_default();
        names::group(spec.text("group"), &path.child("group"), errors);
        one_of(spec, "scope", &["Cluster", "Namespaced"], &path, errors);
        versions::validate(spec, &kept, &path, errors);
        names::required(spec.at("names"), &path.child("names"), errors);
        names::validate(spec.at("names"), &path.child("names"), errors);
        versions::validate_shared(spec, &kept, &path, errors);
        conversion(spec, old, &path.child("conversion"), errors);
        if let Some(old) = old {
            if is_established(old) {
                immutable(object, old, "spec.scope", errors);
                immutable(object, old, "spec.names.kind", errors);
            }
            immutable(object, old, "spec.group", errors);
            immutable(object, old, "spec.names.plural", errors);
        }
        accepted_names(object, errors);
        stored_versions(object, errors);
        if old.map(approval::annotation) != Some(approval::annotation(object)) {
            approval::validate(object, errors);
        }
        let could = old.is_some_and(|old| old.flag("spec.preserveUnknownFields"));
        if spec.flag("preserveUnknownFields") && !could {
            let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                          spec.versions[*].schema instead";
            errors.invalid(&path.child("preserveUnknownFields"), true, detail);
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        accepted_names(new, errors);
    }

    /// Formats that are new to the definition and known to nobody.
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let before = old.map(unknown_formats).unwrap_or_default();
        let mut now = unknown_formats(new);
        now.retain(|format| !before.contains(format));
        now.iter()
            .map(|format| format!("unrecognized format {format:?}"))
            .collect()
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

fn unknown_formats(object: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    for version in object.list("spec.versions") {
        schema::unknown_formats(version.at("schema.openAPIV3Schema"), &mut found);
    }
    found
}

fn is_established(object: &Value) -> bool {
    let mut conditions = object.list("status.conditions").iter();
    conditions.any(|c| c.text("type") == "Established" && c.text("status") == "True")
}

fn accepted_names(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("acceptedNames");
    names::validate(object.at("status.acceptedNames"), &path, errors);
}

/// A version in which objects may be stored must stay listed.
fn stored_versions(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("storedVersions");
    let stored = object.list("status.storedVersions");
    if stored.is_empty() {
        let detail = "must have at least one stored version";
        return errors.invalid(&path, Value::Null, detail);
    }
    let versions = object.list("spec.versions");
    for version in versions.iter().filter(|version| version.flag("storage")) {
        let name = version.text("name");
        if !stored.iter().any(|stored| stored == name) {
            let detail = format!("must have the storage version {name}");
            errors.invalid(&path, stored.to_vec(), detail);
        }
    }
    for (i, stored) in stored.iter().enumerate() {
        let name = stored.as_str().unwrap_or_default();
        if !versions.iter().any(|version| version.text("name") == name) {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {name} and \
                 removes {name} from status.storedVersions"
            );
            errors.invalid(&path.index(i), name, detail);
        }
    }
}

/// The fields of `webhook` stand beside the strategy in upstream's internal type.
fn conversion(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let conversion = spec.at("conversion");
    let strategy = conversion.text("strategy");
    if spec.flag("preserveUnknownFields") && strategy != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&path.child("strategy"), strategy, detail);
    }
    one_of(conversion, "strategy", &["None", "Webhook"], path, errors);
    let config = conversion.at("webhook.clientConfig");
    let config_path = path.child("webhookClientConfig");
    let reviews_path = path.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if !config.is_null() {
            errors.forbidden(&config_path, detail);
        }
        if !conversion
            .list("webhook.conversionReviewVersions")
            .is_empty()
        {
            errors.forbidden(&reviews_path, detail);
        }
        return;
    }
    if config.is_null() {
        errors.required(&config_path, "required when strategy is set to Webhook");
    } else {
        client_config(config, &config_path, errors);
        let bundle = config.text("caBundle");
        // Before it is established a definition may be completed.
        let must_fit = old.is_some_and(|old| {
            let before = old.text("spec.conversion.webhook.clientConfig.caBundle");
            is_established(old) && (before.is_empty() || is_ca_bundle(before))
        });
        if must_fit && !bundle.is_empty() && !is_ca_bundle(bundle) {
            let detail = "unable to load root certificates: unable to parse bytes as PEM block";
            errors.invalid(&config_path.child("caBundle"), bundle, detail);
        }
    }
    let before = old.map(|old| old.at("spec.conversion.webhook.conversionReviewVersions"));
    let may_be_odd = before.is_some_and(|before| {
        let before = before.as_array().map_or(&[][..], Vec::as_slice);
        !before.is_empty() && !before.iter().any(is_review_version)
    });
    let reviews = conversion.at("webhook.conversionReviewVersions");
    review_versions(reviews, !may_be_odd, &reviews_path, "", errors);
}

/// Whether base64 is of certificates in PEM.
fn is_ca_bundle(base64: &str) -> bool {
    BASE64_STANDARD.decode(base64).is_ok_and(|pem| {
        let text = String::from_utf8_lossy(&pem);
        let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
        let inside = text
            .split_once(begin)
            .and_then(|(_, rest)| rest.split_once(end));
        inside.is_some_and(|(inside, _)| {
            let lines: String = inside.split_whitespace().collect();
            !lines.is_empty() && BASE64_STANDARD.decode(lines).is_ok()
        })
    })
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
            lines(|e| CustomResourceDefinition.validate(&new, Some(&old), e)),
            ["spec.scope: Invalid value: \"Cluster\": field is immutable"]
        );
    }

    #[test]
    fn formats_that_nobody_knows_are_told_once() {
        let mut new = definition();
        let properties = json!({"a": {"type": "string", "format": "date-time"}, "b": {"type": "string", "format": "odd"},
            "c": {"type": "integer", "format": "int32"}});
        new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] = properties;
        let warnings = |old: Option<&Value>| CustomResourceDefinition.warnings(&new, old);
        assert_eq!(warnings(None), ["unrecognized format \"odd\""]);
        assert!(warnings(Some(&new)).is_empty());
    }

    #[test]
    fn a_stored_version_cannot_be_dropped() {
        let old = definition();
        let mut new = old.clone();
        new["spec"]["versions"][0]["name"] = "v2".into();
        CustomResourceDefinition.prepare_for_update(&mut new, &old);
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
        assert_eq!(
            lines(|e| CustomResourceDefinition.validate(&new, Some(&old), e)),
            [
                "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage \
                 version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 \
                 and removes v1 from status.storedVersions"
            ]
        );
    }
}
