//! The network configuration that the runtime passes: what the agent wrote into the conflist, and what the
//! runtime adds for this call.
//!
//! CNI's convention writes `hostPort`; containerd marshals a struct without names for JSON, so that `HostPort`
//! arrives. Plugins in Go do not notice, because Go reads names in any case; here both are spelled out.

use serde::Deserialize;

use crate::{CniError, VERSIONS};

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) cni_version: String,
    /// Where the agent listens.
    #[serde(default = "default_socket")]
    pub(crate) socket: String,
    #[serde(default)]
    pub(crate) runtime_config: RuntimeConfig,
    /// What ADD answered, on CHECK and DEL.
    pub(crate) prev_result: Option<PreviousResult>,
    /// The attachments that still exist, on GC.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeConfig {
    #[serde(default)]
    pub(crate) port_mappings: Vec<PortMapping>,
    pub(crate) bandwidth: Option<Bandwidth>,
}

/// Bits per second and bits; 0, or nothing, is no limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Bandwidth {
    #[serde(alias = "IngressRate")]
    pub(crate) ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub(crate) ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub(crate) egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub(crate) egress_burst: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    #[serde(alias = "HostPort")]
    pub(crate) host_port: u32,
    #[serde(alias = "ContainerPort")]
    pub(crate) container_port: u32,
    #[serde(default, alias = "Protocol")]
    pub(crate) protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    pub(crate) host_ip: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PreviousResult {
    #[serde(default)]
    pub(crate) ips: Vec<PreviousAddress>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PreviousAddress {
    pub(crate) address: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

fn default_socket() -> String {
    "/run/windlass/agent.sock".to_owned()
}

impl Config {
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let config: Self = serde_json::from_slice(input).map_err(|error| {
            CniError::decoding(&format!(
                "the network configuration cannot be read: {error}"
            ))
        })?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(CniError::incompatible_version(&config.cni_version));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_adds_is_read() {
        let config = Config::parse(
            br#"{
                "cniVersion": "1.0.0", "name": "windlass", "type": "windlass-cni", "socket": "/s",
                "runtimeConfig": {"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
                    "bandwidth": {"ingressRate": 8000000, "ingressBurst": 4294967295}},
                "prevResult": {"ips": [{"address": "10.0.0.2/32"}], "dns": {}}
            }"#,
        )
        .expect("is valid");
        assert_eq!(config.socket, "/s");
        assert_eq!(config.runtime_config.port_mappings[0].host_ip, "192.0.2.1");
        let bandwidth = config.runtime_config.bandwidth.expect("is there");
        assert_eq!(
            (bandwidth.ingress_rate, bandwidth.egress_rate),
            (8_000_000, 0)
        );
        assert_eq!(
            config.prev_result.expect("is there").ips[0].address,
            "10.0.0.2/32"
        );
    }

    #[test]
    fn what_containerd_adds_is_read() {
        let config = Config::parse(
            br#"{
                "cniVersion": "1.0.0", "name": "windlass", "type": "windlass-cni",
                "runtimeConfig": {"portMappings": [
                    {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"}],
                    "bandwidth": {"IngressRate": 1, "IngressBurst": 2, "EgressRate": 3, "EgressBurst": 4}}
            }"#,
        )
        .expect("is valid");
        let port = &config.runtime_config.port_mappings[0];
        assert_eq!((port.host_port, port.container_port), (8080, 80));
        assert_eq!(
            (port.protocol.as_str(), port.host_ip.as_str()),
            ("tcp", "192.0.2.1")
        );
        let limits = config.runtime_config.bandwidth.expect("is there");
        assert_eq!((limits.ingress_rate, limits.ingress_burst), (1, 2));
        assert_eq!((limits.egress_rate, limits.egress_burst), (3, 4));
    }

    #[test]
    fn broken_input_and_unknown_versions_have_their_codes() {
        assert_eq!(Config::parse(b"{").expect_err("broken").code, 6);
        assert_eq!(Config::parse(b"{}").expect_err("no version").code, 1);
        assert_eq!(
            Config::parse(br#"{"cniVersion":"9.9.9"}"#)
                .expect_err("too new")
                .code,
            1
        );
    }
}
