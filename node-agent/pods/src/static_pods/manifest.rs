//! From a file to a pod: what the API server would have done with it is done here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use windlass_api::resource::Strategy;
use windlass_machinery::validation::Errors;
use windlass_machinery::{json, yaml};

use crate::labels;

/// A file as it was when it was read.
type Seen = (SystemTime, u64);

/// A folder of manifests, and what is known of its files.
pub(super) struct Folder {
    node: String,
    /// Whether the folder was never looked at.
    fresh: bool,
    files: BTreeMap<String, (Seen, Option<Pod>)>,
}

impl Folder {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            fresh: true,
            files: BTreeMap::new(),
        }
    }

    /// The pods of all readable manifests, at first and when anything changed. A broken
    /// manifest is reported once and otherwise ignored.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Option<Vec<Pod>>> {
        let mut files = BTreeMap::new();
        let mut changed = std::mem::take(&mut self.fresh);
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = fs::metadata(entry.path()) else {
                continue;
            };
            // Editors and volumes keep their own files under such names.
            if name.starts_with('.') || !metadata.is_file() {
                continue;
            }
            let seen = (metadata.modified()?, metadata.len());
            let known = self.files.remove(&name).filter(|(known, _)| *known == seen);
            let pod = match known {
                Some((_, pod)) => pod,
                None => {
                    changed = true;
                    let read = fs::read(entry.path()).map_err(|error| error.to_string());
                    let parsed = read.and_then(|bytes| parse(&bytes, &self.node));
                    parsed
                        .inspect_err(|error| {
                            tracing::warn!(path = %entry.path().display(), error, "manifest ignored");
                        })
                        .ok()
                }
            };
            files.insert(name, (seen, pod));
        }
        changed |= !self.files.is_empty();
        self.files = files;
        let pods = self.files.values().filter_map(|(_, pod)| pod.clone());
        Ok(changed.then(|| pods.collect()))
    }
}

/// The pod of a manifest as it runs on `node`.
fn parse(bytes: &[u8], node: &str) -> Result<Pod, String> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let decoded = match first {
        Some(b'{') => json::decode(bytes),
        _ => yaml::decode(bytes),
    };
    let mut object = decoded.map_err(|error| error.to_string())?.value;
    if object["kind"] != "Pod" || object["apiVersion"] != "v1" {
        return Err("only Pods of v1 can be static".to_owned());
    }
    let strategy = strategy()?;
    strategy.default(&mut object);
    let mut errors = Errors::new();
    strategy.validate(&object, None, &mut errors);
    if !errors.is_empty() {
        return Err(errors.to_string());
    }
    let mut pod: Pod = serde_json::from_value(object).map_err(|error| error.to_string())?;
    let uid = fingerprint(bytes, node);
    let metadata = &mut pod.metadata;
    let name = metadata.name.take().filter(|name| !name.is_empty());
    let name = name.ok_or("the pod has no name")?;
    metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    metadata.uid = Some(uid.clone());
    metadata.generation = Some(1);
    metadata.annotations.get_or_insert_default().extend([
        (labels::CONFIG_SOURCE.to_owned(), "file".to_owned()),
        (labels::CONFIG_HASH.to_owned(), uid),
    ]);
    pod.status = None;
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    // Nobody but the file's owner takes it away.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    Ok(pod)
}

fn strategy() -> Result<Arc<dyn Strategy>, String> {
    static POD: OnceLock<Option<Arc<dyn Strategy>>> = OnceLock::new();
    let found = POD.get_or_init(|| {
        let mut kinds = windlass_api::registry::builtin().into_iter();
        let pods = kinds.find(|kind| kind.group.is_empty() && kind.kind == "Pod");
        pods.map(|kind| kind.strategy)
    });
    found
        .clone()
        .ok_or_else(|| "the kind Pod has no rules".to_owned())
}

/// The uid of a static pod: the same manifest is the same pod, on this node and after a restart.
fn fingerprint(bytes: &[u8], node: &str) -> String {
    // FNV-1a twice, from two starting points: stable over releases, and not a secret.
    let hash = |start: u64| {
        let all = node.bytes().chain([0]).chain(bytes.iter().copied());
        all.fold(start, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    format!(
        "{:016x}{:016x}",
        hash(0xcbf2_9ce4_8422_2325),
        hash(0x6c62_272e_07bb_0142)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  \
                            - name: c\n    image: img:1\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = parse(MANIFEST.as_bytes(), "N1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert!(crate::model::is_static(&pod));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("N1"));
        assert_eq!(
            spec.restart_policy.as_deref(),
            Some("Always"),
            "defaults are there"
        );
        let again = parse(MANIFEST.as_bytes(), "N1").unwrap();
        assert_eq!(again.metadata.uid, pod.metadata.uid);
        let other = parse(MANIFEST.replace("img:1", "img:2").as_bytes(), "N1").unwrap();
        assert_ne!(other.metadata.uid, pod.metadata.uid);
        assert!(parse(b"kind: Service\napiVersion: v1", "n").is_err());
        assert!(
            parse(
                b"kind: Pod\napiVersion: v1\nmetadata: {name: x}\nspec: {}",
                "n"
            )
            .is_err()
        );
    }

    #[test]
    fn a_folder_tells_only_what_changed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        let mut folder = Folder::new("n1");
        let absent = path.join("absent");
        assert_eq!(folder.read(&absent).unwrap(), Some(vec![]));
        assert_eq!(folder.read(&absent).unwrap(), None);
        fs::write(path.join("web.yaml"), MANIFEST).unwrap();
        fs::write(path.join("broken.yaml"), "{").unwrap();
        fs::write(path.join(".swp"), MANIFEST).unwrap();
        assert_eq!(folder.read(path).unwrap().unwrap().len(), 1);
        assert_eq!(folder.read(path).unwrap(), None);
        fs::remove_file(path.join("web.yaml")).unwrap();
        assert!(folder.read(path).unwrap().unwrap().is_empty());
    }
}
