//! IPAddresses and ServiceCIDRs: which addresses Services take, and from where.

use std::net::IpAddr as Ip;

use ipnet::IpNet;
use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;
use crate::validate::{immutable, named, optional_name};

pub struct IpAddress;

impl Strategy for IpAddress {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let name = object.text("metadata.name");
        let fault = match name.parse::<Ip>().map(|ip| ip.to_string()) {
            Ok(canonical) if canonical == name => None,
            Ok(canonical) => Some(format!("must be in canonical form ({canonical:?})")),
            Err(_) => {
                Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
            }
        };
        if let Some(detail) = fault {
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
        let path = Path::new("spec").child("parentRef");
        let parent = object.at("spec.parentRef");
        if parent.is_null() {
            errors.required(&path, "");
            return;
        }
        optional_name(parent, "group", names::is_dns1123_subdomain, &path, errors);
        named(parent, "resource", names::is_path_segment, &path, errors);
        named(parent, "name", names::is_path_segment, &path, errors);
        optional_name(parent, "namespace", names::is_path_segment, &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.parentRef", errors);
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        let parent = object.at("spec.parentRef");
        if parent.is_null() {
            return cells!["<none>"];
        }
        let group = parent.text("group");
        let mut text = parent.text("resource").to_lowercase();
        if !group.is_empty() {
            text = format!("{text}.{group}");
        }
        for part in ["namespace", "name"] {
            if !parent.text(part).is_empty() {
                text = format!("{text}/{}", parent.text(part));
            }
        }
        cells![text]
    }
}

pub struct ServiceCidr;

impl Strategy for ServiceCidr {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("cidrs");
        let cidrs = object.list("spec.cidrs");
        if cidrs.is_empty() {
            return errors.required(&path, "at least one CIDR required");
        }
        if cidrs.len() > 2 {
            let value = object.at("spec").clone();
            return errors.invalid(&path, value, "may only hold up to 2 values");
        }
        let parsed: Vec<_> = cidrs
            .iter()
            .map(|c| c.as_str().unwrap_or_default().parse::<IpNet>().ok())
            .collect();
        if let [Some(a), Some(b)] = parsed.as_slice()
            && a.addr().is_ipv4() == b.addr().is_ipv4()
        {
            let value = object.at("spec").clone();
            return errors.invalid(&path, value, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64");
        }
        for (i, cidr) in cidrs.iter().enumerate() {
            let text = cidr.as_str().unwrap_or_default();
            let detail = match &parsed[i] {
                None => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                Some(net) if net.trunc() != *net || net.trunc().to_string() != text => {
                    "must be a valid CIDR value in canonical form"
                }
                Some(_) => continue,
            };
            errors.invalid(&path.index(i), text, detail);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.cidrs", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let cidrs: Vec<_> = object
            .list("spec.cidrs")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        cells![cidrs.join(","), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn an_address_is_its_name() {
        let object = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"parentRef": {
                "resource": "services", "namespace": "n", "name": "s",
            }}})
        };
        assert!(lines(|e| IpAddress.validate(&object("10.0.0.1"), None, e)).is_empty());
        assert_eq!(
            lines(|e| IpAddress.validate(&object("2001:DB8::1"), None, e)).len(),
            1
        );
        assert_eq!(
            IpAddress.row(&object("10.0.0.1"), 0),
            [json!("services/n/s")]
        );
    }

    #[test]
    fn ranges_are_one_per_family() {
        let check = |cidrs: Value| {
            lines(|e| ServiceCidr.validate(&json!({"spec": {"cidrs": cidrs}}), None, e))
        };
        assert!(check(json!(["10.96.0.0/16", "fd00::/108"])).is_empty());
        assert_eq!(check(json!(["10.96.0.1/16"])).len(), 1);
        assert_eq!(check(json!(["10.96.0.0/16", "10.97.0.0/16"])).len(), 1);
        assert_eq!(
            check(json!([])),
            ["spec.cidrs: Required value: at least one CIDR required"]
        );
    }
}
