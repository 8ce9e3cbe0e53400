//! A watch on etcd, in the trait's terms.
//!
//! It watches every key there is, and leaves out what lies outside of its prefix: so each write anywhere tells how
//! far the watch has come. etcd's own progress notifications come every ten minutes unless asked for, and before
//! 3.4.25 and 3.5.8 they could overtake the events that they vouch for (etcd-io/etcd#15220).

use std::sync::Arc;

use etcd_client::{EventType, WatchOptions, WatchResponse};
use futures::{StreamExt, stream};

use super::call::read;
use super::convert::{error, from_wire, key_value, wire};
use super::members::{LeftOut, Members};
use super::{LONGEST_MESSAGE, unexpected};
use crate::{Event, Result, Revision, StoreError, WatchBatch, WatchStream};

struct Watcher {
    /// Keeps the stream's other half open.
    stream: etcd_client::WatchStream,
    left_out: LeftOut,
    prefix: Arc<str>,
    position: Revision,
}

pub(super) async fn open(members: &Members, prefix: &str, from: Revision) -> Result<WatchStream> {
    let mut left_out = members.left_out.clone();
    left_out.mark_unchanged();
    let options = WatchOptions::new()
        // etcd's words for "from the first key to the end".
        .with_range([0])
        .with_start_revision(wire(from.next())?)
        .with_prev_key()
        // Otherwise the answer to a watch from far back is one message, of any size.
        .with_fragment();
    // Known from here on: the watch exists, or why not.
    let (stream, created) = ask(members, options).await?;
    if let Some(response) = &created {
        check(response, from)?;
    }
    let watcher = Watcher {
        stream,
        left_out,
        prefix: prefix.into(),
        position: from,
    };
    let batches = stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        let next = watcher.next().await;
        let go_on = next.is_ok();
        Some((next, go_on.then_some(watcher)))
    });
    Ok(batches.boxed())
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchBatch> {
        loop {
            let response = tokio::select! {
                response = self.stream.message() => response.map_err(error)?,
                Ok(()) = self.left_out.changed() => None,
            };
            let Some(response) = response else {
                return Err(StoreError::Unavailable("etcd ended a watch".into()));
            };
            check(&response, self.position)?;
            let Some(last) = response.events().last().and_then(|event| event.kv()) else {
                continue;
            };
            // The header holds the store's revision and not how far this watch has come.
            self.position = from_wire(last.mod_revision());
            let prefix = self.prefix.as_bytes();
            let ours = response
                .events()
                .iter()
                .filter(|event| event.kv().is_none_or(|kv| kv.key().starts_with(prefix)));
            let events: Result<Vec<Event>> = ours.map(event).collect();
            return Ok(WatchBatch {
                events: events?,
                revision: self.position,
            });
        }
    }
}

/// Watches, from the first key on, whatever the options say. What comes first is about the watch's making.
async fn ask(
    members: &Members,
    options: WatchOptions,
) -> Result<(etcd_client::WatchStream, Option<WatchResponse>)> {
    let client = members.client.watch_client();
    let client = client.max_decoding_message_size(LONGEST_MESSAGE);
    let made = read(&members.left_out, || {
        let (mut client, options) = (client.clone(), options.clone());
        async move {
            let mut stream = client.watch([0], Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        }
    });
    made.await.map_err(error)
}

fn check(response: &WatchResponse, position: Revision) -> Result<()> {
    if response.compact_revision() > 0 {
        let compacted = from_wire(response.compact_revision());
        return Err(StoreError::Compacted {
            requested: position,
            compacted,
        });
    }
    if response.canceled() {
        let reason = response.cancel_reason();
        return Err(StoreError::Unavailable(format!(
            "etcd ended a watch: {reason}"
        )));
    }
    Ok(())
}

fn event(event: &etcd_client::Event) -> Result<Event> {
    let kv = event
        .kv()
        .ok_or_else(|| unexpected("an event without a key"))?;
    let prev = event.prev_kv().map(key_value).transpose()?;
    match event.event_type() {
        EventType::Put => Ok(Event::Put {
            kv: key_value(kv)?,
            prev,
        }),
        EventType::Delete => {
            let revision = from_wire(kv.mod_revision());
            // etcd leaves it out when it has been compacted meanwhile: what was deleted is then unknown.
            let prev = prev.ok_or(StoreError::Compacted {
                requested: revision,
                compacted: revision,
            })?;
            Ok(Event::Delete { revision, prev })
        }
    }
}

/// The revision at which the kept history begins; etcd tells it only to a watch that asks for earlier ones.
pub(super) async fn compacted_at(members: &Members, requested: Revision) -> StoreError {
    let asked = async {
        let options = WatchOptions::new().with_start_revision(wire(requested)?.max(1));
        // An answer about compaction follows the one about the watch's making at once, or there is none.
        let (mut stream, created) = ask(members, options).await?;
        if let Some(response) = &created {
            check(response, requested)?;
        }
        let soon = std::time::Duration::from_millis(300);
        if let Ok(Ok(Some(response))) = tokio::time::timeout(soon, stream.message()).await {
            check(&response, requested)?;
        }
        Ok(())
    };
    match asked.await {
        Err(error @ (StoreError::Compacted { .. } | StoreError::Unavailable(_))) => error,
        // It was refused all the same.
        _ => StoreError::Compacted {
            requested,
            compacted: requested.next(),
        },
    }
}
