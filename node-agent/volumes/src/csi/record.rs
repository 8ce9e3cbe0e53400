//! What stands on the disk of each use of a volume, where and as the kubelet writes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Csi, digest, unique_name};
use crate::Result;
use crate::error::io_error;

const FILE: &str = "vol_data.json";
const FOLDER_MODE: u32 = 0o750;

/// The file beside a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    #[serde(rename = "specVolID")]
    pub(super) spec_vol_id: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) node_name: String,
    /// Empty for volumes that nobody attaches.
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub(super) attachment_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) volume_lifecycle_mode: String,
}

/// Where a volume is for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the driver shows it.
    pub(super) target: PathBuf,
    /// Where the driver prepares it.
    pub(super) staging: PathBuf,
    /// The folder with the file.
    pub(super) records: PathBuf,
    /// What in the pod's folder says that the pod uses it.
    pub(super) mark: PathBuf,
    pub(super) block: bool,
}

/// A use that the disk tells of.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub(super) record: Record,
    pub(super) place: Place,
}

impl Record {
    pub(super) fn load(folder: &Path) -> Option<Self> {
        let bytes = fs::read(folder.join(FILE)).ok()?;
        let read = serde_json::from_slice(&bytes);
        read.inspect_err(|error| {
            tracing::warn!(folder = %folder.display(), %error, "unreadable record of a volume");
        })
        .ok()
    }

    /// Writes it, whole or not at all.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        let (new, path) = (folder.join(".vol_data.new"), folder.join(FILE));
        fs::write(&new, bytes).map_err(io_error("write", &new))?;
        fs::rename(&new, &path).map_err(io_error("write", &path))
    }

    pub(super) fn remove(folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        absent(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
        absent(fs::remove_dir(folder)).map_err(io_error("remove", folder))
    }
}

impl Use {
    pub(super) fn is_persistent(&self) -> bool {
        self.record.volume_lifecycle_mode != "Ephemeral"
    }

    pub(super) fn is_of(&self, record: &Record) -> bool {
        self.record.driver_name == record.driver_name
            && self.record.volume_handle == record.volume_handle
    }
}

pub(super) fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE);
    builder.create(folder).map_err(io_error("create", folder))
}

/// What is not there needs no removing.
pub(super) fn absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Csi {
    /// The places of a volume for the pod with this folder; `name` is the PersistentVolume's or, of an inline volume,
    /// its own.
    pub(super) fn place(&self, pod: &Path, name: &str, record: &Record, block: bool) -> Place {
        let plugin = self.plugin_folder();
        if !block {
            let records = pod.join("volumes/kubernetes.io~csi").join(name);
            return Place {
                target: records.join("mount"),
                staging: plugin
                    .join(&record.driver_name)
                    .join(digest(&record.volume_handle))
                    .join("globalmount"),
                mark: records.clone(),
                records,
                block,
            };
        }
        let devices = plugin.join("volumeDevices");
        let uid = pod.file_name().unwrap_or_default();
        Place {
            target: devices.join("publish").join(name).join(uid),
            staging: devices.join("staging").join(name),
            records: devices.join(name).join("data"),
            mark: pod.join("volumeDevices/kubernetes.io~csi").join(name),
            block,
        }
    }

    /// What a pod uses, as far as its folder tells.
    pub(super) fn uses_of(&self, pod: &Path) -> Vec<Use> {
        let mounts = names(&pod.join("volumes/kubernetes.io~csi")).into_iter();
        let devices = names(&pod.join("volumeDevices/kubernetes.io~csi")).into_iter();
        let all = mounts
            .map(|name| (name, false))
            .chain(devices.map(|name| (name, true)));
        all.filter_map(|(name, block)| {
            let records = self.place(pod, &name, &Record::default(), block).records;
            let record = Record::load(&records)?;
            let place = self.place(pod, &name, &record, block);
            Some(Use { record, place })
        })
        .collect()
    }

    /// What all pods use.
    pub(super) fn all_uses(&self) -> Vec<Use> {
        let pods = self.pods_folder();
        let uids = names(&pods).into_iter();
        uids.flat_map(|uid| self.uses_of(&pods.join(uid))).collect()
    }

    /// The volumes that are prepared for the node, with the folder of the file.
    pub(super) fn staged(&self) -> Vec<(Record, PathBuf)> {
        let plugin = self.plugin_folder();
        let drivers = names(&plugin).into_iter();
        let drivers = drivers.filter(|name| name != "volumeDevices");
        let mounts = drivers.flat_map(|driver| {
            let folder = plugin.join(driver);
            let volumes = names(&folder).into_iter();
            volumes
                .map(|volume| folder.join(volume))
                .collect::<Vec<_>>()
        });
        let devices = plugin.join("volumeDevices");
        let blocks = names(&devices).into_iter();
        let blocks = blocks
            .filter(|name| name != "publish" && name != "staging")
            .map(|name| devices.join(name).join("data"));
        mounts
            .chain(blocks)
            .filter_map(|folder| Some((Record::load(&folder)?, folder)))
            .collect()
    }

    pub(super) fn recorded_in_use(&self) -> BTreeSet<String> {
        let uses = self.all_uses().into_iter().map(|found| found.record);
        uses.chain(self.staged().into_iter().map(|(record, _)| record))
            .filter(|record| !record.attachment_id.is_empty())
            .map(|record| unique_name(&record.driver_name, &record.volume_handle))
            .collect()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_found_on_the_disk_under_the_kubelets_names() {
        let root = tempfile::tempdir().unwrap();
        let csi = Csi::new(root.path().to_owned(), "n1".into());
        let pod = root.path().join("pods/uid-1");
        let record = Record {
            spec_vol_id: "pv-1".into(),
            volume_handle: "h/1".into(),
            driver_name: "d.example".into(),
            node_name: "n1".into(),
            attachment_id: "csi-abc".into(),
            volume_lifecycle_mode: "Persistent".into(),
        };
        let place = csi.place(&pod, "pv-1", &record, false);
        record.save(&place.records).unwrap();
        let text =
            fs::read_to_string(pod.join("volumes/kubernetes.io~csi/pv-1/vol_data.json")).unwrap();
        assert!(text.contains(r#""specVolID":"pv-1""#) && text.contains(r#""attachmentID""#));
        assert!(place.target.ends_with("kubernetes.io~csi/pv-1/mount"));
        assert!(place.staging.to_string_lossy().contains("csi/d.example/"));

        let block = csi.place(&pod, "pv-2", &record, true);
        record.save(&block.records).unwrap();
        fs::create_dir_all(block.mark.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&block.target, &block.mark).unwrap();
        assert!(block.target.ends_with("volumeDevices/publish/pv-2/uid-1"));

        let found: Vec<Place> = csi.all_uses().into_iter().map(|it| it.place).collect();
        assert_eq!(found, [place.clone(), block]);
        let again = Csi::new(root.path().to_owned(), "n1".into());
        let in_use = again.in_use().borrow().clone();
        assert_eq!(
            in_use.into_iter().collect::<Vec<_>>(),
            ["kubernetes.io/csi/d.example^h/1"]
        );
        Record::remove(&place.records).unwrap();
        assert!(!place.records.exists());
        Record::remove(&place.records).unwrap();
    }
}
