//! The seam between pods and Services: a pod ends only when nobody new is sent to it.

use std::net::IpAddr;
use std::time::Instant;

use async_trait::async_trait;
use windlass_network::services::ServiceController;
use windlass_pods::EndpointDrain;

pub(crate) struct ServiceDrain(pub(crate) ServiceController);

#[async_trait]
impl EndpointDrain for ServiceDrain {
    async fn wait_until_unreferenced(&self, ips: &[IpAddr], deadline: Instant) {
        for ip in ips {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.0.wait_until_unreferenced(*ip, left).await {
                tracing::warn!(%ip, "a Service still refers to a pod that is being stopped");
            }
        }
    }
}
