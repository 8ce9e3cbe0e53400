//! WATCH: a stream of JSON lines, or of protobuf messages behind their lengths.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use windlass_machinery::protobuf;
use windlass_machinery::status::ApiError;
use windlass_store::Revision;

use super::list::{self, Form, filter};
use crate::cacher::{CacheEvent, Entry, EventType, From, Seen, Watch, frame, open_frame};
use crate::catalog::Endpoint;
use crate::context::{Context, now, to_served};
use crate::negotiation::Encoding;
use crate::options::{ListOptions, ReadVersion};
use crate::{Body, encode, response, table};

/// How often a quiet watch is told how far it is, as upstream.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Watches without a timeout end after this and up to twice as long.
const MIN_TIMEOUT: u64 = 1800;
/// Initial events are sent in pieces of about this size.
const CHUNK: usize = 64 << 10;

pub(super) async fn watch(
    context: &Arc<Context>,
    endpoint: &Arc<Endpoint>,
) -> Result<Response<Body>, ApiError> {
    let mut options = ListOptions::parse(&context.query, true)?;
    // `/watch/…/name`, the deprecated path of one object.
    if !context.info.name.is_empty() && options.fields.is_none() {
        let one = format!("metadata.name={}", context.info.name);
        options.fields = windlass_machinery::selector::FieldSelector::parse(&one).ok();
    }
    let filter = filter(context, endpoint, &options)?;
    let cacher = endpoint.cacher()?;
    let caches = &context.server.caches;
    let encoder = Encoder {
        endpoint: endpoint.clone(),
        form: Form::of(context)?,
        encoding: context.accepted.encoding,
        columns_sent: false,
    };
    let encoding = encoder.encoding;

    let list_first = options.send_initial_events;
    let begun = async {
        let from = match (options.version, list_first) {
            (ReadVersion::Unset, _) => {
                caches.wait_current().await?;
                From::Now {
                    with_initial: list_first != Some(false),
                }
            }
            (ReadVersion::Any, _) => From::Now {
                with_initial: list_first != Some(false),
            },
            (ReadVersion::At(revision), Some(true)) => {
                caches.wait_for(revision).await?;
                From::Now { with_initial: true }
            }
            (ReadVersion::At(revision), _) => {
                caches.wait_for(revision).await?;
                From::After(revision)
            }
        };
        caches.watch(cacher, filter, from)
    };
    let body = match begun.await {
        Ok(mut watch) => {
            list::present(endpoint, &mut watch.initial)?;
            let seconds = options
                .timeout_seconds
                .filter(|s| *s > 0)
                .unwrap_or_else(|| MIN_TIMEOUT + rand::random::<u64>() % MIN_TIMEOUT);
            let stream = Stream {
                context: context.clone(),
                sent: context.server.metrics.watch_events(endpoint),
                encoder,
                stage: Stage::Initial,
                mark_initial_end: list_first == Some(true) && options.bookmarks,
                bookmarks: options.bookmarks,
                told: watch.start,
                deadline: Instant::now() + Duration::from_secs(seconds),
                watch,
            };
            response::streamed(stream.into_stream())
        }
        // Past this point upstream tells failures in the stream.
        Err(error) => response::full(error_frame(encoding, &error)),
    };
    let content_type = match encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Encoding::Json | Encoding::Yaml => "application/json",
    };
    Ok(response::with_type(StatusCode::OK, content_type, body))
}

/// Turns events into lines.
struct Encoder {
    endpoint: Arc<Endpoint>,
    form: Form,
    encoding: Encoding,
    columns_sent: bool,
}

impl Encoder {
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        seen: &Seen,
        event: Option<&CacheEvent>,
    ) -> Result<(), ApiError> {
        let as_stored = self.form == Form::Object && self.encoding != Encoding::Protobuf;
        if as_stored && self.endpoint.is_stored_version() {
            match event {
                Some(event) => out.extend_from_slice(&event.frame(seen)),
                None => out.extend_from_slice(&frame(seen.kind, &seen.entry, seen.revision)),
            }
            return Ok(());
        }
        let mut object = seen.entry.decode()?;
        encode::set_version(&mut object, seen.revision);
        let shown = match self.form {
            Form::Object => {
                to_served(&self.endpoint, &mut object)?;
                object
            }
            Form::Metadata { beta } => table::metadata_of(&object, beta),
            Form::Row { beta, include } => {
                let metadata = json!({"resourceVersion": seen.revision.to_string()});
                let mut shown = table::empty(&self.endpoint, beta, metadata, !self.columns_sent);
                self.columns_sent = true;
                shown["rows"] = json!([table::row(&self.endpoint, object, include, beta, now())?]);
                shown
            }
        };
        write_frame(self.encoding, out, seen.kind.as_str(), &shown);
        Ok(())
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let own = json!({
            "kind": self.endpoint.kind(), "apiVersion": self.endpoint.api_version(),
            "metadata": metadata,
        });
        let shown = match self.form {
            Form::Object => own,
            Form::Metadata { beta } => table::metadata_of(&own, beta),
            Form::Row { beta, .. } => {
                let list = json!({"resourceVersion": revision.to_string()});
                let mut shown = table::empty(&self.endpoint, beta, list, !self.columns_sent);
                self.columns_sent = true;
                shown["rows"] = json!([{"cells": [], "object": table::metadata_of(&own, beta)}]);
                shown
            }
        };
        let mut out = Vec::new();
        write_frame(self.encoding, &mut out, "BOOKMARK", &shown);
        out.into()
    }
}

