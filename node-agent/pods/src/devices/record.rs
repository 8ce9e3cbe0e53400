//! What drivers were asked to make ready for a pod, in the pod's folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windlass_proto::dra::Claim;

const FILE: &str = "claims.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    driver: String,
    namespace: String,
    name: String,
    uid: String,
}

impl Record {
    pub(super) fn load(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        let bytes = fs::read(&path).ok()?;
        let read = serde_json::from_slice(&bytes);
        read.inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "unreadable record of claims");
        })
        .ok()
    }

    /// Adds a claim that a driver is about to be asked for.
    pub(super) fn note(folder: &Path, driver: &str, claim: &Claim) -> Result<(), String> {
        let mut record = Self::load(folder).unwrap_or_default();
        if record.names(driver, &claim.uid) {
            return Ok(());
        }
        record.0.push(Entry {
            driver: driver.to_owned(),
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            uid: claim.uid.clone(),
        });
        let write = || {
            fs::create_dir_all(folder)?;
            let (new, path) = (folder.join(".claims.new"), folder.join(FILE));
            fs::write(&new, serde_json::to_vec(&record)?)?;
            fs::rename(new, path)
        };
        write().map_err(|error: std::io::Error| {
            format!("write down claims in {}: {error}", folder.display())
        })
    }

    pub(super) fn remove(folder: &Path) -> Result<(), String> {
        match fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("forget claims in {}: {error}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn names(&self, driver: &str, uid: &str) -> bool {
        let mut entries = self.0.iter();
        entries.any(|entry| entry.driver == driver && entry.uid == uid)
    }

    /// The claims with their drivers.
    pub(super) fn claims(&self) -> Vec<(String, Claim)> {
        let claims = self.0.iter().map(|entry| {
            let claim = Claim {
                namespace: entry.namespace.clone(),
                uid: entry.uid.clone(),
                name: entry.name.clone(),
            };
            (entry.driver.clone(), claim)
        });
        claims.collect()
    }

    /// What other pods' folders tell.
    pub(super) fn others(pods: &Path, uid: &str) -> impl Iterator<Item = Self> {
        let entries = fs::read_dir(pods).into_iter().flatten().flatten();
        let folders: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_str() != Some(uid))
            .map(|entry| entry.path())
            .collect();
        folders.into_iter().filter_map(|folder| Self::load(&folder))
    }
}
