//! What volumes need from the cluster.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};

use crate::Result;

/// A service account token to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenSpec {
    /// Of the service account and the pod.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The token dies with this pod.
    pub pod_name: String,
    /// The token dies with this pod.
    pub pod_uid: String,
    /// Whom the token is for; none is the API server.
    pub audience: Option<String>,
    /// How long it is to last.
    pub expiration_seconds: i64,
}

/// A token and when a new one is due, which is well before its end.
#[derive(Clone)]
pub struct Token {
    /// The secret itself; never logged.
    pub token: String,
    /// When to ask again.
    pub renew_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// The cluster as volumes and environments see it: the newest known state.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// A ConfigMap, or none if there is no such one.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>>;
    /// A Secret, or none if there is no such one.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>>;
    /// A PersistentVolumeClaim, or none if there is no such one.
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>>;
    /// A PersistentVolume, or none if there is no such one.
    async fn persistent_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>>;
    /// A token; the same one until it is due for renewal.
    async fn token(&self, spec: &TokenSpec) -> Result<Token>;
    /// What the cluster knows of a CSI driver, or none if nobody described it.
    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>>;
    /// The attachment of a volume to this node, once the Node's status lists the volume; none if it does not, for a
    /// while.
    async fn attachment(&self, volume: &str, name: &str) -> Result<Option<VolumeAttachment>>;
    /// Tells a claim that its file system has grown.
    async fn expanded(&self, namespace: &str, claim: &str, capacity: &str) -> Result<()>;
}
