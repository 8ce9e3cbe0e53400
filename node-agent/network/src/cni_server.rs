//! The agent's side of the CNI plugin: gRPC in, [`Attachments`] out.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use windlass_datapath::types::protocol;
use windlass_proto::agent::v1;
use windlass_proto::agent::v1::cni_server::{Cni, CniServer};

use crate::attachments::{AttachError, Attachments, PodInterface};
use crate::interface::{Bandwidth, gateway};
use crate::ipam::{AttachmentKey, IpamError, PodName, PortMapping};

pub struct CniService(Arc<Attachments>);

impl CniService {
    /// The service, to be added to the routes of the agent's socket.
    pub fn server(attachments: Arc<Attachments>) -> CniServer<Self> {
        CniServer::new(Self(attachments))
    }
}

#[tonic::async_trait]
impl Cni for CniService {
    async fn add(
        &self,
        request: Request<v1::AddRequest>,
    ) -> Result<Response<v1::AddResponse>, Status> {
        let request = request.into_inner();
        let pod = request.pod.unwrap_or_default();
        let pod = PodName {
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
        };
        let limits = request.bandwidth.unwrap_or_default();
        let bandwidth = Bandwidth {
            ingress_rate: limits.ingress_rate,
            ingress_burst: limits.ingress_burst,
            egress_rate: limits.egress_rate,
            egress_burst: limits.egress_burst,
        };
        let ports = request.port_mappings.iter().map(port_mapping);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        let key = key(request.attachment)?;
        // On its own task: a plugin that was killed must not leave an interface half made.
        let attachments = self.0.clone();
        let add = tokio::spawn(async move {
            let netns = Path::new(&request.netns);
            attachments
                .add_limited(key, netns, pod, bandwidth, ports)
                .await
        });
        let interface = add
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(add_response(&interface.map_err(status)?)))
    }

    async fn del(
        &self,
        request: Request<v1::DelRequest>,
    ) -> Result<Response<v1::DelResponse>, Status> {
        let key = key(request.into_inner().attachment)?;
        let attachments = self.0.clone();
        let del = tokio::spawn(async move { attachments.del(&key).await });
        del.await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(status)?;
        Ok(Response::new(v1::DelResponse {}))
    }

    async fn check(
        &self,
        request: Request<v1::CheckRequest>,
    ) -> Result<Response<v1::CheckResponse>, Status> {
        let request = request.into_inner();
        let answered: Result<Vec<IpAddr>, _> =
            request.addresses.iter().map(|a| a.parse()).collect();
        let answered =
            answered.map_err(|_| Status::invalid_argument("an address cannot be read"))?;
        let key = key(request.attachment)?;
        self.0
            .check(&key, Path::new(&request.netns), &answered)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::CheckResponse {}))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.0.status().map_err(|error| status(error.into()))?;
        Ok(Response::new(v1::StatusResponse {}))
    }

    async fn gc(
        &self,
        request: Request<v1::GcRequest>,
    ) -> Result<Response<v1::GcResponse>, Status> {
        let valid = request.into_inner().valid.into_iter();
        let valid: Vec<AttachmentKey> = valid.map(from_attachment).collect();
        let removed = self.0.gc(&valid).await.map_err(status)?;
        Ok(Response::new(v1::GcResponse { removed }))
    }
}

fn port_mapping(port: &v1::PortMapping) -> Result<PortMapping, Status> {
    let invalid =
        |what: &str| Status::invalid_argument(format!("a port mapping's {what}: {port:?}"));
    let number = |number: u32| u16::try_from(number).ok().filter(|number| *number > 0);
    let host_ip = match port.host_ip.as_str() {
        "" => None,
        ip => Some(ip.parse().map_err(|_| invalid("address"))?),
    };
    Ok(PortMapping {
        host_ip,
        host_port: number(port.host_port).ok_or_else(|| invalid("host port"))?,
        container_port: number(port.container_port).ok_or_else(|| invalid("container port"))?,
        protocol: match port.protocol.as_str() {
            "tcp" | "" => protocol::TCP,
            "udp" => protocol::UDP,
            "sctp" => protocol::SCTP,
            _ => return Err(invalid("protocol")),
        },
    })
}

fn key(attachment: Option<v1::Attachment>) -> Result<AttachmentKey, Status> {
    let attachment =
        attachment.ok_or_else(|| Status::invalid_argument("no attachment is named"))?;
    Ok(from_attachment(attachment))
}

fn from_attachment(attachment: v1::Attachment) -> AttachmentKey {
    AttachmentKey {
        container_id: attachment.container_id,
        interface: attachment.interface,
    }
}

fn add_response(interface: &PodInterface) -> v1::AddResponse {
    let link = &interface.link;
    let addresses = link.addresses.iter().map(|address| v1::Address {
        address: format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
        gateway: gateway(*address).to_string(),
    });
    let end = |name: &str, mac: crate::interface::Mac| v1::Interface {
        name: name.to_owned(),
        mac: mac.to_string(),
        mtu: link.mtu,
    };
    v1::AddResponse {
        addresses: addresses.collect(),
        host_interface: Some(end(&link.host_name, link.host_mac)),
        pod_interface: Some(end(&link.pod_name, link.pod_mac)),
    }
}

fn status(error: AttachError) -> Status {
    let text = error.to_string();
    match error {
        AttachError::Invalid(_) => Status::invalid_argument(text),
        AttachError::Ipam(IpamError::NoPodCidr) | AttachError::NotAdmitted { .. } => {
            Status::unavailable(text)
        }
        AttachError::Ipam(IpamError::Exhausted { .. }) => Status::resource_exhausted(text),
        AttachError::Unknown { .. } => Status::not_found(text),
        AttachError::Differs { .. } => Status::failed_precondition(text),
        AttachError::Ipam(_) | AttachError::Link(_) | AttachError::Datapath { .. } => {
            tracing::warn!(error = text, "a CNI request failed");
            Status::internal(text)
        }
    }
}
