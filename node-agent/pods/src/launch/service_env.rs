//! Services as environment variables, from the time before cluster DNS.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;

/// The variables of all services that a pod in `namespace` sees: the API server's always,
/// those of its own namespace if it wants links.
pub(crate) fn variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut own = Vec::new();
    for service in services {
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        if links && of == namespace {
            own.push((name, service));
        } else if of == "default" && name == "kubernetes" {
            add(&mut variables, name, service);
        }
    }
    // A service of the pod's own namespace goes before the API server's of the same name.
    for (name, service) in own {
        add(&mut variables, name, service);
    }
    variables
}

fn add(variables: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let name = variable_name(name);
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    let mut set = |key: String, value: String| {
        variables.insert(key, value);
    };

    set(format!("{name}_SERVICE_HOST"), ip.to_owned());
    set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let key = format!("{name}_SERVICE_PORT_{}", variable_name(port_name));
            set(key, port.port.to_string());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        set(prefix.clone(), url);
        set(format!("{prefix}_PROTO"), lower);
        set(format!("{prefix}_PORT"), port.port.to_string());
        set(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_sees_the_api_server_and_the_services_beside_it() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": ip, "ports": [
                    {"name": "https", "port": 443}, {"port": 53, "protocol": "UDP"},
                ]},
            }))
            .unwrap()
        };
        let services = [
            service("default", "kubernetes", "10.96.0.1"),
            service("shop", "my-db", "10.96.0.2"),
            service("shop", "headless", "None"),
            service("other", "hidden", "10.96.0.3"),
        ];
        let seen = variables(services.iter(), "shop", true);
        assert_eq!(seen["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(seen["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        assert_eq!(seen["MY_DB_PORT"], "tcp://10.96.0.2:443");
        assert_eq!(seen["MY_DB_PORT_53_UDP_ADDR"], "10.96.0.2");
        assert_eq!(seen["MY_DB_PORT_53_UDP"], "udp://10.96.0.2:53");
        assert!(
            !seen
                .keys()
                .any(|key| key.starts_with("HEADLESS") || key.starts_with("HIDDEN"))
        );

        let unlinked = variables(services.iter(), "shop", false);
        assert!(unlinked.contains_key("KUBERNETES_SERVICE_HOST"));
        assert!(!unlinked.contains_key("MY_DB_PORT"));
    }
}
