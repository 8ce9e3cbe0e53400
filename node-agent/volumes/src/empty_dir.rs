//! Room that lives as long as the pod: on disk, or in memory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use crate::error::io_error;
use windlass_machinery::quantity::Quantity;

use crate::{Error, Result, mounts};

/// Makes the folder, writable for everyone as Kubernetes promises, or for `group`.
pub(crate) fn set_up(path: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> Result<()> {
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
            return Err(Error::Field(format!(
                "unsupported emptyDir medium: {medium}"
            )));
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
