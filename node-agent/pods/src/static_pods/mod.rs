//! Static pods: what runs on the node because a file there says so, with or without an API
//! server. The files are the truth; the API only shows them, as mirror pods.

mod manifest;
mod mirror;

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

pub(crate) use mirror::{Chores, Key, Mirror, key, mirrored};

use manifest::Folder;

/// How often the folder is looked at: only names, times and sizes, so it costs nothing.
const LOOK: Duration = Duration::from_secs(1);

/// Tells the pods of all manifests whenever they change, at first at once; never if there is no
/// folder to look at.
pub(crate) fn watch(folder: Option<PathBuf>, node: &str) -> mpsc::Receiver<Vec<Pod>> {
    let (tell, told) = mpsc::channel(1);
    let Some(path) = folder else {
        return told;
    };
    let mut folder = Folder::new(node);
    tokio::spawn(async move {
        let mut failing = false;
        loop {
            match folder.read(&path) {
                Ok(Some(pods)) => {
                    failing = false;
                    if tell.send(pods).await.is_err() {
                        return;
                    }
                }
                Ok(None) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(path = %path.display(), %error, "manifests not readable");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = tell.closed() => return,
            }
        }
    });
    told
}
