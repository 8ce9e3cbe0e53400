//! The node's interfaces towards the rest of the network.

use crate::interface::{LinkError, Namespace, forward_v6};

/// Lets what arrives on an uplink be forwarded to pods. Only on this interface: the node's global setting
/// stays as its owner chose, and so does every other interface.
pub async fn enable_forwarding(host: &Namespace, uplink: &str) -> Result<(), LinkError> {
    let mut sysctls = vec![
        (format!("ipv4/conf/{uplink}/forwarding"), "1"),
        // Replies may leave by another uplink than the request came in by.
        (format!("ipv4/conf/{uplink}/rp_filter"), "2"),
    ];
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        // A forwarding node ignores router advertisements unless told otherwise, and would lose its own
        // default route.
        sysctls.push((format!("ipv6/conf/{uplink}/accept_ra"), "2"));
        sysctls.push(forward_v6(uplink));
    }
    host.set_sysctls(sysctls).await
}

/// Lets XDP ask for the ways of IPv6 packets out of an uplink: the kernel tells a program only about
/// interfaces of a router (`bpf_fib_lookup`), whatever else lets packets be forwarded there.
pub async fn enable_router(host: &Namespace, uplink: &str) -> Result<(), LinkError> {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    let sysctl = (format!("ipv6/conf/{uplink}/forwarding"), "1");
    host.set_sysctls(vec![sysctl]).await
}
