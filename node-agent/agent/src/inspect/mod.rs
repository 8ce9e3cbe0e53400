//! What the datapath holds, on the agent's socket: for people who want to know why.
//!
//! The kernel's tables are read when asked for, and the API server is asked for the objects
//! that explain them; nothing is kept for it.

mod explain;
mod tables;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tonic::{Request, Response, Status};
use windlass_datapath::Datapath;
use windlass_proto::agent::v1;
use windlass_proto::agent::v1::inspection_server::{Inspection, InspectionServer};

use self::explain::explain;
use self::tables::Owners;
use crate::metrics::MetricsText;

#[derive(Clone)]
pub(crate) struct Inspector {
    pub(crate) client: Client,
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) node_name: String,
    pub(crate) metrics: MetricsText,
}

impl Inspector {
    /// The service, to be added to the routes of the agent's socket.
    pub(crate) fn server(self) -> InspectionServer<Self> {
        InspectionServer::new(self)
    }

    async fn entries(&self, services: &[Service]) -> Result<Vec<v1::ServiceEntry>, Status> {
        let datapath = self.datapath.clone();
        let read = tokio::task::spawn_blocking(move || datapath.services().snapshot());
        let snapshot = read
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(tables::entries(&snapshot, &Owners::of(services)))
    }

    async fn services_of(&self, parameters: &ListParams) -> Result<Vec<Service>, Status> {
        let services: Api<Service> = Api::all(self.client.clone());
        let list = services
            .list(parameters)
            .await
            .map_err(|error| away(&error))?;
        Ok(list.items)
    }

    async fn slices(&self, namespace: &str, name: &str) -> Result<Vec<EndpointSlice>, Status> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let of_service =
            ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let list = slices
            .list(&of_service)
            .await
            .map_err(|error| away(&error))?;
        Ok(list.items)
    }

    async fn explain_service(&self, service: &Service) -> Result<Vec<String>, Status> {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let slices = self.slices(&namespace, &name).await?;
        let mut entries = self.entries(std::slice::from_ref(service)).await?;
        entries.retain(|entry| entry.namespace == namespace && entry.name == name);
        Ok(explain(service, &slices, &entries, &self.node_name))
    }

    async fn explain_address(&self, address: IpAddr, port: u16) -> Result<Vec<String>, Status> {
        let services = self.services_of(&ListParams::default()).await?;
        let entries = self.entries(&services).await?;
        let owner = entries
            .iter()
            .find(|entry| tables::answers(entry, address, port) && !entry.name.is_empty());
        let service = owner.and_then(|entry| {
            services.iter().find(|service| {
                service.name_any() == entry.name
                    && service.namespace().as_deref() == Some(&entry.namespace)
            })
        });
        match service {
            Some(service) => {
                let mut lines = vec![format!(
                    "{address} port {port} belongs to the Service {}/{}.",
                    service.namespace().unwrap_or_default(),
                    service.name_any()
                )];
                lines.extend(self.explain_service(service).await?);
                Ok(lines)
            }
            None => {
                let of_services = self.datapath.is_of_services(address);
                Ok(vec![explain::nobody(&services, address, port, of_services)])
            }
        }
    }
}

fn away(error: &kube::Error) -> Status {
    Status::unavailable(format!("the API server does not say: {error}"))
}

#[tonic::async_trait]
impl Inspection for Inspector {
    async fn services(
        &self,
        _: Request<v1::ServicesRequest>,
    ) -> Result<Response<v1::ServicesResponse>, Status> {
        // Without the API server what is in the kernel is shown all the same, without names.
        let known = self
            .services_of(&ListParams::default())
            .await
            .unwrap_or_default();
        let services = self.entries(&known).await?;
        Ok(Response::new(v1::ServicesResponse { services }))
    }

    async fn connections(
        &self,
        _: Request<v1::ConnectionsRequest>,
    ) -> Result<Response<v1::ConnectionsResponse>, Status> {
        let datapath = self.datapath.clone();
        let read = tokio::task::spawn_blocking(move || datapath.connections());
        let held = read
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::internal(error.to_string()))?;
        let connections = tables::connections(&held);
        Ok(Response::new(v1::ConnectionsResponse { connections }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let target = request.into_inner().target;
        if let Ok(address) = target.parse::<std::net::SocketAddr>() {
            let lines = self.explain_address(address.ip(), address.port()).await?;
            return Ok(Response::new(v1::ExplainResponse { lines }));
        }
        let (namespace, name) = target.split_once('/').unwrap_or(("default", &target));
        let of_name = ListParams::default().fields(&format!(
            "metadata.name={name},metadata.namespace={namespace}"
        ));
        let found = self.services_of(&of_name).await?;
        let Some(service) = found.first() else {
            return Err(Status::not_found(format!(
                "there is no Service {namespace}/{name}, and {target:?} is no ADDRESS:PORT"
            )));
        };
        let lines = self.explain_service(service).await?;
        Ok(Response::new(v1::ExplainResponse { lines }))
    }

    async fn metrics(
        &self,
        _: Request<v1::MetricsRequest>,
    ) -> Result<Response<v1::MetricsResponse>, Status> {
        let text = (self.metrics)();
        Ok(Response::new(v1::MetricsResponse { text }))
    }
}
