//! Settings of the node's own interfaces: changed for as long as Windlass is on the node, and then as they were.
//!
//! What an interface of ours needs goes with the interface. An uplink stays, and so would what was written there; so each
//! value that is replaced is noted first, in a file that outlives the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::interface::{LinkError, Namespace};

const FILE: &str = "settings.json";

/// What was changed, by its path below `/proc/sys/net`.
type Changes = BTreeMap<String, Change>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    was: String,
    is: String,
}

pub struct Settings {
    file: PathBuf,
}

impl Settings {
    /// Notes what it changes in this folder.
    pub fn noted_in(folder: &Path) -> Self {
        Self {
            file: folder.join(FILE),
        }
    }

    /// Writes each value that is another one now.
    pub async fn set(
        &self,
        host: &Namespace,
        wanted: Vec<(String, impl AsRef<str> + Send + 'static)>,
    ) -> Result<(), LinkError> {
        let noted = self.changes();
        let mut changes = noted.clone();
        let paths = wanted.iter().map(|(path, _)| path.clone());
        let held = host.sysctls(paths.collect()).await?;
        let mut differ = Vec::new();
        for ((path, value), was) in wanted.into_iter().zip(held) {
            if was.as_deref() == Some(value.as_ref()) {
                continue;
            }
            if let Some(was) = was {
                let is = value.as_ref().to_owned();
                // What was there before the first change of several.
                let first = changes.remove(&path).map_or(was, |change| change.was);
                changes.insert(path.clone(), Change { was: first, is });
            }
            differ.push((path, value));
        }
        if differ.is_empty() {
            return Ok(());
        }
        // After a reboot they are to be changed again, and noted already; perhaps on a disk that is full by now.
        if changes != noted {
            self.note(&changes).map_err(|source| {
                LinkError::io(format!("writing {}", self.file.display()), source)
            })?;
        }
        host.set_sysctls(differ).await
    }

    /// Undoes it, but for what somebody else has changed since, or counts on now.
    pub async fn restore(&self, host: &Namespace) -> Result<(), LinkError> {
        let changes = self.changes();
        let paths: Vec<String> = changes.keys().cloned().collect();
        let of_all = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(str::to_owned);
        let is_on = |value: &Option<String>| value.as_deref() == Some("1");
        let routes: Vec<bool> = host
            .sysctls(of_all.into())
            .await?
            .iter()
            .map(is_on)
            .collect();
        let held = host.sysctls(paths).await?;
        let mut back = Vec::new();
        for ((path, change), held) in changes.into_iter().zip(held) {
            // Of a node that forwards on all interfaces by now, this one is not the exception.
            let is_needed = of_routers(&path).is_some_and(|family| routes[family]);
            if held.as_ref() == Some(&change.is) && !is_needed {
                back.push((path, change.was));
            }
        }
        if !back.is_empty() {
            tracing::info!(settings = ?back, "settings of the node's interfaces are as they were");
            host.set_sysctls(back).await?;
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LinkError::io(
                format!("removing {}", self.file.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// A file that cannot be understood says nothing.
    fn changes(&self) -> Changes {
        let text = fs::read(&self.file).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn note(&self, changes: &Changes) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(changes)?)?;
        fs::rename(new, &self.file)
    }
}

/// Of which family (0: IPv4, 1: IPv6) a setting is that a node which forwards everywhere cannot do without.
fn of_routers(path: &str) -> Option<usize> {
    let (family, setting) = (path.split('/').next()?, path.rsplit('/').next()?);
    match (family, setting) {
        ("ipv4", "forwarding") => Some(0),
        ("ipv6", "forwarding" | "accept_ra") => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_forwarding_needs_stays_where_all_is_forwarded() {
        for (path, family) in [
            ("ipv4/conf/eth0/forwarding", Some(0)),
            ("ipv4/conf/eth0/rp_filter", None),
            ("ipv6/conf/eth0/accept_ra", Some(1)),
            ("ipv6/conf/all/forwarding", Some(1)),
            ("ipv6/conf/eth0/force_forwarding", None),
        ] {
            assert_eq!(of_routers(path), family, "{path}");
        }
    }
}
