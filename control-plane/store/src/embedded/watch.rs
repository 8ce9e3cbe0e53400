//! A watch on the embedded store: a position in the history that the reader pulls forward.
//!
//! Nothing is queued for a watcher, so a slow one costs no memory and needs no cutting off: it reads on
//! from where it was, until compaction has taken that from it.

use std::sync::Arc;

use futures::{StreamExt, stream};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::memory::Memory;
use crate::{Result, Revision, StoreError, WatchBatch, WatchStream};

/// Writes looked at under one read lock.
const STEP: usize = 1_024;

pub(super) struct Watcher {
    pub(super) memory: Arc<RwLock<Memory>>,
    pub(super) progress: watch::Receiver<Revision>,
    pub(super) prefix: Arc<str>,
    pub(super) position: Revision,
}

impl Watcher {
    pub(super) fn into_stream(self) -> WatchStream {
        stream::unfold(Some(self), |watcher| async {
            let mut watcher = watcher?;
            let next = watcher.next().await;
            let go_on = next.is_ok();
            Some((next, go_on.then_some(watcher)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<WatchBatch> {
        loop {
            let goal = *self.progress.borrow_and_update();
            while self.position < goal {
                let (events, reached) =
                    self.memory
                        .read()
                        .events_after(&self.prefix, self.position, STEP)?;
                self.position = reached;
                if !events.is_empty() || reached >= goal {
                    return Ok(WatchBatch {
                        events,
                        revision: reached,
                    });
                }
                tokio::task::yield_now().await;
            }
            if self.progress.changed().await.is_err() {
                return Err(StoreError::Unavailable("the store was closed".into()));
            }
        }
    }
}
