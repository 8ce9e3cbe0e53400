//! What a container sees of the node: its volumes, its hosts file, its last-words file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeDevice, VolumeMount};
use windlass_cri::v1::{Device, Mount, MountPropagation};
use windlass_volumes::{Mounted, prepare_sub_path};

use super::container::DEFAULT_MESSAGE_PATH;
use super::expansion::expand;
use super::image_volumes::{self, ImageVolumes};

/// What mounts are made of.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// All that are set up.
    pub(crate) volumes: &'a BTreeMap<String, Mounted>,
    /// All that are pulled.
    pub(crate) images: &'a ImageVolumes,
    /// The container's variables, for parts of volumes.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Whether the runtime can make mounts below a read-only one read-only too.
    pub(crate) recursive_read_only: bool,
}

/// The container's mounts. An error is for the user's eyes.
pub(crate) fn mounts(
    pod_folder: &Path,
    container: &Container,
    attempt: u32,
    sources: Sources<'_>,
) -> Result<Vec<Mount>, String> {
    let Sources {
        volumes,
        images,
        env,
        ..
    } = sources;
    let mut mounts = Vec::new();
    for (index, wish) in container.volume_mounts.iter().flatten().enumerate() {
        if let Some(image) = images.get(&wish.name) {
            let part = sub_path(wish, env)?;
            mounts.push(image_volumes::mount(
                image,
                absolute(&wish.mount_path),
                part,
            ));
            continue;
        }
        let volume = volumes
            .get(&wish.name)
            .ok_or_else(|| format!("volume {:?} of the mount is not set up", wish.name))?;
        if volume.device {
            return Err(format!(
                "volume {:?} has volumeMode Block, but is specified in volumeMounts",
                wish.name
            ));
        }
        let host_path = match sub_path(wish, env)? {
            Some(part) => {
                let place = pod_folder
                    .join("volume-subpaths")
                    .join(&wish.name)
                    .join(&container.name)
                    .join(index.to_string());
                prepare_sub_path(&volume.path, &part, &place).map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                        wish.name, container.name
                    )
                })?
            }
            None => volume.path.clone(),
        };
        let read_only = wish.read_only.unwrap_or(false) || volume.read_only;
        let recursively = recursively(wish, sources.recursive_read_only)?;
        mounts.push(Mount {
            container_path: absolute(&wish.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            recursive_read_only: read_only && recursively,
            propagation: propagation(wish).into(),
            ..Mount::default()
        });
    }
    let taken = |path: &str| {
        container
            .volume_mounts
            .iter()
            .flatten()
            .any(|wish| absolute(&wish.mount_path) == path)
    };
    if !taken("/etc/hosts") {
        mounts.push(file("/etc/hosts", &hosts_file(pod_folder)));
    }
    let message_path = container
        .termination_message_path
        .as_deref()
        .unwrap_or(DEFAULT_MESSAGE_PATH);
    if !message_path.is_empty() {
        let host_path = message_file(pod_folder, &container.name, attempt);
        make_message_file(&host_path)
            .map_err(|error| format!("make {}: {error}", host_path.display()))?;
        mounts.push(file(message_path, &host_path));
    }
    Ok(mounts)
}

/// Whether a container wants to know that nothing below a read-only mount can be written (KEP-3857).
pub(crate) fn wants_recursive_read_only(container: &Container) -> bool {
    let mut wishes = container.volume_mounts.iter().flatten();
    wishes.any(|wish| !matches!(wish.recursive_read_only.as_deref(), None | Some("Disabled")))
}

fn recursively(wish: &VolumeMount, can: bool) -> Result<bool, String> {
    match wish.recursive_read_only.as_deref() {
        Some("Enabled") if !can => Err(format!(
            "failed to resolve recursive read-only mode: volume {:?} requested recursive read-only mode, but it is \
             not supported by the runtime",
            wish.name
        )),
        Some("Enabled" | "IfPossible") => Ok(can),
        _ => Ok(false),
    }
}

/// The block devices that a container gets as they are.
pub(crate) fn devices(
    container: &Container,
    volumes: &BTreeMap<String, Mounted>,
) -> Result<Vec<Device>, String> {
    let wishes = container.volume_devices.iter().flatten();
    let device = |wish: &VolumeDevice| {
        let volume = volumes.get(&wish.name).filter(|volume| volume.device);
        let volume = volume.ok_or_else(|| {
            format!(
                "volume {:?} is no block device, but is specified in volumeDevices",
                wish.name
            )
        })?;
        Ok(Device {
            container_path: wish.device_path.clone(),
            host_path: volume.path.to_string_lossy().into_owned(),
            permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
        })
    };
    wishes.map(device).collect()
}

/// The pod's hosts file on the node.
pub(crate) fn hosts_file(pod_folder: &Path) -> PathBuf {
    pod_folder.join("etc-hosts")
}

