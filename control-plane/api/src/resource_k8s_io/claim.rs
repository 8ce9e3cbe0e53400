//! ResourceClaims and their templates.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::claim_status;
use super::device::{self, MANY, each_of, each_once, label};
use crate::core::pod_spec::volume_source::template_metadata;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::{immutable, named};

const MAX_ALTERNATIVES: usize = 8;

fn default_requests(object: &mut Value, requests: &str) {
    for request in each(object, requests) {
        if let Some(exactly) = tree::at_mut(request, "exactly").filter(|e| e.is_object()) {
            default_request(exactly);
        }
        each(request, "firstAvailable").for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    tree::fill(request, "allocationMode", "ExactCount");
    if request.text("allocationMode") == "ExactCount" {
        tree::fill(request, "count", 1);
    }
    for toleration in each(request, "tolerations") {
        tree::fill(toleration, "operator", "Equal");
    }
}

/// The fields of requests that belong to what is off in v1.35.
fn drop_gated_requests(object: &mut Value, devices: &str, old: Option<&Value>) {
    let uses = |field: &str| {
        old.is_some_and(|old| old.at(devices).to_string().contains(&format!("{field:?}:")))
    };
    for field in ["tolerations", "capacity", "distinctAttribute"] {
        if uses(field) {
            continue;
        }
        for request in each(object, &format!("{devices}.requests")) {
            tree::remove(request, &format!("exactly.{field}"));
            each(request, "firstAvailable").for_each(|alternative| {
                tree::remove(alternative, field);
            });
        }
        for constraint in each(object, &format!("{devices}.constraints")) {
            tree::remove(constraint, field);
        }
    }
}

/// What a claim calls its requests: `request`, or `request/alternative`.
pub(super) struct Names<'c>(Vec<(&'c str, Vec<&'c str>)>);

impl<'c> Names<'c> {
    fn of(devices: &'c Value) -> Self {
        let requests = devices.list("requests").iter().map(|request| {
            let alternatives = request.list("firstAvailable").iter();
            (
                request.text("name"),
                alternatives.map(device::name_of).collect(),
            )
        });
        Self(requests.collect())
    }

    fn has(&self, name: &str) -> bool {
        let (request, alternative) = match name.split_once('/') {
            Some((request, alternative)) => (request, Some(alternative)),
            None => (name, None),
        };
        let mut own = self.0.iter().filter(|(known, _)| *known == request);
        own.any(|(_, known)| alternative.is_none_or(|alternative| known.contains(&alternative)))
    }

    pub(super) fn reference(&self, name: &str, path: &Path, errors: &mut Errors) {
        let detail = "must be the name of a request in the claim or the name of a request and a subrequest \
                      separated by '/'";
        let parts: Vec<_> = name.split('/').collect();
        if parts.len() > 2 {
            return errors.invalid(path, name, detail);
        }
        for part in parts {
            label(part, path, errors);
        }
        if !self.has(name) {
            errors.invalid(path, name, detail);
        }
    }

    /// The `requests` of a constraint or configuration.
    pub(super) fn references(&self, holder: &Value, path: &Path, errors: &mut Errors) {
        let (list, path) = (holder.list("requests"), path.child("requests"));
        each_once(
            list,
            MANY,
            device::itself,
            &path,
            errors,
            |name, path, errors| {
                self.reference(device::itself(name), path, errors);
            },
        );
    }
}

fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let (devices, path) = (spec.at("devices"), path.child("devices"));
    let known = Names::of(devices);
    let requests = devices.list("requests");
    let requests_path = path.child("requests");
    each_once(
        requests,
        MANY,
        device::name_of,
        &requests_path,
        errors,
        validate_request,
    );
    let constraints = devices.list("constraints");
    each_of(
        constraints,
        MANY,
        &path.child("constraints"),
        errors,
        |constraint, path, errors| {
            known.references(constraint, path, errors);
            let path_of = |field: &str| path.child(field);
            if constraint.has("matchAttribute") {
                let attribute = constraint.text("matchAttribute");
                device::fully_qualified_name(attribute, &path_of("matchAttribute"), errors);
            } else if constraint.has("distinctAttribute") {
                let attribute = constraint.text("distinctAttribute");
                device::fully_qualified_name(attribute, &path_of("distinctAttribute"), errors);
            } else {
                errors.required(&path_of("matchAttribute"), "");
            }
        },
    );
    each_of(
        devices.list("config"),
        MANY,
        &path.child("config"),
        errors,
        |config, path, errors| {
            known.references(config, path, errors);
            device::configuration(config, false, path, errors);
        },
    );
}

