//! One driver of devices.

use std::path::Path;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use windlass_proto::dra::dra_plugin_client::DraPluginClient;
use windlass_proto::dra::{
    Claim, Device, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest,
};
use windlass_volumes::csi::{connect, explain};

const DEADLINE: Duration = Duration::from_secs(45);

/// Clones are the same one.
#[derive(Clone)]
pub(super) struct Driver(Channel);

impl Driver {
    pub(super) fn new(socket: &Path) -> Self {
        Self(connect(socket))
    }

    pub(super) async fn prepare(&self, claim: Claim) -> Result<Vec<Device>, String> {
        let failed = |why: &str| format!("prepare ResourceClaim {}: {why}", claim.name);
        let mut client = DraPluginClient::new(self.0.clone());
        let request = NodePrepareResourcesRequest {
            claims: vec![claim.clone()],
        };
        let answer = within(client.node_prepare_resources(Request::new(request))).await;
        let mut answer = answer.map_err(|why| failed(&why))?;
        match answer.claims.remove(&claim.uid) {
            None => Err(failed("the driver says nothing of it")),
            Some(told) if !told.error.is_empty() => Err(failed(&told.error)),
            Some(told) => Ok(told.devices),
        }
    }

    pub(super) async fn unprepare(&self, claim: Claim) -> Result<(), String> {
        let failed = |why: &str| format!("unprepare ResourceClaim {}: {why}", claim.name);
        let mut client = DraPluginClient::new(self.0.clone());
        let request = NodeUnprepareResourcesRequest {
            claims: vec![claim.clone()],
        };
        let answer = within(client.node_unprepare_resources(Request::new(request))).await;
        let answer = answer.map_err(|why| failed(&why))?;
        match answer.claims.get(&claim.uid) {
            None => Err(failed("the driver says nothing of it")),
            Some(told) if !told.error.is_empty() => Err(failed(&told.error)),
            Some(_) => Ok(()),
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(explain(&status)),
        Err(_) => Err("the driver does not answer".to_owned()),
    }
}
