//! gRPC's own health service.

use std::net::{IpAddr, SocketAddr};

use tonic::transport::Endpoint;
use windlass_proto::health::v1::HealthCheckRequest;
use windlass_proto::health::v1::health_check_response::ServingStatus;
use windlass_proto::health::v1::health_client::HealthClient;

pub(super) async fn probe(ip: IpAddr, port: u16, service: &str) -> Result<(), String> {
    let address = SocketAddr::new(ip, port);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("invalid address {address}: {error}"))?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("failed to connect service {address:?}: {error}"))?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            status => Err(format!(
                "service unhealthy (responded with {:?})",
                status.as_str_name()
            )),
        },
        Err(status) => Err(format!(
            "error: health rpc probe failed: {}",
            status.message()
        )),
    }
}
