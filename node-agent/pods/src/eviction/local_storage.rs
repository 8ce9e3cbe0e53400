//! Pods that use more disk than they may: limits of `emptyDir` volumes and of containers'
//! `ephemeral-storage`. The kernel does not hold anybody to these, so they are measured.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use windlass_machinery::quantity::Quantity;

use crate::config::Config;
use crate::launch::sandbox::log_folder;
use crate::model::{PodId, slots, spec};

/// What a pod uses outside its folder, by container name.
pub(super) type WritableLayers = std::collections::BTreeMap<String, i64>;

/// Whether the pod has any limit that would have to be measured.
pub(super) fn is_limited(pod: &Pod) -> bool {
    let volumes = spec(pod).volumes.iter().flatten();
    let mut disks = volumes.filter_map(|volume| volume.empty_dir.as_ref());
    disks.any(|disk| disk.size_limit.is_some() && disk.medium.as_deref() != Some("Memory"))
        || slots(pod).any(|slot| limit(&slot.container).is_some())
}

/// Which limit the pod exceeds, in the words of its eviction.
pub(super) fn excess(pod: &Pod, config: &Config, layers: &WritableLayers) -> Option<String> {
    let id = PodId::of(pod);
    let folder = config
        .pod_folder(&id.uid)
        .join("volumes/kubernetes.io~empty-dir");
    let mut in_volumes = 0;
    for volume in spec(pod).volumes.iter().flatten() {
        let disk = volume.empty_dir.as_ref();
        let Some(disk) = disk.filter(|disk| disk.medium.as_deref().unwrap_or("").is_empty()) else {
            continue;
        };
        let used = disk_used(&folder.join(&volume.name));
        in_volumes += used;
        let limit = disk.size_limit.as_ref();
        let Some(limit) = limit.and_then(|limit| Some((limit, Quantity::parse(&limit.0).ok()?)))
        else {
            continue;
        };
        if used > limit.1.value() {
            let (name, text) = (&volume.name, &limit.0.0);
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
            ));
        }
    }
    let logs = log_folder(config, &id);
    let (mut used_by_all, mut limit_of_all) = (in_volumes, Some(0));
    for slot in slots(pod) {
        let used =
            layers.get(slot.name()).copied().unwrap_or(0) + disk_used(&logs.join(slot.name()));
        used_by_all += used;
        let limit = limit(&slot.container);
        limit_of_all = limit_of_all.zip(limit).map(|(sum, limit)| sum + limit);
        if limit.is_some_and(|limit| used > limit) {
            let limits = slot
                .container
                .resources
                .as_ref()
                .and_then(|it| it.limits.as_ref());
            let text = limits.and_then(|it| it.get("ephemeral-storage"));
            let text = text.map(|it| it.0.as_str()).unwrap_or_default();
            let name = slot.name();
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {text:?}. "
            ));
        }
    }
    let limit = limit_of_all.filter(|limit| *limit > 0)?;
    (used_by_all > limit).then(|| {
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    })
}

fn limit(container: &Container) -> Option<i64> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    let limit = Quantity::parse(&limits.get("ephemeral-storage")?.0).ok()?;
    Some(limit.value()).filter(|limit| *limit > 0)
}

/// Bytes on disk below `path`, on its own file system only. What vanishes while it is
/// counted counts as nothing.
pub(super) fn disk_used(path: &Path) -> i64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let device = metadata.dev();
    let mut folders = vec![path.to_owned()];
    let mut blocks = metadata.blocks();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.dev() != device {
                continue;
            }
            blocks += metadata.blocks();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    i64::try_from(blocks * 512).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::launch::test_config;

    #[test]
    fn limits_of_volumes_and_containers_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: root.path().into(),
            root_dir: root.path().into(),
            ..test_config()
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u", "name": "p", "namespace": "n"},
            "spec": {
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "64Ki"}}],
                "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "256Ki"}}}],
            },
        }))
        .unwrap();
        assert!(is_limited(&pod));
        let volume = config
            .pod_folder("u")
            .join("volumes/kubernetes.io~empty-dir/v");
        fs::create_dir_all(&volume).unwrap();
        let none = WritableLayers::new();
        assert_eq!(excess(&pod, &config, &none), None);
        fs::write(volume.join("file"), vec![1; 100 << 10]).unwrap();
        let told = excess(&pod, &config, &none).unwrap();
        assert_eq!(
            told,
            "Usage of EmptyDir volume \"v\" exceeds the limit \"64Ki\". "
        );
        fs::remove_file(volume.join("file")).unwrap();
        let layers = [("c".to_owned(), 300 << 10)].into();
        let told = excess(&pod, &config, &layers).unwrap();
        assert!(told.starts_with("Container c exceeded its local ephemeral storage limit"));
    }
}
