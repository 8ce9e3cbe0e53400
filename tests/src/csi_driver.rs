//! A CSI driver, small but real: it registers as drivers do, on sockets in the kubelet's folder, and its volumes are
//! folders that it binds where it is told to. What it was asked for can be looked at, and it can be told to refuse.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use windlass_proto::csi::v1::node_server::{Node, NodeServer};
use windlass_proto::csi::v1::node_service_capability::{Rpc, Type, rpc};
use windlass_proto::csi::v1::volume_capability::AccessType;
use windlass_proto::csi::v1::*;

use crate::plugin::Plugin;

/// What each volume can hold, in bytes.
pub const VOLUME_SIZE: i64 = 1 << 20;

/// A driver that runs until it is dropped.
pub struct CsiDriver {
    inner: Arc<Inner>,
    plugin: Plugin,
}

struct Inner {
    name: String,
    /// Volumes' contents.
    folder: PathBuf,
    told: Mutex<Told>,
    /// Volumes that are not staged before they are let go.
    held: watch::Sender<HashSet<String>>,
}

/// What the driver was told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Each call with its volume and, if it has one, the pod's part of the path: `publish v1`.
    pub calls: Vec<String>,
    /// Of the last publishing: context, secrets and what attaching told.
    pub context: HashMap<String, String>,
    pub secrets: HashMap<String, String>,
    pub publish_context: HashMap<String, String>,
    pub read_only: bool,
    /// Refuse everything to do with these volumes, with this message.
    pub refuse: HashMap<String, String>,
}

impl CsiDriver {
    /// Starts a driver whose volumes lie in `folder`, on the node with this kubelet's folder.
    pub fn start(name: &str, root: &Path, folder: &Path) -> Result<Self> {
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            folder: folder.to_owned(),
            told: Mutex::default(),
            held: watch::Sender::default(),
        });
        let routes = Routes::new(NodeServer::from_arc(inner.clone()));
        let plugin = Plugin::start(root, "CSIPlugin", name, "1.0.0", routes)?;
        Ok(Self { inner, plugin })
    }

    /// Whether the node agent took the driver, and why not.
    pub fn registered(&self) -> Option<Result<(), String>> {
        self.plugin.registered()
    }

    /// What it was told until now; can be changed.
    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.inner.told()
    }

    /// Staging this volume takes until it is let go.
    pub fn hold(&self, handle: &str) {
        self.inner.held.send_modify(|held| {
            held.insert(handle.to_owned());
        });
    }

    /// ... which is now.
    pub fn let_go(&self, handle: &str) {
        self.inner.held.send_modify(|held| {
            held.remove(handle);
        });
    }

    /// How often it was asked for this.
    pub fn count(&self, call: &str) -> usize {
        self.told()
            .calls
            .iter()
            .filter(|known| *known == call)
            .count()
    }

    /// Where a volume's files are.
    pub fn content(&self, handle: &str) -> PathBuf {
        self.inner.content(handle)
    }
}

impl Inner {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self, handle: &str) -> PathBuf {
        self.folder.join("volumes").join(handle)
    }

    /// Writes a call down, or refuses it.
    fn called(&self, call: &str, handle: &str) -> Result<(), Status> {
        let mut told = self.told();
        told.calls.push(format!("{call} {handle}"));
        match told.refuse.get(handle) {
            Some(message) => Err(Status::internal(message.clone())),
            None => Ok(()),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&*path))
}

fn bind(source: &Path, target: &Path) -> Result<(), Status> {
    if is_mounted(target) {
        return Ok(());
    }
    let flags = MsFlags::MS_BIND;
    mount(Some(source), target, None::<&str>, flags, None::<&str>).map_err(failed)
}

/// Takes a mount off and its mount point away, as often as one likes.
fn unbind(target: &Path) -> Result<(), Status> {
    if is_mounted(target) {
        umount2(target, MntFlags::empty()).map_err(failed)?;
    }
    match target.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(target).map_err(failed),
        Ok(_) => fs::remove_file(target).map_err(failed),
        Err(_) => Ok(()),
    }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    let kind = capability.and_then(|capability| capability.access_type.as_ref());
    matches!(kind, Some(AccessType::Block(_)))
}

#[tonic::async_trait]
impl Node for Inner {
    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let place = (format!("topology.{}/node", self.name), "here".to_owned());
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "this-node".to_owned(),
            max_volumes_per_node: 16,
            accessible_topology: Some(Topology {
                segments: [place].into(),
            }),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let of = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::GetVolumeStats,
        ];
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: capabilities.map(of).into(),
        }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.called("stage", &request.volume_id)?;
        let mut held = self.held.subscribe();
        let free = held.wait_for(|held| !held.contains(&request.volume_id));
        free.await.map(drop).map_err(failed)?;
        let content = self.content(&request.volume_id);
        fs::create_dir_all(&content).map_err(failed)?;
        if !is_block(request.volume_capability.as_ref()) {
            bind(&content, Path::new(&request.staging_target_path))?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.called("unstage", &request.volume_id)?;
        let staging = Path::new(&request.staging_target_path);
        if is_mounted(staging) {
            umount2(staging, MntFlags::empty()).map_err(failed)?;
        }
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        {
            let mut told = self.told();
            told.context = request.volume_context.clone();
            told.secrets = request.secrets.clone();
            told.publish_context = request.publish_context.clone();
            told.read_only = request.readonly;
        }
        self.called("publish", &request.volume_id)?;
        let target = Path::new(&request.target_path);
        if is_block(request.volume_capability.as_ref()) {
            if !target.exists() {
                let (kind, mode) = (SFlag::S_IFBLK, Mode::from_bits_truncate(0o600));
                mknod(target, kind, mode, makedev(7, 0)).map_err(failed)?;
            }
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        let content = self.content(&request.volume_id);
        fs::create_dir_all(&content).map_err(failed)?;
        fs::create_dir_all(target).map_err(failed)?;
        let source = match request.staging_target_path.is_empty() {
            true => content,
            false => request.staging_target_path.into(),
        };
        bind(&source, target)?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.called("unpublish", &request.volume_id)?;
        unbind(Path::new(&request.target_path))?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let mounted = Path::new(&request.volume_path);
        if !is_mounted(mounted) {
            return Err(Status::not_found(request.volume_path));
        }
        let mut used = 0;
        for file in fs::read_dir(mounted).map_err(failed)? {
            used += file.map_err(failed)?.metadata().map_err(failed)?.len();
        }
        let used = i64::try_from(used).map_err(failed)?;
        let usage = VolumeUsage {
            total: VOLUME_SIZE,
            used,
            available: VOLUME_SIZE - used,
            unit: volume_usage::Unit::Bytes.into(),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![usage],
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        self.called("expand", &request.volume_id)?;
        let capacity_bytes = request
            .capacity_range
            .map_or(0, |range| range.required_bytes);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }
}
