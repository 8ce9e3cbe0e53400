//! What kind of machine this is.

use std::fs;

use k8s_openapi::api::core::v1::{
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSystemInfo,
};
use windlass_cri::v1::StatusResponse;

/// The level of the API that this agent speaks, as tools expect a kubelet's version.
const KUBELET_VERSION: &str = concat!("v1.35.0+windlass.", env!("CARGO_PKG_VERSION"));

/// As Kubernetes calls it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn node_info(runtime_version: &str) -> NodeSystemInfo {
    let read = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    let machine_id = read("/etc/machine-id");
    let product = read("/sys/class/dmi/id/product_uuid");
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    NodeSystemInfo {
        system_uuid: if product.is_empty() {
            machine_id.clone()
        } else {
            product
        },
        machine_id,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        os_image: pretty_name(&os_release).unwrap_or_else(|| "Linux".to_owned()),
        container_runtime_version: runtime_version.to_owned(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        kube_proxy_version: String::new(),
        operating_system: "linux".to_owned(),
        architecture: architecture().to_owned(),
        swap: None,
    }
}

/// What the runtime says that it and its handlers can do; runtimes before containerd 2 say nothing.
pub(crate) fn abilities(
    told: &StatusResponse,
) -> (Option<NodeFeatures>, Option<Vec<NodeRuntimeHandler>>) {
    let features = told.features.as_ref().map(|features| NodeFeatures {
        supplemental_groups_policy: Some(features.supplemental_groups_policy),
    });
    let handlers = told.runtime_handlers.iter().map(|handler| {
        let can = handler.features.as_ref();
        NodeRuntimeHandler {
            name: Some(handler.name.clone()),
            features: can.map(|can| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(can.recursive_read_only_mounts),
                user_namespaces: Some(can.user_namespaces),
            }),
        }
    });
    let handlers: Vec<_> = handlers.collect();
    (features, (!handlers.is_empty()).then_some(handlers))
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_called_by_its_pretty_name() {
        let text = "NAME=\"X\"\nPRETTY_NAME=\"X GNU/Linux 12\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("X GNU/Linux 12"));
        assert_eq!(pretty_name("NAME=X\n"), None);
    }
}
