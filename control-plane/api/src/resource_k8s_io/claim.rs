//! ResourceClaims and their templates.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::device_class;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::{immutable, named, one_of, required};

const MAX_REQUESTS: usize = 32;
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

fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("devices").child("requests");
    let requests = spec.list("devices.requests");
    if requests.len() > MAX_REQUESTS {
        errors.too_many(&path, requests.len(), MAX_REQUESTS);
    }
    let mut seen = HashSet::new();
    for (i, request) in requests.iter().enumerate() {
        let path = path.index(i);
        named(request, "name", names::is_dns1123_label, &path, errors);
        let name = request.text("name");
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        let (exactly, alternatives) = (request.at("exactly"), request.list("firstAvailable"));
        match (exactly.is_null(), alternatives.is_empty()) {
            (true, true) => {
                errors.required(&path, "exactly one of `exactly` or `firstAvailable` is required");
            }
            (false, false) => errors.invalid(
                &path,
                Value::Null,
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (false, true) => validate_request(exactly, &path.child("exactly"), errors),
            (true, false) => {
                if alternatives.len() > MAX_ALTERNATIVES {
                    errors.too_many(&path.child("firstAvailable"), alternatives.len(), MAX_ALTERNATIVES);
                }
                for (j, alternative) in alternatives.iter().enumerate() {
                    let path = path.child("firstAvailable").index(j);
                    named(alternative, "name", names::is_dns1123_label, &path, errors);
                    validate_request(alternative, &path, errors);
                }
            }
        }
    }
}

fn validate_request(request: &Value, path: &Path, errors: &mut Errors) {
    named(
        request,
        "deviceClassName",
        names::is_dns1123_subdomain,
        path,
        errors,
    );
    device_class::selectors(request, path, errors);
    one_of(
        request,
        "allocationMode",
        &["All", "ExactCount"],
        path,
        errors,
    );
    let count = request.int("count");
    match (request.text("allocationMode"), count) {
        ("All", Some(count)) if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(&path.child("count"), count, detail);
        }
        ("ExactCount", count) if count.unwrap_or_default() <= 0 => {
            let detail = "must be greater than zero";
            errors.invalid(&path.child("count"), count.unwrap_or_default(), detail);
        }
        _ => {}
    }
}

pub struct ResourceClaim;

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        default_requests(object, "spec.devices.requests");
        tree::object_at(object, "spec");
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({}));
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        validate_spec(object.at("spec"), &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        let reserved = new.list("status.reservedFor");
        if !reserved.is_empty() && !new.has("status.allocation") {
            let detail = "may not be specified when `allocated` is not set";
            errors.forbidden(&path.child("reservedFor"), detail);
        }
        if old.has("status.allocation") && new.has("status.allocation") {
            immutable(new, old, "status.allocation", errors);
        }
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

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("spec");
        validate_spec(object.at("spec.spec"), &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![age(object, now)]
    }
}

/// A reference that names its driver and pool is only complete with both.
pub(super) fn driver(spec: &Value, path: &Path, errors: &mut Errors) {
    if let Some(name) = required(spec, "driver", path, errors) {
        let path = path.child("driver");
        if name.len() > 63 {
            errors.too_long(&path, 63);
        }
        crate::validate::sentences(names::is_dns1123_subdomain(name), &path, name, errors);
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
                "spec.devices.requests[1].name: Duplicate value: \"a\"",
                "spec.devices.requests[1]: Required value: exactly one of `exactly` or `firstAvailable` is \
                 required",
            ]
        );
        assert_eq!(ResourceClaim.row(&object, 0)[0], "pending");
    }
}
