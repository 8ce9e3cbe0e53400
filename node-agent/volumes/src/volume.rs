//! From a volume of the spec to a path on the node.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMapProjection, Pod, SecretProjection, Volume};

use crate::csi::{self, Csi, CsiVolume};
use crate::payload::{self, Payload};
use crate::{
    Error, NodeFacts, Objects, Result, claim, config_map, downward_api, empty_dir, host_path,
    mounts, projected, secret,
};

const DEFAULT_MODE: u32 = 0o644;

/// Whose volumes they are, and where their things come from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The pod's own folder on the node.
    pub folder: &'a Path,
    /// The cluster.
    pub objects: &'a dyn Objects,
    /// The node.
    pub node: &'a NodeFacts,
    /// The CSI drivers of the node.
    pub csi: &'a Csi,
}

impl Context<'_> {
    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    pub(crate) fn group(&self) -> Option<u32> {
        let security = self.pod.spec.as_ref()?.security_context.as_ref()?;
        security
            .fs_group
            .and_then(|group| u32::try_from(group).ok())
    }
}

/// A volume that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// On the node.
    pub path: PathBuf,
    /// The source allows no writing, whatever the mount says.
    pub read_only: bool,
    /// It is a block device, not a folder.
    pub device: bool,
    /// Its content follows objects of the cluster: set it up again when they change.
    pub follows: bool,
    /// Set it up again at this time at the latest.
    pub renew_at: Option<Timestamp>,
}

impl Mounted {
    /// A folder of the node that is the container's to write and that nobody else changes.
    pub fn folder(path: PathBuf) -> Self {
        Self {
            path,
            read_only: false,
            device: false,
            follows: false,
            renew_at: None,
        }
    }
}

/// Sets a volume up, or brings its content up to date.
pub async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted> {
    let place = |source: &str| {
        context
            .folder
            .join("volumes")
            .join(source)
            .join(&volume.name)
    };
    let group = context.group();
    if let Some(source) = volume.empty_dir.clone() {
        let path = place("kubernetes.io~empty-dir");
        let (target, pod) = (path.clone(), context.pod.clone());
        blocking(move || empty_dir::set_up(&target, &source, &pod, group)).await?;
        return Ok(Mounted::folder(path));
    }
    if let Some(source) = volume.host_path.clone() {
        let path = PathBuf::from(&source.path);
        blocking(move || host_path::set_up(&source)).await?;
        return Ok(Mounted::folder(path));
    }
    if let Some(inline) = CsiVolume::inline(context, volume) {
        return csi::set_up(context, inline, None).await;
    }
    if let Some(name) = claim::claim_name(context.pod, volume) {
        return claim::set_up(context, volume, &name).await;
    }
    let Written {
        source,
        files,
        in_memory,
        renew_at,
    } = Written::of(context, volume).await?;
    let path = place(source);
    let target = path.clone();
    blocking(move || write_files(&target, &files, in_memory, group)).await?;
    Ok(Mounted {
        read_only: true,
        follows: true,
        renew_at,
        ..Mounted::folder(path)
    })
}

/// A volume whose files the agent writes from objects of the cluster.
struct Written {
    /// The name of its kind, for the folder.
    source: &'static str,
    files: Payload,
    in_memory: bool,
    renew_at: Option<Timestamp>,
}

impl Written {
    async fn of(context: &Context<'_>, volume: &Volume) -> Result<Self> {
        let mode_of = |mode: Option<i32>| {
            mode.and_then(|mode| u32::try_from(mode).ok())
                .unwrap_or(DEFAULT_MODE)
        };
        let mut renew_at = None;
        let (source, files, in_memory) = if let Some(source) = &volume.config_map {
            let projection = ConfigMapProjection {
                name: source.name.clone(),
                items: source.items.clone(),
                optional: source.optional,
            };
            let mode = mode_of(source.default_mode);
            let files = config_map::files(context, &projection, mode).await?;
            ("kubernetes.io~configmap", files, false)
        } else if let Some(source) = &volume.secret {
            let projection = SecretProjection {
                name: source.secret_name.clone().unwrap_or_default(),
                items: source.items.clone(),
                optional: source.optional,
            };
            let mode = mode_of(source.default_mode);
            let files = secret::files(context, &projection, mode).await?;
            ("kubernetes.io~secret", files, true)
        } else if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let files = downward_api::files(context, items, mode_of(source.default_mode))?;
            ("kubernetes.io~downward-api", files, false)
        } else if let Some(source) = &volume.projected {
            let mode = mode_of(source.default_mode);
            let (files, due) = projected::files(context, &volume.name, source, mode).await?;
            renew_at = due;
            ("kubernetes.io~projected", files, true)
        } else {
            return Err(Error::Unsupported {
                name: volume.name.clone(),
            });
        };
        Ok(Self {
            source,
            files,
            in_memory,
            renew_at,
        })
    }
}