/// Where the last words of one run of a container lie on the node.
pub(crate) fn message_file(pod_folder: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_folder
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// Any user of the container may write it.
fn make_message_file(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

fn file(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

fn sub_path(wish: &VolumeMount, env: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    if let Some(template) = wish
        .sub_path_expr
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        let expanded = expand(template, &|name| env.get(name).cloned());
        if expanded.contains("$(") {
            return Err(format!("missing value for {template:?}"));
        }
        return Ok(Some(expanded));
    }
    Ok(wish.sub_path.clone().filter(|text| !text.is_empty()))
}

fn propagation(wish: &VolumeMount) -> MountPropagation {
    match wish.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

/// As the runtime is told of it.
pub(crate) fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use windlass_cri::v1::ImageSpec;

    use super::*;

    #[test]
    fn volumes_hosts_and_last_words_are_mounted() {
        let root = tempfile::tempdir().unwrap();
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "volumeMounts": [
                {"name": "data", "mountPath": "/data", "mountPropagation": "Bidirectional"},
                {"name": "conf", "mountPath": "conf"},
                {"name": "data", "mountPath": "/ro", "readOnly": true},
                {"name": "model", "mountPath": "/model", "subPath": "weights"},
                {"name": "data", "mountPath": "/below", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            ],
        }))
        .unwrap();
        let mounted = |path: &str, read_only| Mounted {
            read_only,
            ..Mounted::folder(path.into())
        };
        let volumes = BTreeMap::from([
            ("data".to_owned(), mounted("/host/data", false)),
            ("conf".to_owned(), mounted("/host/conf", true)),
        ]);
        let image = ImageSpec {
            image: "sha256:1".into(),
            ..ImageSpec::default()
        };
        let images = ImageVolumes::from([("model".to_owned(), image)]);
        let sources = Sources {
            volumes: &volumes,
            images: &images,
            env: &BTreeMap::new(),
            recursive_read_only: true,
        };
        let mounts = mounts(root.path(), &container, 4, sources).unwrap();
        let seen: Vec<_> = mounts
            .iter()
            .map(|mount| (mount.container_path.as_str(), mount.readonly))
            .collect();
        assert_eq!(
            seen,
            [
                ("/data", false),
                ("/conf", true),
                ("/ro", true),
                ("/model", true),
                ("/below", true),
                ("/etc/hosts", false),
                ("/dev/termination-log", false)
            ]
        );
        assert_eq!(
            mounts[0].propagation(),
            MountPropagation::PropagationBidirectional
        );
        assert_eq!(mounts[3].image.as_ref().unwrap().image, "sha256:1");
        assert_eq!(mounts[3].image_sub_path, "weights");
        assert!(mounts[3].host_path.is_empty());
        assert!(mounts[4].recursive_read_only && !mounts[2].recursive_read_only);
        assert!(message_file(root.path(), "c", 4).exists());
    }

    #[test]
    fn a_sub_path_that_leads_out_of_its_volume_is_named() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        let container: Container = serde_json::from_value(json!({
            "name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "out"}],
        }))
        .unwrap();
        let there = Mounted::folder(volume);
        let volumes = BTreeMap::from([("v".to_owned(), there)]);
        let refused = refused(root.path(), &container, &volumes);
        let said = "failed to prepare subPath for volumeMount \"v\" of container \"c\"";
        assert!(refused.starts_with(said), "{refused}");
    }

    fn refused(root: &Path, container: &Container, volumes: &BTreeMap<String, Mounted>) -> String {
        let sources = Sources {
            volumes,
            images: &ImageVolumes::new(),
            env: &BTreeMap::new(),
            recursive_read_only: false,
        };
        mounts(root, container, 0, sources).unwrap_err()
    }

    #[test]
    fn mounts_that_must_be_read_only_below_are_not_made_otherwise() {
        let root = tempfile::tempdir().unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Enabled"},
        ]}))
        .unwrap();
        assert!(wants_recursive_read_only(&container));
        let there = Mounted::folder(root.path().to_owned());
        let volumes = BTreeMap::from([("v".to_owned(), there)]);
        assert_eq!(
            refused(root.path(), &container, &volumes),
            "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is \
             not supported by the runtime"
        );
    }

    #[test]
    fn a_sub_path_expression_needs_its_variables() {
        let wish: VolumeMount = serde_json::from_value(
            json!({"name": "v", "mountPath": "/v", "subPathExpr": "logs/$(POD)"}),
        )
        .unwrap();
        let env = BTreeMap::from([("POD".to_owned(), "web-0".to_owned())]);
        assert_eq!(
            sub_path(&wish, &env).unwrap().as_deref(),
            Some("logs/web-0")
        );
        assert!(sub_path(&wish, &BTreeMap::new()).is_err());
    }
}
