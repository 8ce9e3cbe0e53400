//! One driver: its socket, and the calls of the CSI's node service.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use windlass_proto::csi::v1::node_client::NodeClient;
use windlass_proto::csi::v1::node_service_capability::{Type, rpc};
use windlass_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeUsage,
};

use crate::{Error, Result};

pub(super) use rpc::Type as Ability;

/// As long as the kubelet waits for a driver.
const DEADLINE: Duration = Duration::from_secs(120);
/// The longest path that fits into a socket's address.
const SOCKET_PATH: usize = 107;

/// A driver on this node. Clones are the same one.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

struct Inner {
    name: String,
    channel: Channel,
    abilities: OnceCell<Vec<Ability>>,
}

/// What a driver says of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node as the driver's controller knows it.
    pub node_id: String,
    /// The most volumes; none if it does not say.
    pub most: Option<i64>,
    /// Labels of the node that say from where the volumes are reached.
    pub topology: BTreeMap<String, String>,
}

/// A connection to the gRPC server behind a unix socket, made at the first call.
pub fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { dial(&socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://plugin").connect_with_connector_lazy(connector)
}

/// Registries lie deep in the file system: a path that is too long for an address is reached from its folder.
async fn dial(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= SOCKET_PATH {
        return UnixStream::connect(socket).await;
    }
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits())
        .open(folder)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    UnixStream::connect(through.join(name)).await
}

/// A driver's refusal in the words that users know from events.
pub fn explain(status: &Status) -> String {
    let (code, said) = (status.code(), status.message());
    format!("rpc error: code = {code:?} desc = {said}")
}

/// Why a call to a driver failed.
pub(super) fn refusal(status: &Status) -> Error {
    Error::Driver {
        message: explain(status),
        // Of all others the driver may still be working on it, or may have done it.
        is_final: !matches!(
            status.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
        ),
    }
}

impl Driver {
    /// The driver of this name, which listens at `socket`.
    pub fn new(name: String, socket: &Path) -> Self {
        Self(Arc::new(Inner {
            name,
            channel: connect(socket),
            abilities: OnceCell::new(),
        }))
    }

    /// As objects of the cluster call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it says of the node.
    pub async fn node_info(&self) -> Result<NodeInfo, Status> {
        let mut client = self.client();
        let asked = client.node_get_info(timed(NodeGetInfoRequest {}));
        let told = within(asked).await?;
        Ok(NodeInfo {
            node_id: told.node_id,
            most: Some(told.max_volumes_per_node).filter(|most| *most > 0),
            topology: told
                .accessible_topology
                .map(|topology| topology.segments.into_iter().collect())
                .unwrap_or_default(),
        })
    }

    fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.0.channel.clone())
    }

    pub(super) async fn can(&self, ability: Ability) -> Result<bool> {
        let ask = async || {
            let mut client = self.client();
            let asked = client.node_get_capabilities(timed(NodeGetCapabilitiesRequest {}));
            let told = within(asked).await?;
            let rpcs = told.capabilities.iter().filter_map(|one| {
                let Type::Rpc(rpc) = one.r#type.as_ref()?;
                Some(rpc.r#type())
            });
            Ok::<_, Status>(rpcs.collect())
        };
        let known = self.0.abilities.get_or_try_init(ask).await;
        let known: &Vec<Ability> = known.map_err(|status| refusal(&status))?;
        Ok(known.contains(&ability))
    }

    pub(super) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<()> {
        let mut client = self.client();
        done(within(client.node_stage_volume(timed(request))).await)
    }

    pub(super) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<()> {
        let mut client = self.client();
        done(within(client.node_publish_volume(timed(request))).await)
    }

    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<()> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.to_owned(),
            target_path: target.to_string_lossy().into_owned(),
        };
        let mut client = self.client();
        gone(within(client.node_unpublish_volume(timed(request))).await)
    }

    pub(super) async fn unstage(&self, handle: &str, staging: &Path) -> Result<()> {
        let request = NodeUnstageVolumeRequest {
            volume_id: handle.to_owned(),
            staging_target_path: staging.to_string_lossy().into_owned(),
        };
        let mut client = self.client();
        gone(within(client.node_unstage_volume(timed(request))).await)
    }

    pub(super) async fn usage(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<Vec<VolumeUsage>> {
        let mut client = self.client();
        let answer = within(client.node_get_volume_stats(timed(request))).await;
        let answer = answer.map_err(|status| refusal(&status))?;
        Ok(answer.usage)
    }

    pub(super) async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<i64> {
        let mut client = self.client();
        let answer = within(client.node_expand_volume(timed(request))).await;
        let answer = answer.map_err(|status| refusal(&status))?;
        Ok(answer.capacity_bytes)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the driver does not answer")),
    }
}

fn done<T>(answer: Result<T, Status>) -> Result<()> {
    answer.map(drop).map_err(|status| refusal(&status))
}

/// A volume that the driver does not know needs no undoing.
fn gone<T>(answer: Result<T, Status>) -> Result<()> {
    match answer {
        Err(status) if status.code() == Code::NotFound => {
            tracing::warn!(said = status.message(), "the driver knows no such volume");
            Ok(())
        }
        other => done(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_reached_however_long_its_path_is() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("x".repeat(90)).join("y".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        let near = root.path().join("near.sock");
        let listener = tokio::net::UnixListener::bind(&near).unwrap();
        let far = deep.join("far.sock");
        std::os::unix::fs::symlink(&near, &far).unwrap();
        let (dialled, accepted) = tokio::join!(dial(&far), listener.accept());
        assert!(dialled.is_ok() && accepted.is_ok());
    }

    #[test]
    fn a_refusal_is_told_as_users_know_it() {
        let status = Status::invalid_argument("no such disk");
        let error = refusal(&status);
        assert_eq!(
            error.to_string(),
            "rpc error: code = InvalidArgument desc = no such disk"
        );
        assert!(matches!(error, Error::Driver { is_final: true, .. }));
        let error = refusal(&Status::unavailable(""));
        assert!(matches!(
            error,
            Error::Driver {
                is_final: false,
                ..
            }
        ));
    }
}
