//! EndpointSlices.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::endpoints::not_special;
use crate::resource::Strategy;
use crate::table::{age, cells, first_of};
use crate::tree::{self, Tree, each};
use crate::validate::labels::labels;
use crate::validate::numbers::port;
use crate::validate::{immutable, one_of, optional_one_of, sentences};

pub struct EndpointSlice;

const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20000;
const MAX_ADDRESSES: usize = 100;
const MAX_LABELS: usize = 16;
const MAX_HINTS: usize = 8;

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in each(object, "ports") {
            tree::fill(port, "name", "");
            tree::fill(port, "protocol", "TCP");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        drop_topology(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if new.at("endpoints") != old.at("endpoints") {
            drop_topology(new);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let family = object.text("addressType");
        one_of(
            object,
            "addressType",
            &["FQDN", "IPv4", "IPv6"],
            &Path::root(),
            errors,
        );
        let endpoints = object.list("endpoints");
        let path = Path::new("endpoints");
        if endpoints.len() > MAX_ENDPOINTS {
            errors.too_many(&path, endpoints.len(), MAX_ENDPOINTS);
        } else {
            for (i, endpoint) in endpoints.iter().enumerate() {
                validate_endpoint(endpoint, family, &path.index(i), errors);
            }
        }
        ports(object.list("ports"), &Path::new("ports"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "addressType", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let ports: Vec<_> = object
            .list("ports")
            .iter()
            .map(|port| match port.int("port") {
                Some(number) => number.to_string(),
                None if port.has("name") => port.text("name").to_owned(),
                None => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<_> = object
            .list("endpoints")
            .iter()
            .flat_map(|endpoint| endpoint.list("addresses"))
            .filter_map(Value::as_str)
            .map(ToOwned::to_owned)
            .collect();
        cells![
            object.text("addressType"),
            first_of(&ports, 3),
            first_of(&addresses, 3),
            age(object, now),
        ]
    }
}

/// The field is only there for what older versions have written; writes to it come to nothing, as its documentation says.
fn drop_topology(object: &mut Value) {
    for endpoint in each(object, "endpoints") {
        if let Some(map) = endpoint.as_object_mut() {
            map.remove("deprecatedTopology");
        }
    }
}

fn validate_endpoint(endpoint: &Value, family: &str, path: &Path, errors: &mut Errors) {
    let addresses = endpoint.list("addresses");
    let list_path = path.child("addresses");
    if addresses.is_empty() {
        errors.required(&list_path, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(&list_path, addresses.len(), MAX_ADDRESSES);
    }
    for (i, address) in addresses.iter().enumerate() {
        validate_address(
            address.as_str().unwrap_or_default(),
            family,
            &list_path.index(i),
            errors,
        );
    }
    if endpoint.has("nodeName") {
        let name = endpoint.text("nodeName");
        let problems = names::is_dns1123_subdomain(name);
        sentences(problems, &path.child("nodeName"), name, errors);
    }
    let (topology, topology_path) = (
        endpoint.at("deprecatedTopology"),
        path.child("deprecatedTopology"),
    );
    let count = topology.as_object().map_or(0, serde_json::Map::len);
    if count > MAX_LABELS {
        errors.too_many(&topology_path, count, MAX_LABELS);
    }
    labels(topology, &topology_path, errors);
    if endpoint.has("hostname") {
        let name = endpoint.text("hostname");
        let problems = names::is_dns1123_label(name);
        sentences(problems, &path.child("hostname"), name, errors);
    }
    hints(endpoint, &path.child("hints"), errors);
}

/// What is wrong with a name.
type NameRule = fn(&str) -> Vec<String>;

fn hints(endpoint: &Value, path: &Path, errors: &mut Errors) {
    let kinds: [(&str, NameRule); 2] = [
        ("forZones", names::is_label_value),
        ("forNodes", names::is_dns1123_subdomain),
    ];
    for (field, check) in kinds {
        let hints = endpoint.at("hints").list(field);
        let path = path.child(field);
        if hints.len() > MAX_HINTS {
            errors.too_many(&path, hints.len(), MAX_HINTS);
            return;
        }
        let mut seen = HashSet::new();
        for (i, hint) in hints.iter().enumerate() {
            let (name, path) = (hint.text("name"), path.index(i).child("name"));
            if !seen.insert(name) {
                errors.duplicate(&path, name);
            }
            sentences(check(name), &path, name, errors);
        }
    }
}

fn validate_address(address: &str, family: &str, path: &Path, errors: &mut Errors) {
    match family {
        "IPv4" | "IPv6" => {
            let fits = match family {
                "IPv4" => address.parse::<std::net::Ipv4Addr>().is_ok(),
                _ => address.parse::<std::net::Ipv6Addr>().is_ok(),
            };
            if !fits {
                errors.invalid(path, address, format!("must be a valid {family} address"));
            }
            not_special(address, path, errors);
        }
        "FQDN" => full_name(address, path, errors),
        _ => {}
    }
}

/// A name of at least two labels.
fn full_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = names::is_dns1123_subdomain(name);
    if !problems.is_empty() {
        errors.invalid(path, name, problems.join(","));
        return;
    }
    if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid(path, name, detail);
    }
    if let Some(label) = name.split('.').find(|label| label.len() > 63) {
        errors.invalid(path, label, names::is_dns1123_label(label).join(","));
    }
}

fn ports(list: &[Value], path: &Path, errors: &mut Errors) {
    if list.len() > MAX_PORTS {
        errors.too_many(path, list.len(), MAX_PORTS);
        return;
    }
    let mut seen = HashSet::new();
    for (i, entry) in list.iter().enumerate() {
        let path = path.index(i);
        let name = entry.text("name");
        if !name.is_empty() {
            sentences(
                names::is_dns1123_label(name),
                &path.child("name"),
                name,
                errors,
            );
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        if let Some(number) = entry.int("port") {
            port(number, &path.child("port"), errors);
        }
        optional_one_of(entry, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        if entry.has("appProtocol") {
            let app_protocol = entry.text("appProtocol");
            let problems = names::is_qualified_name(app_protocol);
            sentences(problems, &path.child("appProtocol"), app_protocol, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn addresses_must_fit_their_type() {
        let object = json!({
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": []},
                {"addresses": ["::1", "10.0.0.1", "127.0.0.1"]},
            ],
            "ports": [
                {"name": "a", "protocol": "TCP", "port": 80},
                {"name": "a", "protocol": "TCP", "port": 0},
            ],
        });
        assert_eq!(
            lines(|e| EndpointSlice.validate(&object, None, e)),
            [
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "endpoints[1].addresses[2]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "ports[1].name: Duplicate value: \"a\"",
                "ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }

    #[test]
    fn the_topology_of_older_versions_is_not_written() {
        let with = json!({"addressType": "IPv4", "endpoints": [
            {"addresses": ["10.0.0.1"], "deprecatedTopology": {"kubernetes.io/hostname": "n"}},
        ]});
        let mut new = with.clone();
        EndpointSlice.prepare_for_create(&mut new);
        assert_eq!(new["endpoints"], json!([{"addresses": ["10.0.0.1"]}]));
        // What is there stays until the endpoints change.
        let mut same = with.clone();
        EndpointSlice.prepare_for_update(&mut same, &with);
        assert_eq!(same, with);
    }

    #[test]
    fn rows_list_the_first_three() {
        let object = json!({
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}],
        });
        assert_eq!(
            EndpointSlice.row(&object, 0)[..3],
            [json!("IPv4"), json!("80"), json!("10.0.0.1,10.0.0.2")]
        );
    }
}
