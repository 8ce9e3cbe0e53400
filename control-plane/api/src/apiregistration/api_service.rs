//! APIServices.

use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{names, time};

use crate::core::config_map::decoded_len;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::numbers::service_port;
use crate::validate::sentences;

pub struct ApiService;

impl Strategy for ApiService {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn default(&self, object: &mut Value) {
        tree::fill_in(object, "spec.service.port", 443);
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        let mut status = json!({});
        if !object.has("spec.service") {
            status["conditions"] = json!([{
                "type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available",
                "lastTransitionTime": time::format(Timestamp::now().as_second()),
            }]);
        }
        tree::set(object, "status", status);
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let (group, version, name) = (
            spec.text("group"),
            spec.text("version"),
            object.text("metadata.name"),
        );
        let expected = format!("{version}.{group}");
        if !name.is_empty() && name != expected {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {expected:?}");
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
        if group.is_empty() {
            if version != "v1" {
                errors.required(
                    &path.child("group"),
                    "only v1 may have an empty group and it better be legacy kube",
                );
            }
        } else {
            sentences(
                names::is_dns1123_subdomain(group),
                &path.child("group"),
                group,
                errors,
            );
        }
        sentences(
            names::is_dns1035_label(version),
            &path.child("version"),
            version,
            errors,
        );
        for (field, max) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
            let priority = spec.int(field).unwrap_or_default();
            if !(1..=max).contains(&priority) {
                let detail = format!("must be positive and less than {max}");
                errors.invalid(&path.child(field), priority, detail);
            }
        }
        let service = spec.at("service");
        let (insecure, bundle) = (spec.flag("insecureSkipTLSVerify"), spec.text("caBundle"));
        if service.is_null() {
            if !bundle.is_empty() {
                let detail = "local APIServices may not have a caBundle";
                errors.invalid(
                    &path.child("caBundle"),
                    format!("{} bytes", decoded_len(bundle)),
                    detail,
                );
            }
            if insecure {
                let detail = "local APIServices may not have insecureSkipTLSVerify";
                errors.invalid(&path.child("insecureSkipTLSVerify"), true, detail);
            }
            return;
        }
        let service_path = path.child("service");
        for field in ["namespace", "name"] {
            if service.text(field).is_empty() {
                errors.required(&service_path.child(field), "");
            }
        }
        service_port(service, &service_path, errors);
        if insecure && !bundle.is_empty() {
            let detail = "may not be true if caBundle is present";
            errors.invalid(&path.child("insecureSkipTLSVerify"), true, detail);
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let statuses = &["True", "False", "Unknown"];
        let path = Path::new("status").child("conditions");
        for (i, condition) in new.list("status.conditions").iter().enumerate() {
            let status = condition.text("status");
            if !statuses.contains(&status) {
                errors.not_supported(&path.index(i).child("status"), status, statuses);
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let service = object.at("spec.service");
        let shown = if service.is_null() {
            "Local".to_owned()
        } else {
            format!("{}/{}", service.text("namespace"), service.text("name"))
        };
        let available = object
            .list("status.conditions")
            .iter()
            .find(|c| c.text("type") == "Available");
        let state = available.map_or_else(
            || "Unknown".to_owned(),
            |condition| match condition.text("status") {
                "True" => "True".to_owned(),
                status => format!("{status} ({})", condition.text("reason")),
            },
        );
        cells![shown, state, age(object, now)]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn the_name_is_version_and_group() {
        let object = json!({"metadata": {"name": "x"}, "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1",
            "groupPriorityMinimum": 100, "versionPriority": 100,
        }});
        assert_eq!(
            lines(|e| ApiService.validate(&object, None, e)),
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \
                 \"v1beta1.metrics.k8s.io\""
            ]
        );
    }

    #[test]
    fn rows_tell_whether_it_answers() {
        let object = json!({
            "spec": {"service": {"namespace": "n", "name": "s"}},
            "status": {"conditions": [{"type": "Available", "status": "False", "reason": "Down"}]},
        });
        assert_eq!(
            ApiService.row(&object, 0)[..2],
            [json!("n/s"), json!("False (Down)")]
        );
    }
}
