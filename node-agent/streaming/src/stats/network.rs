//! What pods have sent and received, as the runtime reads it in their network namespaces.

use serde_json::{Value, json};
use windlass_cri::v1::{NetworkInterfaceUsage, PodSandboxStats};

use super::{time_text, without_nulls};

/// Of one pod that has a network of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PodNetwork {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    /// Unix nanoseconds.
    pub(super) at: i64,
    /// The default one first.
    pub(super) interfaces: Vec<Interface>,
}

/// Since it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Option<u64>,
    pub(super) receive_errors: Option<u64>,
    pub(super) sent: Option<u64>,
    pub(super) send_errors: Option<u64>,
}

impl PodNetwork {
    /// `None` for a sandbox on the host's network, and one that does not run.
    pub(super) fn of(stats: PodSandboxStats) -> Option<Self> {
        let names = stats.attributes?.metadata?;
        let network = stats.linux?.network?;
        let default = network.default_interface?;
        let others = network.interfaces.into_iter();
        let others = others.filter(|other| other.name != default.name);
        let others: Vec<_> = others.collect();
        Some(Self {
            namespace: names.namespace,
            pod: names.name,
            uid: names.uid,
            at: network.timestamp,
            interfaces: [default].into_iter().chain(others).map(interface).collect(),
        })
    }

    /// As a part of `/stats/summary`: the default interface, and all; of the time `at`, if the runtime does not say of when.
    pub(super) fn summarize(networks: &[Self], uid: &str, at: i64) -> Option<Value> {
        let network = networks.iter().find(|network| network.uid == uid)?;
        let at = if network.at > 0 { network.at } else { at };
        let all: Vec<Value> = network
            .interfaces
            .iter()
            .map(Interface::summarize)
            .collect();
        let mut summary = all.first()?.clone();
        summary["time"] = json!(time_text(at));
        summary["interfaces"] = json!(all);
        Some(summary)
    }
}

impl Interface {
    fn summarize(&self) -> Value {
        without_nulls(json!({
            "name": self.name,
            "rxBytes": self.received,
            "rxErrors": self.receive_errors,
            "txBytes": self.sent,
            "txErrors": self.send_errors,
        }))
    }
}

fn interface(usage: NetworkInterfaceUsage) -> Interface {
    let value = |value: Option<windlass_cri::v1::UInt64Value>| value.map(|value| value.value);
    Interface {
        name: usage.name,
        received: value(usage.rx_bytes),
        receive_errors: value(usage.rx_errors),
        sent: value(usage.tx_bytes),
        send_errors: value(usage.tx_errors),
    }
}

#[cfg(test)]
mod tests {
    use windlass_cri::v1::{
        LinuxPodSandboxStats, NetworkUsage, PodSandboxAttributes, PodSandboxMetadata, UInt64Value,
    };

    use super::*;

    #[test]
    fn a_pods_default_interface_stands_for_it() {
        let usage = |name: &str, bytes| NetworkInterfaceUsage {
            name: name.into(),
            rx_bytes: Some(UInt64Value { value: bytes }),
            ..Default::default()
        };
        let attributes = PodSandboxAttributes {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "shop".into(),
                uid: "u1".into(),
                attempt: 0,
            }),
            ..Default::default()
        };
        let network = NetworkUsage {
            timestamp: 0,
            default_interface: Some(usage("eth0", 7)),
            interfaces: vec![usage("lo", 1)],
        };
        let stats = PodSandboxStats {
            attributes: Some(attributes),
            linux: Some(LinuxPodSandboxStats {
                network: Some(network),
                ..Default::default()
            }),
        };
        let networks = [PodNetwork::of(stats).expect("has a network")];
        assert_eq!(PodNetwork::summarize(&networks, "u2", 1), None);
        assert_eq!(
            PodNetwork::summarize(&networks, "u1", 1_767_323_045_000_000_000),
            Some(json!({
                "time": "2026-01-02T03:04:05Z", "name": "eth0", "rxBytes": 7,
                "interfaces": [{"name": "eth0", "rxBytes": 7}, {"name": "lo", "rxBytes": 1}],
            }))
        );
    }
}
