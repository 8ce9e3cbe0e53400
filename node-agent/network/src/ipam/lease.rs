//! A lease is one small file: an address belongs to an attachment as long as its file exists.
//!
//! Written before the interface is made and removed after it is gone, so that no crash in between gives an
//! address to two pods. It survives the agent; it need not survive power loss, which no pod does either,
//! so nothing is synced.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::interface::Bandwidth;

/// One interface of one sandbox, as CNI names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    pub container_id: String,
    /// The interface's name inside the pod.
    pub interface: String,
}

/// The pod that an interface is for; empty where the runtime does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A port of the pod that answers on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// None: every address of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub key: AttachmentKey,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    pub netns: PathBuf,
    pub pod: PodName,
    pub host_interface: String,
    #[serde(default)]
    pub bandwidth: Bandwidth,
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    pub(super) allocated_at: SystemTime,
    /// Set when the interface is gone; the address rests until the quarantine has passed.
    pub(super) released_at: Option<SystemTime>,
}

impl Lease {
    pub fn is_active(&self) -> bool {
        self.released_at.is_none()
    }

    pub(super) fn has_rested(&self, quarantine: Duration, now: SystemTime) -> bool {
        // A clock that was set back must not keep an address forever.
        self.released_at
            .is_some_and(|at| now.duration_since(at).is_ok_and(|age| age >= quarantine))
            || self.released_at.is_some_and(|at| at > now + quarantine)
    }
}

/// The folder that holds them.
pub(super) struct LeaseFolder(PathBuf);

impl LeaseFolder {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Reads all leases. A file that cannot be understood is set aside with a warning: it names no address
    /// that could be kept, and one bad file must not keep the node from starting.
    pub(super) fn load(&self) -> io::Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                // Left by a crash between writing and renaming: the lease was never given.
                Some("new") => {
                    fs::remove_file(&path)?;
                    continue;
                }
                _ => continue,
            }
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "an address lease is unreadable, set aside");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(leases)
    }

    pub(super) fn write(&self, lease: &Lease) -> io::Result<()> {
        let path = self.path(&lease.key);
        let new = path.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(lease)?)?;
        fs::rename(&new, &path)
    }

    pub(super) fn remove(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        // Both parts are checked when a request comes in; this keeps a mistake there from leaving the folder.
        let part = |text: &str| text.replace(['/', '\0'], "_");
        self.0.join(format!(
            "{}-{}.json",
            part(&key.container_id),
            part(&key.interface)
        ))
    }
}
