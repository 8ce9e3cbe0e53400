//! Giving a volume to the pod's group (`fsGroup`): everything in it belongs to the group, which
//! may do what the owner may, and what is made in it later belongs to the group too.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::Result;
use crate::error::io_error;

const GROUP_MAY: u32 = 0o660;
const FOLDER: u32 = 0o2110;

/// When the whole volume is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangePolicy {
    /// At each start.
    Always,
    /// Only if its root is not as it should be.
    OnRootMismatch,
}

impl ChangePolicy {
    pub(crate) fn of(pod: &Pod) -> Self {
        let security = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.security_context.as_ref());
        let policy = security.and_then(|it| it.fs_group_change_policy.as_deref());
        match policy {
            Some("OnRootMismatch") => Self::OnRootMismatch,
            _ => Self::Always,
        }
    }
}

/// Gives everything below `root` to `group`. Links are not followed: they may lead anywhere.
pub(crate) fn give(root: &Path, group: u32, policy: ChangePolicy) -> Result<()> {
    let metadata = fs::symlink_metadata(root).map_err(io_error("examine", root))?;
    let wanted = GROUP_MAY | FOLDER;
    let fits = metadata.gid() == group && metadata.mode() & wanted == wanted;
    if policy == ChangePolicy::OnRootMismatch && fits {
        return Ok(());
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let path = entry.map_err(io_error("read", &folder))?.path();
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("examine", &path))?,
            };
            if metadata.is_dir() {
                folders.push(path);
            } else {
                give_one(&path, &metadata, group)?;
            }
        }
        // The folder after what is in it: a root that fits says that all was done.
        let metadata = fs::symlink_metadata(&folder).map_err(io_error("examine", &folder))?;
        give_one(&folder, &metadata, group)?;
    }
    let metadata = fs::symlink_metadata(root).map_err(io_error("examine", root))?;
    give_one(root, &metadata, group)
}

fn give_one(path: &Path, metadata: &fs::Metadata, group: u32) -> Result<()> {
    if metadata.gid() != group {
        lchown(path, None, Some(group)).map_err(io_error("set the group of", path))?;
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let more = if metadata.is_dir() {
        GROUP_MAY | FOLDER
    } else {
        GROUP_MAY
    };
    let mode = metadata.mode() & 0o7777 | more;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(io_error("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_volume_is_given_away_without_what_its_links_lead_to() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        fs::create_dir_all(volume.join("d")).unwrap();
        fs::write(volume.join("d/f"), "x").unwrap();
        fs::write(root.path().join("outside"), "x").unwrap();
        symlink("../outside", volume.join("link")).unwrap();
        let seen = |path: &str| {
            let metadata = fs::metadata(root.path().join(path)).unwrap();
            (metadata.gid(), metadata.mode() & 0o7777)
        };
        fs::set_permissions(volume.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        give(&volume, 4321, ChangePolicy::Always).unwrap();
        assert_eq!(seen("v/d/f"), (4321, 0o660));
        assert_eq!(seen("v/d").0, 4321);
        assert_eq!(seen("v/d").1 & 0o2070, 0o2070);
        assert_ne!(seen("outside").0, 4321);

        fs::write(volume.join("d/later"), "x").unwrap();
        lchown(volume.join("d/later"), None, Some(0)).unwrap();
        give(&volume, 4321, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(seen("v/d/later").0, 0, "the root fits: nothing is walked");
    }
}
