//! What happens in the runtime, as it happens.
//!
//! Three sources, the best one that the runtime serves: the CRI's own events
//! (containerd 1.7 and later, CRI-O), containerd's native ones on the same socket
//! (so that on 1.6 an exit is known in milliseconds too), and comparing lists
//! once a second. Lists are compared in every case, only less often: a stream
//! loses what happened while it was broken, and a list never lies for long.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use windlass_proto::containerd::events::v1 as containerd;
use windlass_proto::containerd::events::v1::events_client::EventsClient;

use crate::v1::*;
use crate::{Error, Result, Runtime};

const LIST_WITH_STREAM: Duration = Duration::from_secs(10);
/// After a stream was opened, lists follow each other at first in this time and then ever
/// more slowly. A list lags behind the events: containerd tells of an exit before it records
/// it, so an exit shortly before the subscription is in neither the stream nor the first list.
const LIST_AT_FIRST: Duration = Duration::from_millis(50);
const LIST_ALONE: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_millis(250);
/// containerd keeps what came through the CRI in this namespace of its own.
const CONTAINERD_FILTER: &str = "topic==\"/tasks/exit\",namespace==\"k8s.io\"";

/// Something about a sandbox or container is no longer as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// The first process of this container (or sandbox) ended. The runtime's own
    /// records may follow a few milliseconds later.
    Exited {
        /// Container or sandbox.
        id: String,
    },
    /// Anything else, or an exit that was noticed by comparing lists.
    Changed {
        /// Container or sandbox.
        id: String,
        /// The pod, where the source tells it.
        pod_uid: Option<String>,
    },
    /// The runtime answers again after it was away: anything may have changed.
    Reconnected,
}

/// Sends events until the receiver is dropped; survives the runtime's restarts.
pub async fn watch(runtime: Runtime, events: mpsc::Sender<RuntimeEvent>) {
    let mut comparer = Comparer {
        runtime,
        events,
        seen: None,
        away: false,
    };
    let closed = comparer.events.clone();
    tokio::select! {
        _ = comparer.run() => {}
        () = closed.closed() => {}
    }
}

/// Nobody listens any more.
struct Closed;

struct Comparer {
    runtime: Runtime,
    events: mpsc::Sender<RuntimeEvent>,
    /// The last list.
    seen: Option<Listed>,
    /// Whether the runtime did not answer when it was last asked.
    away: bool,
}

impl Comparer {
    async fn run(&mut self) -> Result<(), Closed> {
        loop {
            if !self.compare().await? {
                tokio::time::sleep(RECONNECT).await;
                continue;
            }
            match open_stream(&self.runtime).await {
                Some(stream) => self.follow(stream).await?,
                None => tokio::time::sleep(LIST_ALONE).await,
            }
        }
    }

    /// Passes on what the stream tells until it ends, which is when the runtime ends.
    async fn follow(&mut self, mut stream: EventStream) -> Result<(), Closed> {
        let mut pause = LIST_AT_FIRST;
        // What happened while the stream was opened is in a list.
        let mut due = tokio::time::Instant::now();
        loop {
            tokio::select! {
                event = stream.next() => match event {
                    Some(event) => self.send(event).await?,
                    None => {
                        tracing::info!("container runtime's event stream ended");
                        return Ok(());
                    }
                },
                () = tokio::time::sleep_until(due) => {
                    if !self.compare().await? {
                        return Ok(());
                    }
                    due = tokio::time::Instant::now() + pause;
                    pause = (pause * 2).min(LIST_WITH_STREAM);
                }
            }
        }
    }

    /// Lists and tells what differs from the last list; whether the runtime answered.
    async fn compare(&mut self) -> Result<bool, Closed> {
        let now = match list(&self.runtime).await {
            Ok(now) => now,
            Err(error) => {
                if !self.away {
                    tracing::warn!(%error, "container runtime does not answer");
                }
                self.away = true;
                return Ok(false);
            }
        };
        if std::mem::take(&mut self.away) {
            self.send(RuntimeEvent::Reconnected).await?;
        }
        let news = self
            .seen
            .as_ref()
            .map(|seen| differences(seen, &now))
            .unwrap_or_default();
        self.seen = Some(now);
        for event in news {
            self.send(event).await?;
        }
        Ok(true)
    }

