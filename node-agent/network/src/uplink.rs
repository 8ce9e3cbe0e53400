//! What the node's interfaces towards the rest of the network must be set to.

use crate::interface::{LinkError, Namespace, forward_v6};
use crate::settings::Settings;

/// Sets uplinks to what they must be, also one that goes and comes back, which has the kernel's defaults then.
pub struct UplinkSettings {
    pub settings: Settings,
    /// The node's network namespace.
    pub host: Namespace,
    /// Whether XDP sends packets on.
    pub forwards_by_xdp: bool,
}

impl UplinkSettings {
    pub async fn apply(&self, uplink: &str) -> Result<(), LinkError> {
        let mut wanted = forwarding(uplink);
        if self.forwards_by_xdp {
            wanted.extend(router(uplink));
        }
        self.settings.set(&self.host, wanted).await
    }
}

/// Lets what arrives on an uplink be forwarded to pods. Only on this interface: the node's global setting
/// stays as its owner chose, and so does every other interface.
pub fn forwarding(uplink: &str) -> Vec<(String, &'static str)> {
    let mut settings = vec![
        (format!("ipv4/conf/{uplink}/forwarding"), "1"),
        // Replies may leave by another uplink than the request came in by.
        (format!("ipv4/conf/{uplink}/rp_filter"), "2"),
    ];
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        // A forwarding node ignores router advertisements unless told otherwise, and would lose its own
        // default route.
        settings.push((format!("ipv6/conf/{uplink}/accept_ra"), "2"));
        settings.push(forward_v6(uplink));
    }
    settings
}

/// Lets XDP ask for the ways of IPv6 packets out of an uplink: the kernel tells a program only about
/// interfaces of a router (`bpf_fib_lookup`), whatever else lets packets be forwarded there.
pub fn router(uplink: &str) -> Vec<(String, &'static str)> {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Vec::new();
    }
    vec![(format!("ipv6/conf/{uplink}/forwarding"), "1")]
}
