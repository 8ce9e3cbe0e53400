//! A pod's `/etc/hosts` and what it is called.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::model::spec;

/// A hostname is at most this long.
const HOSTNAME_MAX: usize = 63;

/// The pod's short name and its domain, which is empty unless it has a subdomain.
pub(crate) fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = spec(pod);
    if let Some(name) = spec
        .hostname_override
        .clone()
        .filter(|name| !name.is_empty())
    {
        return (name, String::new());
    }
    let own = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let name = own.or(pod.metadata.name.as_deref()).unwrap_or_default();
    let cut: String = name.chars().take(HOSTNAME_MAX).collect();
    let hostname = cut.trim_end_matches(['-', '.']).to_owned();
    let domain = match spec.subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        _ => String::new(),
    };
    (hostname, domain)
}

/// What `hostname` prints in the pod.
pub(crate) fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (hostname, domain) = names(pod, cluster_domain);
    if spec(pod).set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        return format!("{hostname}.{domain}");
    }
    hostname
}

/// The file for a pod with addresses of its own.
pub(crate) fn pod_file(pod: &Pod, pod_ips: &[String], cluster_domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let (hostname, domain) = names(pod, cluster_domain);
    for ip in pod_ips {
        // Writing into a String cannot fail.
        let _ = match domain.as_str() {
            "" => writeln!(text, "{ip}\t{hostname}"),
            _ => writeln!(text, "{ip}\t{hostname}.{domain}\t{hostname}"),
        };
    }
    text.push_str(&aliases(spec(pod).host_aliases.as_deref()));
    text
}

/// The file for a pod on the node's network: the node's own, and the pod's aliases.
pub(crate) fn host_network_file(pod: &Pod, node_file: &str) -> String {
    let mut text = format!("# Kubernetes-managed hosts file (host network).\n{node_file}");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&aliases(spec(pod).host_aliases.as_deref()));
    text
}

fn aliases(aliases: Option<&[HostAlias]>) -> String {
    let mut text = String::new();
    for alias in aliases.into_iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        if text.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let metadata = json!({"name": "web-0", "namespace": "shop"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_is_called_by_its_own_wish_or_its_name() {
        let of = |spec| sandbox_hostname(&pod(spec), "cluster.local");
        assert_eq!(of(json!({})), "web-0");
        assert_eq!(of(json!({"hostname": "db"})), "db");
        assert_eq!(of(json!({"subdomain": "s"})), "web-0");
        assert_eq!(
            of(json!({"subdomain": "s", "setHostnameAsFQDN": true})),
            "web-0.s.shop.svc.cluster.local"
        );
        assert_eq!(
            of(json!({"hostname": format!("{}-x", "a".repeat(62))})),
            "a".repeat(62)
        );
    }

    #[test]
    fn the_file_names_the_pod_by_its_addresses() {
        let pod = pod(json!({
            "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}],
        }));
        let text = pod_file(&pod, &["10.0.0.5".to_owned()], "cluster.local");
        assert!(text.contains("127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.0.0.5\tweb-0.s.shop.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("192.0.2.9\ta\tb\n"));
        let on_host = host_network_file(&pod, "127.0.1.1 node");
        assert!(on_host.contains("\n127.0.1.1 node\n"));
        assert!(
            !on_host.contains("managed hosts file.\n"),
            "told apart from a pod's own file"
        );
        assert!(on_host.contains("192.0.2.9"));
    }
}
