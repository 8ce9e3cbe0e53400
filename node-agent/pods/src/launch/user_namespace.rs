//! Users of a pod's own (KEP-127, `hostUsers: false`): a range of the node's user and group ids that no other pod has.
//!
//! The true record is a file in the pod's folder, in the kubelet's form: a restarted agent finds it, and with the folder
//! the range is free again.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use windlass_cri::v1::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};

use crate::model::{PodId, spec};

const FILE: &str = "userns";
/// Of each pod; and of the node itself, which has the first range.
const IDS: u32 = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: [Range; 1],
    gid_mappings: [Range; 1],
}

/// Whether the pod asks for users of its own.
pub(crate) fn is_wanted(pod: &Pod) -> bool {
    spec(pod).host_users == Some(false)
}

/// Gives ranges out, one pod at a time.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Mutex<()>);

impl Ranges {
    /// Gives the pod a range, unless it has one.
    pub(crate) fn allocate(&self, pods: &Path, pod: &Pod) -> Result<(), String> {
        let _turn = self.0.lock();
        let folder = pods.join(PodId::of(pod).uid);
        if read(&folder)?.is_some() {
            return Ok(());
        }
        let taken = taken(pods)?;
        let free = (1..u32::MAX / IDS).map(|index| index * IDS);
        let mut free = free.filter(|first| !taken.contains(first));
        let host_id = free.next();
        let host_id = host_id.ok_or("could not find an empty slot to allocate a user namespace")?;
        let range = Range {
            host_id,
            container_id: 0,
            length: IDS,
        };
        write(&folder, range)
            .map_err(|error| format!("write down the users of {}: {error}", folder.display()))
    }
}

/// The pod's users as the runtime is told of them.
pub(crate) fn of(pod: &Pod, folder: &Path) -> UserNamespace {
    if !is_wanted(pod) {
        return UserNamespace {
            mode: NamespaceMode::Node.into(),
            ..UserNamespace::default()
        };
    }
    // Without a range the runtime refuses: there is no way to the node's users from here.
    let range = read(folder).ok().flatten();
    let mapping = range.map(|range| IdMapping {
        host_id: range.host_id,
        container_id: range.container_id,
        length: range.length,
    });
    let mappings: Vec<_> = mapping.into_iter().collect();
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: mappings.clone(),
        gids: mappings,
    }
}

/// The users of the sandbox that this configuration makes.
pub(super) fn of_sandbox(config: &PodSandboxConfig) -> Option<UserNamespace> {
    let security = config.linux.as_ref()?.security_context.as_ref()?;
    security.namespace_options.as_ref()?.userns_options.clone()
}

fn taken(pods: &Path) -> Result<HashSet<u32>, String> {
    let entries =
        fs::read_dir(pods).map_err(|error| format!("read {}: {error}", pods.display()))?;
    let mut taken = HashSet::new();
    for entry in entries.flatten() {
        taken.extend(read(&entry.path())?.map(|range| range.host_id));
    }
    Ok(taken)
}

fn read(folder: &Path) -> Result<Option<Range>, String> {
    let path = folder.join(FILE);
    let failed = |problem: String| format!("read {}: {problem}", path.display());
    let bytes = match fs::read(&path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(|error| failed(error.to_string()))?,
    };
    let mappings: Mappings =
        serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    let [range] = mappings.uid_mappings;
    if mappings.gid_mappings != [range] || range.host_id < IDS || range.container_id != 0 {
        return Err(failed("not a range of users and groups alike".to_owned()));
    }
    Ok(Some(range))
}

/// Durable before a sandbox has the range, so that after a power loss nobody else gets it.
fn write(folder: &Path, range: Range) -> std::io::Result<()> {
    let mappings = Mappings {
        uid_mappings: [range],
        gid_mappings: [range],
    };
    fs::create_dir_all(folder)?;
    let (new, path) = (folder.join(".userns.new"), folder.join(FILE));
    fs::write(&new, serde_json::to_vec(&mappings)?)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, host_users: Option<bool>) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": uid, "namespace": "n", "uid": uid},
            "spec": {"hostUsers": host_users, "containers": []}}),
        )
        .unwrap()
    }

    #[test]
    fn every_pod_has_users_of_its_own_for_as_long_as_its_folder_is_there() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path();
        let first = |uid: &str| {
            let pod = pod(uid, Some(false));
            Ranges::default().allocate(pods, &pod).unwrap();
            let users = of(&pod, &pods.join(uid));
            assert_eq!(users.mode(), NamespaceMode::Pod);
            assert_eq!(users.uids, users.gids);
            (users.uids[0].host_id, users.uids[0].length)
        };
        assert_eq!(first("a"), (65536, 65536));
        assert_eq!(first("b"), (131_072, 65536));
        assert_eq!(first("a"), (65536, 65536), "what is written down stays");
        let written = fs::read_to_string(pods.join("a/userns")).unwrap();
        let range = r#"[{"hostId":65536,"containerId":0,"length":65536}]"#;
        let form = format!(r#"{{"uidMappings":{range},"gidMappings":{range}}}"#);
        assert_eq!(written, form);
        fs::remove_dir_all(pods.join("a")).unwrap();
        assert_eq!(first("c").0, 65536);
    }

    #[test]
    fn nobody_gets_the_nodes_users_by_mistake() {
        let root = tempfile::tempdir().unwrap();
        let shared = of(&pod("a", None), root.path());
        assert_eq!((shared.mode(), shared.uids.len()), (NamespaceMode::Node, 0));
        // Nothing was given out: the runtime is not told to take the node's.
        let own = of(&pod("b", Some(false)), root.path());
        assert_eq!((own.mode(), own.uids.len()), (NamespaceMode::Pod, 0));
        fs::create_dir(root.path().join("c")).unwrap();
        let zero = r#"[{"hostId":0,"containerId":0,"length":65536}]"#;
        let text = format!(r#"{{"uidMappings":{zero},"gidMappings":{zero}}}"#);
        fs::write(root.path().join("c/userns"), text).unwrap();
        let ranges = Ranges::default();
        assert!(
            ranges
                .allocate(root.path(), &pod("c", Some(false)))
                .is_err()
        );
    }
}
