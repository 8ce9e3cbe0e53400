//! VolumeAttachments.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::{named, same};

pub struct VolumeAttachment;

impl Strategy for VolumeAttachment {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "status.attached", false);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"attached": false}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        named(spec, "attacher", names::is_dns1123_subdomain, &path, errors);
        named(spec, "nodeName", names::is_dns1123_subdomain, &path, errors);
        let source = spec.at("source");
        let path = path.child("source");
        match (
            source.has("inlineVolumeSpec"),
            source.has("persistentVolumeName"),
        ) {
            (false, false) => {
                errors.required(
                    &path,
                    "must specify one of inlineVolumeSpec and persistentVolumeName",
                );
            }
            (true, true) => errors.forbidden(
                &path,
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (false, true) if source.text("persistentVolumeName").is_empty() => {
                let detail = "must specify non empty persistentVolumeName";
                errors.required(&path.child("persistentVolumeName"), detail);
            }
            _ => {}
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if !same(new.at("spec"), old.at("spec")) {
            errors.invalid(
                &Path::new("spec"),
                new.at("spec").clone(),
                "field is immutable",
            );
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        cells![
            spec.text("attacher"),
            spec.text("source.persistentVolumeName"),
            spec.text("nodeName"),
            object.flag("status.attached"),
            age(object, now),
        ]
    }
}
