//! The tasks that are the agent: they run side by side until it stops, and one that ends before ends the agent.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::anyhow;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long they may take to end before the process does.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(crate) struct Tasks {
    running: JoinSet<anyhow::Result<()>>,
    /// What each does, for whoever reads that it ended.
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// Cancelled when the agent stops.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts what is dropped where it stands when the agent stops.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_fallible(name, async move {
            work.await;
            Ok(())
        });
    }

    /// The same for what may fail, with which the agent fails.
    pub(crate) fn spawn_fallible(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let stop = self.stop();
        self.spawn_stopping(name, async move {
            stop.run_until_cancelled(work).await.unwrap_or(Ok(()))
        });
    }

    /// Starts what sees by itself that the agent stops, because it has something left to do then.
    pub(crate) fn spawn_stopping(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.running.spawn(work).id();
        self.names.insert(id, name);
    }

    /// Why the first one has ended, which none should.
    pub(crate) async fn first_end(&mut self) -> anyhow::Error {
        let Some(ended) = self.running.join_next_with_id().await else {
            return anyhow!("no role is chosen");
        };
        let name = |id| self.names.get(&id).copied().unwrap_or_default();
        match ended {
            Ok((id, Ok(()))) => anyhow!("{}: ended by itself", name(id)),
            Ok((id, Err(error))) => error.context(name(id)),
            Err(error) => {
                let name = name(error.id());
                anyhow::Error::new(error).context(name)
            }
        }
    }

    /// Tells them to stop, and waits for those that have something left to do.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        let ended = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, ended).await.is_err() {
            tracing::warn!("some parts did not end in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn who_ends_is_named_with_the_cause() {
        let mut tasks = Tasks::default();
        tasks.spawn("policies", std::future::pending());
        tasks.spawn("routes", async {});
        let said = |error: anyhow::Error| format!("{error:#}");
        assert_eq!(said(tasks.first_end().await), "routes: ended by itself");
        tasks.spawn_fallible("the lease", async { Err(anyhow!("no such node")) });
        assert_eq!(said(tasks.first_end().await), "the lease: no such node");
        tasks.spawn("flows", async { panic!("a flaw") });
        let panicked = said(tasks.first_end().await);
        assert!(
            panicked.starts_with("flows: ") && panicked.contains("panicked"),
            "{panicked}"
        );
    }

    #[tokio::test]
    async fn what_has_something_left_to_do_is_waited_for() {
        let mut tasks = Tasks::default();
        let (stop, said) = (tasks.stop(), Arc::new(AtomicBool::new(false)));
        let farewell = said.clone();
        tasks.spawn_stopping("the announcer", async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            farewell.store(true, Ordering::Relaxed);
            Ok(())
        });
        tasks.spawn("never ends", std::future::pending());
        tasks.end().await;
        assert!(said.load(Ordering::Relaxed));
    }
}
