//! ResourceSlices: the devices that a driver offers.

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::device::{self, each_once, label, pool_name, qualified_name};
use crate::core::pod_spec::node_selector;
use crate::resource::Strategy;
use crate::storage::csi::driver_name;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::{immutable, sentences};

pub struct ResourceSlice;

const MAX_DEVICES: usize = 128;
/// Attributes and capacities of a device.
const MAX_PROPERTIES: usize = 32;
/// Bytes.
const MAX_TEXT: usize = 64;

impl Strategy for ResourceSlice {
    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_for_create(&self, object: &mut Value) {
        drop_gated(object, None);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        drop_gated(new, Some(old));
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        driver_name(spec.text("driver"), &path.child("driver"), errors);
        pool(spec.at("pool"), &path.child("pool"), errors);
        if let Some(old) = old {
            for field in ["spec.pool.name", "spec.driver", "spec.nodeName"] {
                immutable(object, old, field, errors);
            }
        }
        place(spec, &path, errors);
        let (devices, path) = (spec.list("devices"), path.child("devices"));
        each_once(
            devices,
            MAX_DEVICES,
            device::name_of,
            &path,
            errors,
            validate_device,
        );
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn unselectable(&self, field: &str) -> String {
        format!("field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: {field}")
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        cells![
            spec.text("nodeName"),
            spec.text("driver"),
            spec.text("pool.name"),
            age(object, now)
        ]
    }
}

/// Partitions, taints, shares and conditions of binding are off in v1.35.
fn drop_gated(object: &mut Value, old: Option<&Value>) {
    device::drop_gated(
        object,
        old,
        &["spec.perDeviceNodeSelection", "spec.sharedCounters"],
    );
    let fields = [
        "consumesCounters",
        "nodeName",
        "nodeSelector",
        "allNodes",
        "taints",
        "bindsToNode",
        "bindingConditions",
        "bindingFailureConditions",
        "allowMultipleAllocations",
    ];
    let before = old.map_or(&[][..], |old| old.list("spec.devices"));
    let used = fields.map(|field| before.iter().any(|device| device.has(field)));
    for device in each(object, "spec.devices") {
        for (field, _) in fields.iter().zip(used).filter(|(_, used)| !used) {
            tree::remove(device, field);
        }
    }
}

fn pool(pool: &Value, path: &Path, errors: &mut Errors) {
    pool_name(pool.text("name"), &path.child("name"), errors);
    let count = pool.int("resourceSliceCount").unwrap_or_default();
    if count <= 0 {
        let path = path.child("resourceSliceCount");
        errors.invalid(&path, count, "must be greater than zero");
    }
    let generation = pool.int("generation").unwrap_or_default();
    if generation < 0 {
        let path = path.child("generation");
        errors.invalid(&path, generation, "must be greater than or equal to zero");
    }
}

/// From which nodes the devices can be reached.
fn place(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut given = Vec::new();
    if let Some(node) = spec.at("nodeName").as_str() {
        let path = path.child("nodeName");
        if node.is_empty() {
            let detail = "must be either unset or set to a non-empty string";
            errors.invalid(&path, node, detail);
        } else {
            given.push("`nodeName`");
            sentences(names::is_dns1123_subdomain(node), &path, node, errors);
        }
    }
    if spec.has("nodeSelector") {
        given.push("`nodeSelector`");
        let (selector, path) = (spec.at("nodeSelector"), path.child("nodeSelector"));
        node_selector(selector, &path, errors);
        let terms = selector.list("nodeSelectorTerms");
        if terms.len() != 1 {
            let detail = "must have exactly one node selector term";
            errors.invalid(&path.child("nodeSelectorTerms"), json!(terms), detail);
        }
    }
    for (field, shown) in [
        ("allNodes", "`allNodes`"),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`"),
    ] {
        match spec.at(field).as_bool() {
            Some(true) => given.push(shown),
            Some(false) => {
                let detail = "must be either unset or set to true";
                errors.invalid(&path.child(field), false, detail);
            }
            None => {}
        }
    }
    let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required";
    match given.len() {
        0 => errors.required(path, detail),
        1 => {}
        _ => {
            let detail = format!("{detail}, but multiple fields are set");
            errors.invalid(path, format!("{{{}}}", given.join(", ")), detail);
        }
    }
}

fn validate_device(device: &Value, path: &Path, errors: &mut Errors) {
    label(device.text("name"), &path.child("name"), errors);
    let count = device.entries("attributes").count() + device.entries("capacity").count();
    if count > MAX_PROPERTIES {
        let detail = format!(
            "the total number of attributes and capacities must not exceed {MAX_PROPERTIES}"
        );
        errors.invalid(path, count, detail);
    }
    for (name, attribute) in device.entries("attributes") {
        let path = path.child("attributes").key(name);
        qualified_name(name, &path, errors);
        validate_attribute(attribute, &path, errors);
    }
    for (name, capacity) in device.entries("capacity") {
        let path = path.child("capacity").key(name);
        qualified_name(name, &path, errors);
        if capacity.has("requestPolicy") && !device.flag("allowMultipleAllocations") {
            let detail = "allowMultipleAllocations must be true";
            errors.forbidden(&path.child("requestPolicy"), detail);
        }
    }
}

fn validate_attribute(attribute: &Value, path: &Path, errors: &mut Errors) {
    let version = attribute.at("version").as_str();
    let too_long = |field: &str, errors: &mut Errors| {
        if attribute.text(field).len() > MAX_TEXT {
            errors.too_long(&path.child(field), MAX_TEXT);
        }
    };
    too_long("string", errors);
    if let Some(version) = version.filter(|version| !is_semver(version)) {
        let detail = "must be a string compatible with semver.org spec 2.0.0";
        errors.invalid(&path.child("version"), version, detail);
    }
    too_long("version", errors);
    let given = ["bool", "int", "string", "version"];
    match given.iter().filter(|field| attribute.has(field)).count() {
        1 => {}
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        _ => errors.invalid(
            path,
            attribute.clone(),
            "exactly one value must be specified",
        ),
    }
}

/// `1.2.3`, with what comes before a release and what it was built of.
fn is_semver(text: &str) -> bool {
    let (rest, build) = match text.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (text, None),
    };
    let (core, before) = match rest.split_once('-') {
        Some((core, before)) => (core, Some(before)),
        None => (rest, None),
    };
    let is_word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_number = |part: &str| is_digits(part) && (part == "0" || !part.starts_with('0'));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && before.is_none_or(|before| {
            let mut parts = before.split('.');
            parts.all(|part| is_word(part) && (!is_digits(part) || is_number(part)))
        })
        && build.is_none_or(|build| build.split('.').all(is_word))
}
