//! The status of a claim: what it was given, and who uses it.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::claim::Names;
use super::device::{self, MANY, each_of, each_once, label, pool_name};
use crate::core::pod_spec::node_selector;
use crate::storage::csi::driver_name;
use crate::tree::Tree;
use crate::validate::conditions::conditions;
use crate::validate::{immutable, one_of, required};

const MAX_CONSUMERS: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_ADDRESSES: usize = 16;
/// Bytes.
const MAX_INTERFACE: usize = 256;
const MAX_HARDWARE_ADDRESS: usize = 128;

pub(super) fn validate(new: &Value, old: &Value, known: &Names<'_>, errors: &mut Errors) {
    let path = Path::new("status");
    let reserved = new.list("status.reservedFor");
    let reserved_path = path.child("reservedFor");
    each_once(
        reserved,
        MAX_CONSUMERS,
        uid_of,
        &reserved_path,
        errors,
        |consumer, path, errors| {
            for field in ["resource", "name", "uid"] {
                required(consumer, field, path, errors);
            }
        },
    );
    devices(new, &path.child("devices"), errors);
    if !reserved.is_empty() && !new.has("status.allocation") {
        let detail = "may not be specified when `allocated` is not set";
        errors.forbidden(&reserved_path, detail);
    } else if new.has("metadata.deletionTimestamp") {
        let before = old.list("status.reservedFor");
        if reserved.iter().any(|consumer| !before.contains(consumer)) {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are \
                          set";
            errors.forbidden(&reserved_path, detail);
        }
    }
    if !new.has("status.allocation") {
        return;
    }
    if old.has("status.allocation") {
        immutable(new, old, "status.allocation", errors);
    } else {
        let path = path.child("allocation");
        allocation(new.at("status.allocation"), known, &path, errors);
    }
}

fn allocation(allocation: &Value, known: &Names<'_>, path: &Path, errors: &mut Errors) {
    let devices = path.child("devices");
    let results = allocation.list("devices.results");
    each_of(
        results,
        MANY,
        &devices.child("results"),
        errors,
        |result, path, errors| {
            known.reference(result.text("request"), &path.child("request"), errors);
            parts_of_id(result, path, errors);
        },
    );
    let configs = allocation.list("devices.config");
    each_of(
        configs,
        2 * MANY,
        &devices.child("config"),
        errors,
        |config, path, errors| {
            one_of(config, "source", &["FromClaim", "FromClass"], path, errors);
            known.references(config, path, errors);
            device::configuration(config, false, path, errors);
        },
    );
    if allocation.has("nodeSelector") {
        let path = path.child("nodeSelector");
        node_selector(allocation.at("nodeSelector"), &path, errors);
    }
}

fn uid_of(consumer: &Value) -> &str {
    consumer.text("uid")
}

/// What tells a device apart from all others.
fn id(device: &Value) -> String {
    let parts = ["driver", "pool", "device"].map(|field| device.text(field));
    parts.join("/")
}

fn parts_of_id(device: &Value, path: &Path, errors: &mut Errors) {
    driver_name(device.text("driver"), &path.child("driver"), errors);
    pool_name(device.text("pool"), &path.child("pool"), errors);
    label(device.text("device"), &path.child("device"), errors);
}

fn devices(new: &Value, path: &Path, errors: &mut Errors) {
    let allocated = new.list("status.allocation.devices.results");
    let allocated: HashSet<_> = allocated.iter().map(id).collect();
    let list = new.list("status.devices");
    each_of(list, usize::MAX, path, errors, |device, path, errors| {
        parts_of_id(device, path, errors);
        if !allocated.contains(&id(device)) {
            let detail = "must be an allocated device in the claim";
            errors.invalid(path, id(device), detail);
        }
        let (list, conditions_path) = (device.list("conditions"), path.child("conditions"));
        if list.len() > MAX_CONDITIONS {
            errors.too_many(&conditions_path, list.len(), MAX_CONDITIONS);
        }
        conditions(list, &conditions_path, errors);
        if device.has("data") {
            device::object(device.at("data"), false, &path.child("data"), errors);
        }
        network(device.at("networkData"), &path.child("networkData"), errors);
    });
    let mut seen = HashSet::new();
    for (i, device) in list.iter().enumerate() {
        if !seen.insert(id(device)) {
            errors.duplicate(&path.index(i), id(device));
        }
    }
}

fn network(data: &Value, path: &Path, errors: &mut Errors) {
    for (field, most) in [
        ("interfaceName", MAX_INTERFACE),
        ("hardwareAddress", MAX_HARDWARE_ADDRESS),
    ] {
        if data.text(field).len() > most {
            errors.too_long(&path.child(field), most);
        }
    }
    let (list, path) = (data.list("ips"), path.child("ips"));
    each_once(
        list,
        MAX_ADDRESSES,
        device::itself,
        &path,
        errors,
        |address, path, errors| {
            let address = device::itself(address);
            if !names::is_valid_cidr(address).is_empty() {
                let detail =
                    "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
                errors.invalid(path, address, detail);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::resource::Strategy as _;
    use crate::resource_k8s_io::claim::ResourceClaim;
    use crate::validate::{assert_begin, lines};

    #[test]
    fn a_status_is_about_what_was_asked_for() {
        let mut old = json!({"spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "c"}}]}}});
        let result = json!({"request": "b", "driver": "d.example", "pool": "p", "device": "x"});
        let mut new = old.clone();
        new["status"] = json!({
            "allocation": {"devices": {"results": [result], "config": [{"source": "FromAir", "opaque": {"driver": "d.example", "parameters": {}}}]}},
            "devices": [{"driver": "d.example", "pool": "p", "device": "y", "networkData": {"ips": ["1.2.3.4"]}}],
            "reservedFor": [{"resource": "pods", "name": "p"}],
        });
        let found = lines(|e| ResourceClaim.validate_status_update(&new, &old, e));
        let expected = [
            "status.reservedFor[0].uid: Required value",
            "status.devices[0]: Invalid value: \"d.example/p/y\": must be an allocated device in the claim",
            "status.devices[0].networkData.ips[0]: Invalid value: \"1.2.3.4\": must be a valid address in CIDR form",
            "status.allocation.devices.results[0].request: Invalid value: \"b\": must be the name of a request",
            "status.allocation.devices.config[0].source: Unsupported value: \"FromAir\": supported values: \"FromClaim\", \"FromClass\"",
        ];
        assert_begin(&found, &expected);
        old["status"]["allocation"] = json!({"devices": {}});
        new["status"] = json!({"allocation": {"devices": {"results": []}}, "reservedFor": []});
        assert_eq!(
            lines(|e| ResourceClaim.validate_status_update(&new, &old, e)),
            [""; 0]
        );
    }
}
