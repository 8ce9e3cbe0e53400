//! A watch on etcd, in the trait's terms.

use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse};
use futures::{StreamExt, stream};

use super::convert::{error, from_wire, key_value, wire};
use super::{LONGEST_MESSAGE, prefix_end, unexpected, within};
use crate::{Event, Result, Revision, StoreError, WatchBatch, WatchStream};

struct Watcher {
    /// Keeps the stream's other half open.
    stream: etcd_client::WatchStream,
    position: Revision,
    honest_progress: bool,
}

pub(super) async fn open(
    client: WatchClient,
    prefix: &str,
    from: Revision,
    honest_progress: bool,
) -> Result<WatchStream> {
    let options = WatchOptions::new()
        .with_range(prefix_end(prefix))
        .with_start_revision(wire(from.next())?)
        .with_prev_key()
        .with_progress_notify()
        // Otherwise the answer to a watch from far back is one message, of any size.
        .with_fragment();
    let first = if prefix.is_empty() {
        vec![0]
    } else {
        prefix.as_bytes().to_vec()
    };
    let mut client = client.max_decoding_message_size(LONGEST_MESSAGE);
    let mut stream = within(client.watch(first, Some(options))).await?;
    // Known from here on: the watch exists, or why not.
    let created = within(stream.message()).await?;
    if let Some(response) = &created {
        check(response, from)?;
    }
    let watcher = Watcher {
        stream,
        position: from,
        honest_progress,
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
            let response = self.stream.message().await.map_err(error)?;
            let Some(response) = response else {
                return Err(StoreError::Unavailable("etcd ended a watch".into()));
            };
            check(&response, self.position)?;
            if response.events().is_empty() {
                let reached = super::revision(response.header());
                if response.created() || !self.honest_progress || reached <= self.position {
                    continue;
                }
                self.position = reached;
                return Ok(WatchBatch {
                    events: Vec::new(),
                    revision: reached,
                });
            }
            let events: Result<Vec<Event>> = response.events().iter().map(event).collect();
            let events = events?;
            // The header holds the store's revision and not how far this watch has come.
            self.position = events.last().map_or(self.position, Event::revision);
            return Ok(WatchBatch {
                events,
                revision: self.position,
            });
        }
    }
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
pub(super) async fn compacted_at(mut client: WatchClient, requested: Revision) -> StoreError {
    let asked = async {
        let options = WatchOptions::new().with_start_revision(wire(requested)?.max(1));
        let mut stream = within(client.watch(vec![0], Some(options))).await?;
        while let Some(response) = within(stream.message()).await? {
            check(&response, requested)?;
            if !response.created() {
                break;
            }
        }
        Ok(())
    };
    match asked.await {
        Err(compacted @ StoreError::Compacted { .. }) => compacted,
        // It was refused all the same.
        _ => StoreError::Compacted {
            requested,
            compacted: requested.next(),
        },
    }
}

/// Before 3.4.25 and 3.5.8 a progress notification could overtake the events that it vouches for
/// (etcd-io/etcd#15220).
pub(super) fn has_honest_progress(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let mut next = || numbers.next().unwrap_or_default();
    let version = (next(), next(), next());
    version >= (3, 5, 8) || ((3, 4, 25)..(3, 5, 0)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_faulty_versions_is_not_believed() {
        for (version, honest) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.0", false),
            ("3.5.7", false),
            ("3.5.16", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(has_honest_progress(version), honest, "{version}");
        }
    }
}
