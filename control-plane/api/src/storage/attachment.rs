//! VolumeAttachments.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::csi::driver_name;
use crate::core::volume_spec;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::{required, same, sentences};

pub struct VolumeAttachment;

impl Strategy for VolumeAttachment {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn default(&self, object: &mut Value) {
        tree::fill(object, "status.attached", false);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"attached": false}));
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        required(spec, "attacher", &path, errors);
        validate_source(spec, &path.child("source"), errors);
        let node = spec.text("nodeName");
        let problems = names::is_dns1123_subdomain(node);
        sentences(problems, &path.child("nodeName"), node, errors);
        validate_status(object, errors);
    }

    /// What was let in before v1 is not looked at again.
    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        driver_name(spec.text("attacher"), &path.child("attacher"), errors);
        let volume = spec.text("source.persistentVolumeName");
        if spec.has("source.persistentVolumeName") {
            let path = path.child("source").child("persistentVolumeName");
            sentences(names::is_dns1123_subdomain(volume), &path, volume, errors);
        }
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate_change(new, old, errors);
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

/// Bytes.
const MAX_METADATA: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;

fn validate_source(spec: &Value, path: &Path, errors: &mut Errors) {
    let source = spec.at("source");
    match (
        source.has("inlineVolumeSpec"),
        source.has("persistentVolumeName"),
    ) {
        (false, false) => {
            errors.required(
                path,
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            );
        }
        (true, true) => errors.forbidden(
            path,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (false, true) if source.text("persistentVolumeName").is_empty() => {
            let detail = "must specify non empty persistentVolumeName";
            errors.required(&path.child("persistentVolumeName"), detail);
        }
        (true, false) => {
            volume_spec::validate_inline(
                source.at("inlineVolumeSpec"),
                &path.child("inlineVolumeSpec"),
                errors,
            );
        }
        (false, true) => {}
    }
}

fn validate_status(object: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let metadata = path.child("attachmentMetadata");
    let mut bytes = 0;
    for (key, value) in object.entries("status.attachmentMetadata") {
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_METADATA {
        errors.too_long(&metadata, MAX_METADATA);
    }
    for field in ["attachError", "detachError"] {
        let (error, path) = (object.at("status").at(field), path.child(field));
        if error.text("message").len() > MAX_MESSAGE {
            // Upstream names the other bound.
            errors.too_long(&path.child("message"), MAX_METADATA);
        }
        if let Some(code) = error.int("errorCode").filter(|code| *code < 0) {
            let detail = names::inclusive_range(0, i32::MAX.into());
            errors.invalid(&path.child("errorCode"), code, detail);
        }
    }
}