/// Unmounts everything of the pod with this folder and removes it: what drivers mounted by them, in their order.
pub async fn take_down(csi: &Csi, folder: &Path) -> Result<()> {
    // Parts of volumes would keep their devices busy.
    let parts = folder.join("volume-subpaths");
    blocking(move || mounts::unmount_below(&parts)).await?;
    csi.take_down(folder).await?;
    let folder = folder.to_owned();
    blocking(move || mounts::tear_down(&folder)).await
}

/// So long from now.
pub(crate) fn later(by: std::time::Duration) -> Timestamp {
    let now = Timestamp::now();
    now.checked_add(by).unwrap_or(now)
}

/// Secrets and tokens lie in memory, so that no disk ever holds them.
fn write_files(path: &Path, files: &Payload, in_memory: bool, group: Option<u32>) -> Result<()> {
    if in_memory {
        std::fs::create_dir_all(path).map_err(crate::error::io_error("create", path))?;
        mounts::memory(path, None)?;
    }
    payload::write(path, files, group).map(|_| ())
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Field(format!(
            "volume work was interrupted: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::sync::Arc;

    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
    use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
    use serde_json::json;

    use super::*;
    use crate::{Token, TokenSpec};

    #[derive(Default)]
    struct Fixed {
        config_maps: HashMap<String, Arc<ConfigMap>>,
        secrets: HashMap<String, Arc<Secret>>,
        claim: Option<Arc<PersistentVolumeClaim>>,
        volume: Option<Arc<PersistentVolume>>,
    }

    #[async_trait]
    impl Objects for Fixed {
        async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>> {
            Ok(self.config_maps.get(name).cloned())
        }

        async fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>> {
            Ok(self.secrets.get(name).cloned())
        }

        async fn claim(&self, _: &str, _: &str) -> Result<Option<Arc<PersistentVolumeClaim>>> {
            Ok(self.claim.clone())
        }

        async fn persistent_volume(&self, _: &str) -> Result<Option<Arc<PersistentVolume>>> {
            Ok(self.volume.clone())
        }

        async fn token(&self, spec: &TokenSpec) -> Result<Token> {
            let renew_at = Timestamp::from_second(spec.expiration_seconds).unwrap();
            let audience = spec.audience.as_deref().unwrap_or("api");
            Ok(Token {
                token: format!("{}@{audience}", spec.service_account),
                renew_at,
                expires_at: renew_at,
            })
        }

        async fn csi_driver(&self, _: &str) -> Result<Option<Arc<CSIDriver>>> {
            Ok(None)
        }

        async fn attachment(&self, _: &str, _: &str) -> Result<Option<VolumeAttachment>> {
            Ok(None)
        }

        async fn expanded(&self, _: &str, _: &str, _: &str) -> Result<()> {
            Ok(())
        }
    }

    fn volume(value: serde_json::Value) -> Volume {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test]
    async fn a_projected_volume_joins_its_sources_and_is_removed_without_trace() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
            "spec": {"serviceAccountName": "sa", "containers": []},
        }))
        .unwrap();
        let map = serde_json::from_value(json!({"data": {"ca.crt": "CA"}})).unwrap();
        let objects = Fixed {
            config_maps: [("root-ca".to_owned(), Arc::new(map))].into(),
            ..Fixed::default()
        };
        let node = NodeFacts::default();
        let csi = Csi::new(root.path().to_owned(), "n1".into());
        let context = Context {
            pod: &pod,
            folder: &folder,
            objects: &objects,
            node: &node,
            csi: &csi,
        };
        let volume = volume(json!({"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "root-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
            ]}},
        ]}}));

        let mounted = set_up(&context, &volume).await.unwrap();
        let read = |name: &str| fs::read_to_string(mounted.path.join(name)).unwrap();
        assert_eq!(read("token"), "sa@api");
        assert_eq!(read("ca.crt"), "CA");
        assert_eq!(read("namespace"), "ns");
        assert_eq!(mounted.renew_at, Timestamp::from_second(3607).ok());
        assert_eq!(set_up(&context, &volume).await.unwrap(), mounted);

        crate::tear_down(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_token_is_for_those_who_run_the_pod() {
        use std::os::unix::fs::MetadataExt;

        let (objects, node) = (Fixed::default(), NodeFacts::default());
        let wanted = volume(json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}},
        ]}}));
        let user = json!({"runAsUser": 1000});
        for (whole, containers, seen) in [
            (json!({}), vec![json!({})], (0, 0, 0o644)),
            (user.clone(), vec![json!({})], (1000, 0, 0o600)),
            (json!({}), vec![user.clone(), json!({})], (0, 0, 0o644)),
            (json!({"fsGroup": 2000}), vec![json!({})], (0, 2000, 0o640)),
            (json!({"fsGroup": 2000}), vec![user], (1000, 2000, 0o640)),
        ] {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("pod");
            let csi = Csi::new(root.path().to_owned(), "n1".into());
            let said = format!("{whole} {containers:?}");
            let containers = containers.into_iter().enumerate();
            let containers: Vec<_> = containers
                .map(|(i, security)| json!({"name": format!("c{i}"), "securityContext": security}))
                .collect();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
                "spec": {"securityContext": whole, "containers": containers},
            }))
            .unwrap();
            let context = Context {
                pod: &pod,
                folder: &folder,
                objects: &objects,
                node: &node,
                csi: &csi,
            };
            let mounted = set_up(&context, &wanted).await.unwrap();
            let token = fs::metadata(mounted.path.join("token")).unwrap();
            let found = (token.uid(), token.gid(), token.mode() & 0o7777);
            crate::tear_down(&folder).unwrap();
            assert_eq!(found, seen, "{said}");
        }
    }

    #[tokio::test]
    async fn a_missing_object_is_an_error_unless_it_is_optional() {
        let root = tempfile::tempdir().unwrap();
        let (pod, objects, node) = (Pod::default(), Fixed::default(), NodeFacts::default());
        let csi = Csi::new(root.path().to_owned(), "n1".into());
        let context = Context {
            pod: &pod,
            folder: root.path(),
            objects: &objects,
            node: &node,
            csi: &csi,
        };
        let needed = volume(json!({"name": "v", "configMap": {"name": "absent"}}));
        let error = set_up(&context, &needed).await.unwrap_err();
        assert_eq!(error.to_string(), "configmap \"absent\" not found");
        let optional =
            volume(json!({"name": "v", "configMap": {"name": "absent", "optional": true}}));
        let mounted = set_up(&context, &optional).await.unwrap();
        assert!(mounted.path.is_dir());
    }

    #[tokio::test]
    async fn a_claim_is_used_once_it_is_bound_and_only_through_its_own_volume() {
        let root = tempfile::tempdir().unwrap();
        let local = root.path().join("disk");
        fs::create_dir(&local).unwrap();
        let pod = Pod::default();
        let node = NodeFacts::default();
        let csi = Csi::new(root.path().to_owned(), "n1".into());
        let wanted = volume(json!({"name": "v", "persistentVolumeClaim": {
            "claimName": "data", "readOnly": true}}));
        let attempt = async |phase: &str, holder: &str| {
            let claim = json!({"metadata": {"uid": "c1"}, "spec": {"volumeName": "pv"},
                               "status": {"phase": phase}});
            let source = json!({"claimRef": {"uid": holder}, "local": {"path": local}});
            let objects = Fixed {
                claim: serde_json::from_value(claim).unwrap(),
                volume: serde_json::from_value(json!({"metadata": {}, "spec": source})).unwrap(),
                ..Fixed::default()
            };
            let context = Context {
                pod: &pod,
                folder: root.path(),
                objects: &objects,
                node: &node,
                csi: &csi,
            };
            set_up(&context, &wanted).await
        };
        let text = |result: Result<Mounted>| result.unwrap_err().to_string();
        let unbound = attempt("Pending", "c1").await;
        assert_eq!(text(unbound), "persistentvolumeclaim \"data\" is not bound");
        let stolen = attempt("Bound", "another").await;
        assert!(text(stolen).contains("bound to another claim"));
        let mounted = attempt("Bound", "c1").await.unwrap();
        assert_eq!(mounted.path, local);
        assert!(mounted.read_only && !mounted.device);
    }
}