fn validate_request(request: &Value, path: &Path, errors: &mut Errors) {
    label(request.text("name"), &path.child("name"), errors);
    let (exactly, alternatives) = (request.at("exactly"), request.list("firstAvailable"));
    match (exactly.is_null(), alternatives.is_empty()) {
        (true, true) => {
            errors.required(
                path,
                "exactly one of `exactly` or `firstAvailable` is required",
            );
        }
        (false, false) => errors.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (false, true) => validate_devices(exactly, &path.child("exactly"), errors),
        (true, false) => {
            let path = path.child("firstAvailable");
            let key = device::name_of;
            each_once(
                alternatives,
                MAX_ALTERNATIVES,
                key,
                &path,
                errors,
                |one, path, errors| {
                    label(one.text("name"), &path.child("name"), errors);
                    validate_devices(one, path, errors);
                },
            );
        }
    }
}

/// Which devices, and how many of them.
fn validate_devices(request: &Value, path: &Path, errors: &mut Errors) {
    let subdomain = names::is_dns1123_subdomain;
    named(request, "deviceClassName", subdomain, path, errors);
    device::selectors(request, path, errors);
    let mode = request.text("allocationMode");
    let count = request.int("count").unwrap_or_default();
    let count_path = path.child("count");
    match mode {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(&count_path, count, detail);
        }
        "ExactCount" if count <= 0 => {
            errors.invalid(&count_path, count, "must be greater than zero");
        }
        "All" | "ExactCount" => {}
        other => {
            let modes = &["All", "ExactCount"];
            errors.not_supported(&path.child("allocationMode"), other, modes);
        }
    }
}

pub struct ResourceClaim;

impl Strategy for ResourceClaim {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn default(&self, object: &mut Value) {
        default_requests(object, "spec.devices.requests");
        tree::object_at(object, "spec");
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({}));
        drop_gated_requests(object, "spec.devices", None);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        drop_gated_requests(new, "spec.devices", Some(old));
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        validate_spec(object.at("spec"), &Path::new("spec"), errors);
    }

    /// The specification is not looked at again, since nobody can change it.
    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        claim_status::validate(new, old, &Names::of(new.at("spec.devices")), errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let deleted = object.has("metadata.deletionTimestamp");
        let mut states = Vec::new();
        if deleted {
            states.push("deleted");
        }
        if object.has("status.allocation") {
            states.push("allocated");
            if !object.list("status.reservedFor").is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        cells![states.join(","), age(object, now)]
    }
}

pub struct ResourceClaimTemplate;

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        default_requests(object, "spec.spec.devices.requests");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        drop_gated_requests(object, "spec.spec.devices", None);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        drop_gated_requests(new, "spec.spec.devices", Some(old));
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        template_metadata(spec.at("metadata"), &path.child("metadata"), errors);
        validate_spec(spec.at("spec"), &path.child("spec"), errors);
    }

    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn requests_are_completed_and_checked() {
        let mut object = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu"}},
            {"name": "a"},
        ]}}});
        ResourceClaim.default(&mut object);
        assert_eq!(
            object["spec"]["devices"]["requests"][0]["exactly"],
            json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1})
        );
        assert_eq!(
            lines(|e| ResourceClaim.validate(&object, None, e)),
            [
                "spec.devices.requests[1]: Required value: exactly one of `exactly` or `firstAvailable` is \
                 required",
                "spec.devices.requests[1]: Duplicate value: \"a\"",
            ]
        );
        assert_eq!(ResourceClaim.row(&object, 0)[0], "pending");
    }
}