fn write_frame(encoding: Encoding, out: &mut Vec<u8>, kind: &str, object: &Value) {
    if encoding == Encoding::Protobuf {
        let Some(object) = response::protobuf(object) else {
            return;
        };
        let message = protobuf::watch_event(kind, &object);
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&message);
        return;
    }
    open_frame(out, kind);
    encode::write_object(out, object);
    out.extend_from_slice(b"}\n");
}

fn error_frame(encoding: Encoding, error: &ApiError) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(encoding, &mut out, "ERROR", &error.to_status());
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Initial,
    Following,
    Ended,
}

/// The response's state between two pieces.
struct Stream {
    context: Arc<Context>,
    /// Events, as metrics count them.
    sent: Counter,
    encoder: Encoder,
    watch: Watch,
    stage: Stage,
    mark_initial_end: bool,
    bookmarks: bool,
    /// The revision of the last bookmark.
    told: Revision,
    deadline: Instant,
}

impl Stream {
    fn into_stream(mut self) -> impl futures::Stream<Item = Bytes> + Send + 'static {
        let initial = std::mem::take(&mut self.watch.initial).into_iter();
        let mut ticks = interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        futures::stream::unfold(
            (self, initial, ticks),
            |(mut stream, mut initial, mut ticks)| async {
                let piece = match stream.stage {
                    Stage::Initial => stream.initial(&mut initial),
                    Stage::Following => stream.following(&mut ticks).await?,
                    Stage::Ended => return None,
                };
                Some((piece, (stream, initial, ticks)))
            },
        )
    }

    fn initial(&mut self, entries: &mut std::vec::IntoIter<Arc<Entry>>) -> Bytes {
        let mut out = Vec::new();
        while out.len() < CHUNK {
            let Some(entry) = entries.next() else {
                self.stage = Stage::Following;
                if self.mark_initial_end {
                    out.extend_from_slice(&self.encoder.bookmark(self.watch.start, true));
                }
                break;
            };
            let revision = entry.revision;
            let seen = Seen {
                kind: EventType::Added,
                entry,
                revision,
            };
            self.write(&mut out, &seen, None);
        }
        out.into()
    }

    /// Waits for the next piece; `None` ends the response.
    async fn following(&mut self, ticks: &mut tokio::time::Interval) -> Option<Bytes> {
        loop {
            tokio::select! {
                biased;
                () = self.context.server.shutdown.cancelled() => return None,
                events = self.watch.next() => match events {
                    Ok(events) => {
                        let mut out = Vec::new();
                        for (event, seen) in events {
                            self.write(&mut out, &seen, Some(&event));
                        }
                        return Some(out.into());
                    }
                    Err(error) => {
                        tracing::info!(path = self.context.info.path, %error, "watcher cut off");
                        self.stage = Stage::Ended;
                        return Some(error_frame(self.encoder.encoding, &error).into());
                    }
                },
                () = sleep_until(self.deadline) => {
                    self.stage = Stage::Ended;
                    return if self.bookmarks { self.bookmark() } else { None };
                }
                _ = ticks.tick(), if self.bookmarks => {
                    if let Some(bookmark) = self.bookmark() {
                        return Some(bookmark);
                    }
                }
            }
        }
    }

    fn bookmark(&mut self) -> Option<Bytes> {
        let revision = self
            .watch
            .delivered()
            .filter(|revision| *revision > self.told)?;
        self.told = revision;
        Some(self.encoder.bookmark(revision, false))
    }

    fn write(&mut self, out: &mut Vec<u8>, seen: &Seen, event: Option<&CacheEvent>) {
        self.sent.inc();
        if let Err(error) = self.encoder.write(out, seen, event) {
            tracing::error!(key = %seen.entry.key, %error, "an event is left out of a watch");
        }
    }
}
