//! A pod's sandbox for the runtime.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use windlass_cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig,
    PodSandboxMetadata, PortMapping, Protocol, UserNamespace,
};

use super::resources::{Amounts, CPU_PERIOD};
use super::{hosts, security};
use crate::config::Config;
use crate::labels;
use crate::model::{PodId, host_network, slots, spec};

/// The configuration; the same pod always gives the same one, since it must be passed
/// again with every container.
pub(crate) fn config(
    pod: &Pod,
    attempt: u32,
    config: &Config,
    dns: DnsConfig,
    cgroup_parent: String,
    users: UserNamespace,
) -> PodSandboxConfig {
    let id = PodId::of(pod);
    let hostname = match host_network(pod) {
        // Its hostname is the node's, which nobody may change.
        true => String::new(),
        false => hosts::sandbox_hostname(pod, &config.cluster_domain),
    };
    let mut sandbox_labels: HashMap<String, String> = pod
        .metadata
        .labels
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    sandbox_labels.extend(identity(&id));
    let mut annotations: HashMap<String, String> = pod
        .metadata
        .annotations
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    annotations
        .entry(labels::CONFIG_SOURCE.to_owned())
        .or_insert_with(|| "api".to_owned());

    let seccomp_root = config.state_dir.join("seccomp");
    let security_settings = spec(pod).security_context.as_ref();
    let sysctls = security_settings.and_then(|security| security.sysctls.as_ref());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: id.name.clone(),
            uid: id.uid.clone(),
            namespace: id.namespace.clone(),
            attempt,
        }),
        hostname,
        log_directory: log_folder(config, &id).to_string_lossy().into_owned(),
        dns_config: Some(dns),
        port_mappings: if host_network(pod) {
            Vec::new()
        } else {
            port_mappings(pod)
        },
        labels: sandbox_labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security::sandbox(pod, &seccomp_root, users)),
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
            overhead: None,
            resources: Some(pod_resources(pod)),
        }),
    }
}

/// The labels by which a pod's things are found.
pub(crate) fn identity(id: &PodId) -> [(String, String); 3] {
    [
        (labels::POD_NAME.to_owned(), id.name.clone()),
        (labels::POD_NAMESPACE.to_owned(), id.namespace.clone()),
        (labels::POD_UID.to_owned(), id.uid.clone()),
    ]
}

/// Where a pod's logs lie.
pub(crate) fn log_folder(config: &Config, id: &PodId) -> std::path::PathBuf {
    config
        .logs_folder()
        .join(format!("{}_{}_{}", id.namespace, id.name, id.uid))
}

fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    let amounts = Amounts::of_pod(pod);
    let quota = amounts.cpu_quota();
    LinuxContainerResources {
        cpu_shares: amounts.cpu_shares(),
        cpu_quota: quota,
        cpu_period: if quota > 0 { CPU_PERIOD } else { 0 },
        memory_limit_in_bytes: amounts.memory_limit,
        ..LinuxContainerResources::default()
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    slots(pod)
        .flat_map(|slot| slot.container.ports.clone().unwrap_or_default())
        .filter(|port| port.host_port.is_some_and(|host_port| host_port > 0))
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::launch::test_config;

    #[test]
    fn a_sandbox_can_be_found_again_and_opens_its_host_ports() {
        let pod = |host_network: bool| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u1",
                             "labels": {"app": "web"}, "annotations": {"note": "x"}},
                "spec": {"hostNetwork": host_network, "containers": [
                    {"name": "c", "ports": [
                        {"containerPort": 80, "hostPort": 8080},
                        {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
                        {"containerPort": 9000},
                    ]},
                ]},
            }))
            .unwrap()
        };
        let of = |pod: &Pod| {
            config(
                pod,
                2,
                &test_config(),
                DnsConfig::default(),
                "/kubepods/x".into(),
                UserNamespace::default(),
            )
        };
        let sandbox = of(&pod(false));
        assert_eq!(sandbox.hostname, "web");
        assert_eq!(sandbox.labels[labels::POD_UID], "u1");
        assert_eq!(sandbox.labels["app"], "web");
        assert_eq!(sandbox.annotations["note"], "x");
        assert!(sandbox.log_directory.ends_with("/log/pods/shop_web_u1"));
        let ports: Vec<_> = sandbox
            .port_mappings
            .iter()
            .map(|port| (port.host_port, port.protocol()))
            .collect();
        assert_eq!(ports, [(8080, Protocol::Tcp), (53, Protocol::Udp)]);
        assert_eq!(sandbox.metadata.unwrap().attempt, 2);

        let on_host = of(&pod(true));
        assert_eq!(on_host.hostname, "");
        assert!(on_host.port_mappings.is_empty());
    }
}
