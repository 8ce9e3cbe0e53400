//! The calls to the node agent.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use windlass_proto::agent::v1;
use windlass_proto::agent::v1::cni_client::CniClient;

use crate::config::Config;
use crate::{CniError, Invocation, result};

/// Longer than any call takes, shorter than a runtime's patience (containerd's is 2 minutes and more): the
/// runtime shall see our error and not its own.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn add(invocation: &Invocation, config: &Config) -> Result<Value, CniError> {
    let ports = config
        .runtime_config
        .port_mappings
        .iter()
        .map(|port| v1::PortMapping {
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: port.protocol.to_ascii_lowercase(),
            host_ip: port.host_ip.clone(),
        });
    let request = v1::AddRequest {
        attachment: Some(attachment(invocation)),
        netns: invocation.netns.clone(),
        pod: Some(v1::Pod {
            namespace: invocation.argument("K8S_POD_NAMESPACE"),
            name: invocation.argument("K8S_POD_NAME"),
            uid: invocation.argument("K8S_POD_UID"),
        }),
        port_mappings: ports.collect(),
        bandwidth: config
            .runtime_config
            .bandwidth
            .as_ref()
            .map(|bandwidth| v1::Bandwidth {
                ingress_rate: bandwidth.ingress_rate,
                ingress_burst: bandwidth.ingress_burst,
                egress_rate: bandwidth.egress_rate,
                egress_burst: bandwidth.egress_burst,
            }),
    };
    let response = connect(config).await?.add(with_deadline(request)).await;
    let response = response
        .map_err(|status| CniError::from_agent(&status))?
        .into_inner();
    Ok(result::added(
        &config.cni_version,
        &invocation.netns,
        &response,
    ))
}

pub(crate) async fn del(invocation: &Invocation, config: &Config) -> Result<(), CniError> {
    let request = v1::DelRequest {
        attachment: Some(attachment(invocation)),
    };
    let response = connect(config).await?.del(with_deadline(request)).await;
    response
        .map(drop)
        .map_err(|status| CniError::from_agent(&status))
}

pub(crate) async fn check(invocation: &Invocation, config: &Config) -> Result<(), CniError> {
    let answered = config.prev_result.iter().flat_map(|result| &result.ips);
    let request = v1::CheckRequest {
        attachment: Some(attachment(invocation)),
        netns: invocation.netns.clone(),
        addresses: answered
            .map(|ip| ip.address.split('/').next().unwrap_or_default().to_owned())
            .collect(),
    };
    let response = connect(config).await?.check(with_deadline(request)).await;
    response
        .map(drop)
        .map_err(|status| CniError::from_agent(&status))
}

pub(crate) async fn status(config: &Config) -> Result<(), CniError> {
    let status = async {
        let response = connect(config)
            .await?
            .status(with_deadline(v1::StatusRequest {}))
            .await;
        response
            .map(drop)
            .map_err(|status| CniError::from_agent(&status))
    };
    status.await.map_err(CniError::for_status)
}

pub(crate) async fn gc(config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid_attachments else {
        return Err(CniError::config(
            "GC without cni.dev/valid-attachments would remove every pod",
        ));
    };
    let valid = valid.iter().map(|valid| v1::Attachment {
        container_id: valid.container_id.clone(),
        interface: valid.ifname.clone(),
    });
    let request = v1::GcRequest {
        valid: valid.collect(),
    };
    let response = connect(config).await?.gc(with_deadline(request)).await;
    response
        .map(drop)
        .map_err(|status| CniError::from_agent(&status))
}

fn attachment(invocation: &Invocation) -> v1::Attachment {
    v1::Attachment {
        container_id: invocation.container_id.clone(),
        interface: invocation.interface.clone(),
    }
}

fn with_deadline<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(DEADLINE);
    request
}

async fn connect(config: &Config) -> Result<CniClient<Channel>, CniError> {
    let path = PathBuf::from(&config.socket);
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is a formality: the connector decides.
    let channel = Endpoint::from_static("http://windlass")
        .connect_with_connector(connector)
        .await
        .map_err(|error| CniError::no_agent(&config.socket, &root_cause(&error)))?;
    Ok(CniClient::new(channel))
}

/// "transport error" helps nobody; what lies beneath says that there is no such socket.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
