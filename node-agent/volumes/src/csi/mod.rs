//! Volumes of CSI drivers: storage that somebody else's program on this node knows how to mount.
//!
//! What is mounted for whom stands on the disk, at the places where the kubelet keeps it: each use of a volume has a
//! folder with a `vol_data.json` ([`record`]), written before the driver is asked for anything and removed after the
//! driver has undone everything. So an agent that was killed in the middle finds what it was about, and memory holds
//! only what may be lost: which drivers are there, and what need not be asked again.

mod client;
mod cluster;
mod expand;
mod publish;
mod record;
mod take_down;
mod usage;
mod volume;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Error, Result};

pub use client::{Driver, NodeInfo, connect, explain};
pub(crate) use expand::Growth;
pub(crate) use publish::set_up;
pub(crate) use volume::CsiVolume;

/// A driver whose pod is just starting is waited for this long, before the start is tried again later.
const REGISTRATION: Duration = Duration::from_secs(3);
/// How long the Node's status may take to tell that a volume is in use.
const TELLING: Duration = Duration::from_secs(5);

/// The CSI drivers of this node and what is mounted by them.
pub struct Csi {
    /// The kubelet's folder: `pods/` and `plugins/` lie in it.
    root: PathBuf,
    node_name: String,
    drivers: watch::Sender<HashMap<String, Driver>>,
    /// One thing at a time is done with a volume.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Staging folders and targets for which the driver said that they are mounted, since the agent runs.
    mounted: Mutex<HashSet<PathBuf>>,
    /// ... and where it surely did nothing: it was not asked yet, or refused for good.
    untouched: Mutex<HashSet<PathBuf>>,
    in_use: watch::Sender<BTreeSet<String>>,
    told: watch::Sender<BTreeSet<String>>,
}

impl Csi {
    /// Finds what an earlier agent left mounted below `root`.
    pub fn new(root: PathBuf, node_name: String) -> Self {
        let csi = Self {
            root,
            node_name,
            drivers: watch::Sender::default(),
            turns: Mutex::default(),
            mounted: Mutex::default(),
            untouched: Mutex::default(),
            in_use: watch::Sender::default(),
            told: watch::Sender::default(),
        };
        let left = csi.recorded_in_use();
        csi.in_use.send_replace(left);
        csi
    }

    /// A driver is there, or is there again.
    pub fn register(&self, driver: Driver) {
        // What another process of the driver mounted is asked for again: that is harmless, and it may know nothing of it.
        self.mounted.lock().clear();
        self.drivers.send_modify(|drivers| {
            drivers.insert(driver.name().to_owned(), driver);
        });
    }

    /// A driver went.
    pub fn deregister(&self, name: &str) {
        self.drivers.send_modify(|drivers| {
            drivers.remove(name);
        });
    }

    /// The attachable volumes that may be mounted here, as a Node's status names them.
    pub fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.in_use.subscribe()
    }

    /// The Node's status tells of these by now.
    pub fn told(&self, volumes: BTreeSet<String>) {
        self.told.send_replace(volumes);
    }

    pub(crate) async fn driver(&self, name: &str) -> Result<Driver> {
        let mut drivers = self.drivers.subscribe();
        let there = drivers.wait_for(|drivers| drivers.contains_key(name));
        let found = match tokio::time::timeout(REGISTRATION, there).await {
            Ok(Ok(drivers)) => drivers.get(name).cloned(),
            _ => None,
        };
        found.ok_or_else(|| {
            Error::Field(format!(
                "driver name {name} not found in the list of registered CSI drivers"
            ))
        })
    }

    /// The turn to do something with a volume; the next one comes when it is dropped.
    async fn turn(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns
                .entry(format!("{driver}^{handle}"))
                .or_default()
                .clone()
        };
        turn.lock_owned().await
    }

    /// Says that a volume is about to be mounted, and waits until the cluster was told: whoever detaches volumes must
    /// know it first.
    async fn announce(&self, volume: &str) -> Result<()> {
        self.in_use
            .send_if_modified(|all| all.insert(volume.to_owned()));
        let mut told = self.told.subscribe();
        let known = told.wait_for(|told| told.contains(volume));
        match tokio::time::timeout(TELLING, known).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::Cluster(format!(
                "the node's status does not tell yet that volume {volume} is in use"
            ))),
        }
    }

    fn plugin_folder(&self) -> PathBuf {
        self.root.join("plugins/kubernetes.io/csi")
    }

    fn pods_folder(&self) -> PathBuf {
        self.root.join("pods")
    }
}

/// As a Node's status names a volume.
pub(crate) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Lower-case hexadecimal SHA-256, as the names of folders and attachments have it.
fn digest(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether `path` is a folder or file that may be removed as it is: nothing is mounted on it.
fn is_mounted(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Err(_) => Ok(false),
        Ok(_) => Ok(!crate::mounts::mounted_below(path)?.is_empty()),
    }
}