    async fn send(&self, event: RuntimeEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

type EventStream = Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;

/// The best stream that the runtime serves, or none.
async fn open_stream(runtime: &Runtime) -> Option<EventStream> {
    if let Some(stream) = open_cri(runtime).await {
        return Some(stream);
    }
    open_containerd(runtime).await
}

async fn open_cri(runtime: &Runtime) -> Option<EventStream> {
    let answer = runtime
        .runtime_service()
        .get_container_events(GetEventsRequest {})
        .await;
    let mut stream = answer.ok()?.into_inner();
    // containerd 1.6 accepts the call of a method that it lacks and says so only in the
    // trailers; a server that has it stays silent until something happens.
    match tokio::time::timeout(Duration::from_millis(20), stream.message()).await {
        Ok(Ok(Some(event))) => {
            let first = futures::stream::iter([from_cri(event)]);
            Some(Box::pin(first.chain(until_error(stream).map(from_cri))))
        }
        Ok(_) => None,
        Err(_) => Some(Box::pin(until_error(stream).map(from_cri))),
    }
}

async fn open_containerd(runtime: &Runtime) -> Option<EventStream> {
    let request = containerd::SubscribeRequest {
        filters: vec![CONTAINERD_FILTER.to_owned()],
    };
    let mut client = EventsClient::new(runtime.channel());
    // The response headers come only with the first event, so the subscription is
    // awaited inside the stream, not here.
    let opened = async move { client.subscribe(request).await };
    let mut opened = Box::pin(opened);
    match tokio::time::timeout(Duration::from_millis(20), &mut opened).await {
        Ok(Ok(response)) => Some(Box::pin(
            until_error(response.into_inner()).filter_map(from_containerd),
        )),
        Ok(Err(_)) => None,
        Err(_) => {
            let stream = futures::stream::once(opened)
                .filter_map(async |answer: Result<_, tonic::Status>| answer.ok())
                .flat_map(|response: tonic::Response<_>| until_error(response.into_inner()));
            Some(Box::pin(stream.filter_map(from_containerd)))
        }
    }
}

fn until_error<T: Send + 'static>(stream: tonic::Streaming<T>) -> impl Stream<Item = T> + Send {
    stream
        .take_while(|item| std::future::ready(item.is_ok()))
        .filter_map(async |item| item.ok())
}

fn from_cri(event: ContainerEventResponse) -> RuntimeEvent {
    let stopped = event.container_event_type() == ContainerEventType::ContainerStoppedEvent;
    let id = event.container_id;
    if stopped {
        return RuntimeEvent::Exited { id };
    }
    let metadata = event.pod_sandbox_status.and_then(|status| status.metadata);
    RuntimeEvent::Changed {
        id,
        pod_uid: metadata.map(|metadata| metadata.uid),
    }
}

async fn from_containerd(envelope: containerd::Envelope) -> Option<RuntimeEvent> {
    let exit = containerd::TaskExit::decode(envelope.event?.value.as_slice()).ok()?;
    // The end of an exec (a probe, a hook) says nothing about the container.
    (exit.id == exit.container_id).then_some(RuntimeEvent::Exited {
        id: exit.container_id,
    })
}

/// What a list tells of each sandbox and container: its state and its pod.
type Listed = HashMap<String, (i32, String)>;

async fn list(runtime: &Runtime) -> Result<Listed, Error> {
    const POD_UID: &str = "io.kubernetes.pod.uid";
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_pod_sandboxes(&[]),
        runtime.list_containers(&[])
    )?;
    let mut listed = HashMap::with_capacity(sandboxes.len() + containers.len());
    for sandbox in sandboxes {
        let uid = sandbox
            .metadata
            .map(|metadata| metadata.uid)
            .unwrap_or_default();
        listed.insert(sandbox.id, (sandbox.state, uid));
    }
    for mut container in containers {
        let uid = container.labels.remove(POD_UID).unwrap_or_default();
        listed.insert(container.id, (container.state, uid));
    }
    Ok(listed)
}

fn differences(before: &Listed, now: &Listed) -> Vec<RuntimeEvent> {
    let changed = now
        .iter()
        .filter(|(id, state)| before.get(*id) != Some(state));
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    changed
        .chain(gone)
        .map(|(id, (_, uid))| RuntimeEvent::Changed {
            id: id.clone(),
            pod_uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_differ_in_what_came_changed_and_went() {
        let listed = |entries: &[(&str, i32)]| -> Listed {
            entries
                .iter()
                .map(|(id, state)| ((*id).into(), (*state, "uid".into())))
                .collect()
        };
        let before = listed(&[("same", 1), ("exits", 1), ("goes", 2)]);
        let now = listed(&[("same", 1), ("exits", 2), ("comes", 0)]);
        let mut ids: Vec<_> = differences(&before, &now)
            .into_iter()
            .map(|event| match event {
                RuntimeEvent::Changed { id, pod_uid } => {
                    assert_eq!(pod_uid.as_deref(), Some("uid"));
                    id
                }
                other => panic!("{other:?}"),
            })
            .collect();
        ids.sort();
        assert_eq!(ids, ["comes", "exits", "goes"]);
    }

    #[tokio::test]
    async fn only_the_end_of_a_containers_first_process_is_its_exit() {
        let envelope = |id: &str| {
            let exit = containerd::TaskExit {
                container_id: "c".into(),
                id: id.into(),
                pid: 1,
                exit_status: 0,
            };
            let value = exit.encode_to_vec();
            containerd::Envelope {
                namespace: "k8s.io".into(),
                topic: "/tasks/exit".into(),
                event: Some(containerd::TypedBytes {
                    type_url: String::new(),
                    value,
                }),
            }
        };
        assert_eq!(
            from_containerd(envelope("c")).await,
            Some(RuntimeEvent::Exited { id: "c".into() })
        );
        assert_eq!(from_containerd(envelope("exec-1")).await, None);
    }
}
