//! Endpoints: the older list of a Service's addresses.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::numbers::port;
use crate::validate::{named, one_of, optional_name, sentences};

pub struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in each(object, "subsets") {
            for port in each(subset, "ports") {
                tree::fill(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        for (i, subset) in object.list("subsets").iter().enumerate() {
            validate_subset(subset, &Path::new("subsets").index(i), errors);
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![endpoints(object), age(object, now)]
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

fn validate_subset(subset: &Value, path: &Path, errors: &mut Errors) {
    if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
        errors.required(path, "must specify `addresses` or `notReadyAddresses`");
    }
    for field in ["addresses", "notReadyAddresses"] {
        for (i, address) in subset.list(field).iter().enumerate() {
            let path = path.child(field).index(i);
            let (ip, ip_path) = (address.text("ip"), path.child("ip"));
            sentences(names::is_valid_ip(ip), &ip_path, ip, errors);
            optional_name(address, "hostname", names::is_dns1123_label, &path, errors);
            if let Some(node) = address.at("nodeName").as_str() {
                let problems = names::is_dns1123_subdomain(node);
                sentences(problems, &path.child("nodeName"), node, errors);
            }
            not_special(ip, &ip_path, errors);
        }
    }
    let ports = subset.list("ports");
    for (i, entry) in ports.iter().enumerate() {
        let path = path.child("ports").index(i);
        if ports.len() > 1 {
            named(entry, "name", names::is_dns1123_label, &path, errors);
        } else {
            optional_name(entry, "name", names::is_dns1123_label, &path, errors);
        }
        port(
            entry.int("port").unwrap_or_default(),
            &path.child("port"),
            errors,
        );
        one_of(entry, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        if entry.has("appProtocol") {
            let app_protocol = entry.text("appProtocol");
            let problems = names::is_qualified_name(app_protocol);
            sentences(problems, &path.child("appProtocol"), app_protocol, errors);
        }
    }
}

/// An address that traffic may be sent to: no loopback, link-local or unspecified one, which would let whoever
/// writes endpoints reach the nodes' own services.
pub fn not_special(text: &str, path: &Path, errors: &mut Errors) {
    let Ok(address) = text.parse::<std::net::IpAddr>() else {
        errors.invalid(path, text, "must be a valid IP address");
        return;
    };
    let (link_local, local_multicast) = match address {
        std::net::IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            (v4.is_link_local(), (a, b, c) == (224, 0, 0))
        }
        std::net::IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            (first & 0xffc0 == 0xfe80, first & 0xff0f == 0xff02)
        }
    };
    for (is, sentence) in [
        (
            address.is_unspecified(),
            format!("may not be unspecified ({text})"),
        ),
        (
            address.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        ),
        (
            local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ] {
        if is {
            errors.invalid(path, text, sentence);
        }
    }
}

/// Up to three `address:port` pairs, and how many more there are.
fn endpoints(object: &Value) -> String {
    let subsets = object.list("subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = || subset.list("addresses").iter().map(|a| a.text("ip"));
        if subset.list("ports").is_empty() {
            all.extend(addresses().map(ToOwned::to_owned));
        }
        for port in subset.list("ports") {
            let port = port.int("port").unwrap_or_default();
            all.extend(addresses().map(|ip| {
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            }));
        }
    }
    let shown = all[..all.len().min(3)].join(",");
    if all.len() > 3 {
        format!("{shown} + {} more...", all.len() - 3)
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn endpoints_may_not_point_at_the_node_itself() {
        for (text, problem) in [
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local range"),
            ("fe80::1", "link-local range"),
            ("224.0.0.5", "link-local multicast"),
            ("0.0.0.0", "unspecified"),
            ("x", "must be a valid IP address"),
        ] {
            let found = lines(|e| not_special(text, &Path::new("ip"), e));
            assert!(
                found.len() == 1 && found[0].contains(problem),
                "{text}: {found:?}"
            );
        }
        assert!(lines(|e| not_special("10.0.0.1", &Path::new("ip"), e)).is_empty());
    }

    #[test]
    fn rows_show_three_endpoints() {
        let object = json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
            "ports": [{"port": 80}, {"port": 443}],
        }]});
        assert_eq!(
            endpoints(&object),
            "10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more..."
        );
        assert_eq!(endpoints(&json!({})), "<none>");
    }
}
