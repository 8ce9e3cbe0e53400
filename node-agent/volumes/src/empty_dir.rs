//! Room that lives as long as the pod: on disk, in memory, or in huge pages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use crate::error::io_error;
use windlass_machinery::quantity::Quantity;

use crate::{Error, Result, mounts};

const HUGE_PAGES: &str = "HugePages";

/// Makes the pod's folder, writable for everyone as Kubernetes promises, or for `group`.
pub(crate) fn set_up(
    path: &Path,
    source: &EmptyDirVolumeSource,
    pod: &Pod,
    group: Option<u32>,
) -> Result<()> {
    let fresh = !path.exists();
    fs::create_dir_all(path).map_err(io_error("create", path))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            let limit = source
                .size_limit
                .as_ref()
                .map(|limit| Quantity::parse(&limit.0));
            let limit = limit
                .transpose()
                .map_err(|error| Error::Field(error.to_string()))?;
            let bytes = limit.and_then(|limit| u64::try_from(limit.value()).ok());
            mounts::memory(path, bytes.filter(|bytes| *bytes > 0))?;
        }
        medium => {
            let size = page_size(medium, pod).map_err(Error::Field)?;
            mounts::huge_pages(path, &size)?;
        }
    }
    // Only once: what the containers did to it since is theirs.
    if fresh {
        chown(path, None, group).map_err(io_error("set the group of", path))?;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(io_error("set the mode of", path))?;
    }
    Ok(())
}

/// Which pages a medium stands for: those of the size that it names, or of the only one that the pod asks for.
fn page_size(medium: &str, pod: &Pod) -> Result<String, String> {
    let asked = sizes_asked_for(pod);
    let named = medium
        .strip_prefix(HUGE_PAGES)
        .map(|rest| rest.strip_prefix('-'));
    match named {
        Some(Some(size)) if asked.contains(size) => Ok(size.to_owned()),
        Some(Some(size)) => Err(format!(
            "medium {medium} of an emptyDir: no container requests hugepages-{size}"
        )),
        Some(None) => match asked.iter().collect::<Vec<_>>()[..] {
            [size] => Ok(size.clone()),
            _ => Err(format!(
                "medium {medium} of an emptyDir: the containers request huge pages of {} sizes",
                asked.len()
            )),
        },
        None => Err(format!("unsupported emptyDir medium: {medium}")),
    }
}

fn sizes_asked_for(pod: &Pod) -> BTreeSet<String> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(inits)
    });
    let requests = containers
        .filter_map(|container| container.resources.as_ref()?.requests.as_ref())
        .flat_map(|requests| requests.keys());
    requests
        .filter_map(|name| name.strip_prefix("hugepages-").map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_medium_says_which_pages_or_the_pod_does() {
        let pod = |requests: &[&str]| -> Pod {
            let containers: Vec<_> = requests
                .iter()
                .map(|name| json!({"name": "c", "resources": {"requests": {*name: "4Mi"}}}))
                .collect();
            serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
        };
        let one = pod(&["hugepages-2Mi"]);
        assert_eq!(page_size("HugePages", &one).unwrap(), "2Mi");
        assert_eq!(page_size("HugePages-2Mi", &one).unwrap(), "2Mi");
        assert!(page_size("HugePages-1Gi", &one).is_err());
        let both = pod(&["hugepages-2Mi", "hugepages-1Gi"]);
        assert_eq!(page_size("HugePages-1Gi", &both).unwrap(), "1Gi");
        for (medium, pod) in [
            ("HugePages", &both),
            ("HugePages", &pod(&["cpu"])),
            ("Disk", &one),
        ] {
            assert!(page_size(medium, pod).is_err(), "{medium}");
        }
    }
}
