//! Where a node has the cgroups of version 2: at the root, or, with those of version 1 beside them, in a folder there.

use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Below it systemd mounts the second version on a node that has both.
const HYBRID: &str = "unified";

/// `path`, or the folder in it that is meant.
pub(crate) fn hierarchy(path: &Path) -> anyhow::Result<PathBuf> {
    let candidates = [path.to_owned(), path.join(HYBRID)];
    let is_version_2 = |path: &PathBuf| {
        statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
    };
    let Some(found) = candidates.into_iter().find(is_version_2) else {
        bail!(
            "no cgroup2 is mounted at {} or in `{HYBRID}` there (--cgroup2): \
             the socket hooks of Services need one, even if empty of controllers",
            path.display()
        );
    };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup2_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = hierarchy(folder.path()).unwrap_err().to_string();
        assert!(error.contains("--cgroup2"), "{error}");
    }
}
