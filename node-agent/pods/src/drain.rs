//! The promise that a pod is not stopped while new connections are still sent to it.

use std::net::IpAddr;
use std::time::Instant;

use async_trait::async_trait;

/// The datapath, as far as a pod that is being deleted needs it.
#[async_trait]
pub trait EndpointDrain: Send + Sync + 'static {
    /// Returns when no new connection is sent to any of these addresses any more, or at
    /// the deadline, whichever comes first.
    async fn wait_until_unreferenced(&self, ips: &[IpAddr], deadline: Instant);
}

/// For nodes whose Services somebody else programs: there is nothing to wait for.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDrain;

#[async_trait]
impl EndpointDrain for NoDrain {
    async fn wait_until_unreferenced(&self, _: &[IpAddr], _: Instant) {}
}
