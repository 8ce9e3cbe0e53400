//! Plugins of the node, as a kubelet takes them: each puts a socket into the registry folder, is asked there who it is,
//! and counts for as long as the socket is there. Drivers of volumes (CSI) and of devices (DRA) are taken.

mod csi_node;
mod in_use;
mod registration;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::node::Node;
use csi_node::CsiNode;
use registration::{Kind, Plugin};

/// How often the folder is looked at: only names and times, so it costs nothing.
const LOOK: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// A socket as it was when it was seen: a plugin that restarts makes another one under the same name.
type Seen = (u64, i64, i64);

#[derive(Default)]
struct Known {
    seen: Seen,
    /// What it stands for, once it was taken.
    plugin: Option<Plugin>,
    /// When it is asked again, and how long to wait after that.
    retry: Option<(Instant, Duration)>,
}

/// Takes plugins as they come and go, and tells the cluster of them and of their volumes.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let telling = in_use::tell(node.clone());
    let taking = take(node);
    tokio::select! {
        () = stop.cancelled() => {}
        () = telling => {}
        () = taking => {}
    }
}

async fn take(node: Arc<Node>) {
    let csi_node = CsiNode::new(node.clone());
    csi_node.make().await;
    let registry = node.config.registry();
    if let Err(error) = fs::create_dir_all(&registry) {
        tracing::warn!(path = %registry.display(), %error, "no folder for plugins");
    }
    let mut known: HashMap<PathBuf, Known> = HashMap::new();
    let mut looking = tokio::time::interval(LOOK);
    looking.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looking.tick().await;
        let mut found = BTreeMap::new();
        sockets(&registry, &mut found);
        let gone: Vec<PathBuf> = known
            .keys()
            .filter(|path| !found.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            let plugin = known.remove(&path).and_then(|known| known.plugin);
            if let Some(plugin) = plugin.filter(|plugin| !is_known(&known, plugin)) {
                tracing::info!(kind = ?plugin.kind, name = plugin.name, "plugin is gone");
                match plugin.kind {
                    Kind::Csi => {
                        node.csi.deregister(&plugin.name);
                        csi_node.remove(&plugin.name).await;
                    }
                    Kind::Dra => node.devices.deregister(&plugin.name),
                }
            }
        }
        for (path, seen) in found {
            let entry = known.entry(path.clone()).or_default();
            let due = entry.retry.is_some_and(|(at, _)| at <= Instant::now());
            if entry.seen == seen && !due {
                continue;
            }
            entry.seen = seen;
            match registration::register(&path, &node, &csi_node).await {
                Ok(plugin) => {
                    let (kind, name) = (plugin.kind, &plugin.name);
                    tracing::info!(?kind, name, socket = %path.display(), "plugin registered");
                    entry.plugin = Some(plugin);
                    entry.retry = None;
                }
                Err(error) => {
                    let wait = entry.retry.map_or(RETRY_FIRST, |(_, wait)| wait);
                    tracing::warn!(socket = %path.display(), %error, "plugin not registered");
                    entry.retry = Some((Instant::now() + wait, (wait * 2).min(RETRY_MOST)));
                }
            }
        }
    }
}

fn is_known(known: &HashMap<PathBuf, Known>, plugin: &Plugin) -> bool {
    let mut plugins = known.values().filter_map(|known| known.plugin.as_ref());
    plugins.any(|other| other == plugin)
}

/// All sockets in a folder and those below it.
fn sockets(folder: &Path, found: &mut BTreeMap<PathBuf, Seen>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let path = entry.path();
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if hidden {
            continue;
        }
        if metadata.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sockets(&path, found);
        } else if metadata.file_type().is_socket() {
            let seen = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
            found.insert(path, seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_are_found_wherever_they_lie_and_known_again() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("deeper")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let _hidden = UnixListener::bind(root.path().join(".hidden")).unwrap();
        let first = root.path().join("a.sock");
        let listener = UnixListener::bind(&first).unwrap();
        let _other = UnixListener::bind(root.path().join("deeper/b.sock")).unwrap();
        let look = || {
            let mut found = BTreeMap::new();
            sockets(root.path(), &mut found);
            found
        };
        let before = look();
        assert_eq!(before.len(), 2);
        assert_eq!(before, look());
        drop(listener);
        fs::remove_file(&first).unwrap();
        let _again = UnixListener::bind(&first).unwrap();
        assert_ne!(before[&first], look()[&first]);
    }
}
