//! Unmounting, by what stands on the disk: the pod's mount first, and what was prepared for the node once no pod
//! uses it any more.

use std::fs;
use std::path::{Path, PathBuf};

use super::record::{Record, Use, absent};
use super::{Csi, is_mounted, unique_name};
use crate::error::io_error;
use crate::{Result, mounts};

impl Csi {
    /// Takes down what drivers mounted for the pod with this folder. A driver that is not there holds this up: only it
    /// knows how its volumes end well.
    pub(crate) async fn take_down(&self, pod: &Path) -> Result<()> {
        for found in self.uses_of(pod) {
            let record = &found.record;
            let _turn = self.turn(&record.driver_name, &record.volume_handle).await;
            self.unpublish(&found).await?;
            if found.is_persistent() {
                let records = match found.place.block {
                    true => found.place.records.clone(),
                    false => parent(&found.place.staging),
                };
                self.unstage_unused(record, &found.place.staging, &records)
                    .await?;
            }
        }
        Ok(())
    }

    /// Takes down what is prepared for the node and used by no pod: an agent may have died between the two.
    pub async fn sweep(&self) -> Result<()> {
        for (record, records) in self.staged() {
            let devices = self.plugin_folder().join("volumeDevices");
            let staging = match records.starts_with(&devices) {
                true => devices.join("staging").join(&record.spec_vol_id),
                false => records.join("globalmount"),
            };
            let _turn = self.turn(&record.driver_name, &record.volume_handle).await;
            self.unstage_unused(&record, &staging, &records).await?;
        }
        Ok(())
    }

    async fn unpublish(&self, found: &Use) -> Result<()> {
        let (record, place) = (&found.record, &found.place);
        if !self.untouched.lock().contains(&place.target) {
            let driver = self.driver(&record.driver_name).await?;
            driver
                .unpublish(&record.volume_handle, &place.target)
                .await?;
        }
        self.mounted.lock().remove(&place.target);
        clear(&place.target)?;
        match place.block {
            true => {
                absent(fs::remove_file(&place.mark)).map_err(io_error("remove", &place.mark))?
            }
            false => Record::remove(&place.records)?,
        }
        self.untouched.lock().remove(&place.target);
        Ok(())
    }

    async fn unstage_unused(&self, record: &Record, staging: &Path, records: &Path) -> Result<()> {
        if self.all_uses().iter().any(|other| other.is_of(record)) {
            return Ok(());
        }
        if staging.exists() && !self.untouched.lock().contains(staging) {
            let driver = self.driver(&record.driver_name).await?;
            driver.unstage(&record.volume_handle, staging).await?;
        }
        self.mounted.lock().remove(staging);
        clear(staging)?;
        Record::remove(records)?;
        if records.file_name().is_some_and(|name| name == "data") {
            let folder = parent(records);
            absent(fs::remove_dir(&folder)).map_err(io_error("remove", &folder))?;
        }
        self.untouched.lock().remove(staging);
        let name = unique_name(&record.driver_name, &record.volume_handle);
        self.in_use.send_if_modified(|all| all.remove(&name));
        Ok(())
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

/// Removes a mount point: an empty folder or a file. Never what is in a volume.
fn clear(path: &Path) -> Result<()> {
    while is_mounted(path)? {
        mounts::unmount(path)?;
    }
    let Ok(metadata) = path.symlink_metadata() else {
        return Ok(());
    };
    let removed = match metadata.is_dir() {
        true => fs::remove_dir(path),
        false => fs::remove_file(path),
    };
    absent(removed).map_err(io_error("remove", path))
}
