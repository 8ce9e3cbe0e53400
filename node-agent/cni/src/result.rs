//! Results as CNI wants them.

use serde_json::{Value, json};
use windlass_proto::agent::v1;

use crate::VERSIONS;

pub(crate) fn versions() -> Value {
    json!({ "cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS })
}

/// The result of ADD, in the version that the configuration speaks.
pub(crate) fn added(version: &str, netns: &str, response: &v1::AddResponse) -> Value {
    let host = response.host_interface.clone().unwrap_or_default();
    let pod = response.pod_interface.clone().unwrap_or_default();
    let interface = |end: &v1::Interface, sandbox: Option<&str>| {
        let mut value = json!({ "name": end.name, "mac": end.mac });
        if let Some(sandbox) = sandbox {
            value["sandbox"] = sandbox.into();
        }
        if version == "1.1.0" {
            value["mtu"] = end.mtu.into();
        }
        value
    };
    let addresses = response.addresses.iter().map(|address| {
        let mut value = json!({
            "address": address.address,
            "gateway": address.gateway,
            // The pod's end, second in `interfaces`.
            "interface": 1,
        });
        if version == "0.4.0" {
            value["version"] = if is_v6(address) { "6" } else { "4" }.into();
        }
        value
    });
    let routes = response.addresses.iter().map(|address| {
        let everything = if is_v6(address) { "::/0" } else { "0.0.0.0/0" };
        json!({ "dst": everything, "gw": address.gateway })
    });
    json!({
        "cniVersion": version,
        "interfaces": [interface(&host, None), interface(&pod, Some(netns))],
        "ips": addresses.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": {},
    })
}

fn is_v6(address: &v1::Address) -> bool {
    address.address.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_says_what_its_version_knows() {
        let end = |name: &str| {
            Some(v1::Interface {
                name: name.into(),
                mac: "0a:00:00:00:00:01".into(),
                mtu: 1500,
            })
        };
        let address = |address: &str, gateway: &str| v1::Address {
            address: address.into(),
            gateway: gateway.into(),
        };
        let response = v1::AddResponse {
            addresses: vec![
                address("10.0.0.2/32", "169.254.1.1"),
                address("fd00::2/128", "fe80::1"),
            ],
            host_interface: end("wl01234567890"),
            pod_interface: end("eth0"),
        };
        let new = added("1.1.0", "/run/netns/x", &response);
        assert_eq!(new["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(new["interfaces"][1]["mtu"], 1500);
        assert_eq!(new["interfaces"][0].get("sandbox"), None);
        assert_eq!(
            new["ips"][1],
            json!({"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1})
        );
        assert_eq!(
            new["routes"][0],
            json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"})
        );
        let old = added("0.4.0", "/run/netns/x", &response);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][1].get("mtu"), None);
    }
}
