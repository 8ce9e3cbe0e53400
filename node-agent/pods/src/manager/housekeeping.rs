//! What the manager does every few seconds: leftovers, logs, room.

use super::{Manager, PodView, kick};
use crate::eviction;
use crate::worker::Kick;

impl Manager {
    pub(super) async fn keep_house(&mut self) {
        if self.synced {
            self.remove_unwanted().await;
        }
        self.sweep_volumes();
        self.tend_mirrors();
        self.rotate_logs().await;
        self.relieve().await;
    }

    /// Makes room where the node is short of it.
    async fn relieve(&mut self) {
        let views: Vec<PodView> = self.views.pods.read().values().cloned().collect();
        let found = eviction::look(&self.node, &views).await;
        self.images.tidy(&self.node, found.disk_is_short).await;
        for (uid, verdict) in found.evictions {
            tracing::warn!(uid, verdict.message, "pod evicted");
            if let Some(handle) = self.handles.get(&uid) {
                let verdict = Some(verdict);
                kick(
                    handle,
                    Kick {
                        exited: None,
                        verdict,
                    },
                );
            }
        }
    }

    async fn rotate_logs(&self) {
        let config = &self.node.config;
        let views: Vec<PodView> = self.views.pods.read().values().cloned().collect();
        for view in views {
            for container in view.snapshot.containers.iter().filter(|it| it.is_running()) {
                let rotated = crate::logs::rotate(
                    &self.node.runtime,
                    &container.id,
                    container.log_path.as_ref(),
                    config.log_max_bytes,
                    config.log_max_files,
                );
                if let Err(error) = rotated.await
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = container.log_path, %error, "log not rotated");
                }
            }
        }
    }
}
