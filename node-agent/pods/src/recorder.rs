//! What happened to pods, as Event objects.
//!
//! Sent by one task in the background: nothing that runs pods ever waits for the API
//! server because of an event. Repetitions raise a count instead of making new objects,
//! and a pod that fails in a loop cannot flood the cluster.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::model::Role;

/// As events name their reporter: whoever looks for what happened to pods asks for this.
pub(crate) const COMPONENT: &str = "kubelet";
/// Events waiting for the API server; more are dropped, since they are only news.
const QUEUE: usize = 1024;
/// Repetitions within this time raise the first event's count.
const REPETITION_WINDOW: Duration = Duration::from_secs(600);
/// Per pod: this many at once, then one each `REFILL`, as Kubernetes' spam filter has it.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It is.
    Normal,
    /// The user should look.
    Warning,
}

/// A handle for reporting; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<News>,
}

struct News {
    object: ObjectReference,
    severity: Severity,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// A recorder whose events are sent with `client` in the name of `node`.
    pub fn new(client: kube::Client, node: String) -> Self {
        let (queue, news) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, node, news));
        Self { queue }
    }

    /// Something happened to a pod, or to one container of it.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        let list = |name: &str| {
            let role = crate::model::slot(pod, name).map(|slot| slot.role);
            match role {
                Some(Role::Init | Role::Sidecar) => "initContainers",
                Some(Role::Ephemeral) => "ephemeralContainers",
                Some(Role::Main) | None => "containers",
            }
        };
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|name| format!("spec.{}{{{name}}}", list(name))),
        };
        self.report(object, severity, reason.into(), message.into());
    }

    /// Something happened to the node.
    pub fn node(&self, name: &str, severity: Severity, reason: &'static str, message: String) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            // Upstream's convention: events of nodes are found by their name as uid.
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.report(object, severity, reason.into(), message);
    }

    fn report(
        &self,
        object: ObjectReference,
        severity: Severity,
        reason: Cow<'static, str>,
        message: String,
    ) {
        let news = News {
            object,
            severity,
            reason,
            message,
            at: Timestamp::now(),
        };
        if self.queue.try_send(news).is_err() {
            tracing::debug!("event dropped: the queue is full");
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Option<String>,
    field_path: Option<String>,
    reason: Cow<'static, str>,
    message: String,
}

struct Sent {
    name: String,
    count: i32,
    last: Instant,
}

struct Bucket {
    left: f64,
    filled: Instant,
}

async fn send(client: kube::Client, node: String, mut news: mpsc::Receiver<News>) {
    let mut sent: HashMap<Key, Sent> = HashMap::new();
    let mut buckets: HashMap<String, Bucket> = HashMap::new();
    while let Some(item) = news.recv().await {
        let now = Instant::now();
        sent.retain(|_, entry| now.duration_since(entry.last) < REPETITION_WINDOW);
        buckets.retain(|_, bucket| bucket.level(now) < BURST);
        let bucket = buckets
            .entry(item.object.uid.clone().unwrap_or_default())
            .or_insert(Bucket {
                left: BURST,
                filled: now,
            });
        if !bucket.take(now) {
            continue;
        }
        let key = Key {
            uid: item.object.uid.clone(),
            field_path: item.object.field_path.clone(),
            reason: item.reason.clone(),
            message: item.message.clone(),
        };
        let namespace = item
            .object
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(entry) = sent.get_mut(&key) {
            entry.count += 1;
            entry.last = now;
            let patch = json!({"count": entry.count, "lastTimestamp": item.at});
            match events
                .patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => continue,
                // It expired or was deleted: tell it as new.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!(%error, reason = &*item.reason, "event not sent");
                    continue;
                }
            }
        }
        let event = event(&item, &node, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => {
                sent.insert(
                    key,
                    Sent {
                        name,
                        count: 1,
                        last: now,
                    },
                );
            }
            Err(error) => tracing::debug!(%error, reason = &*item.reason, "event not sent"),
        }
    }
}

fn event(news: &News, node: &str, namespace: &str) -> Event {
    let about = news.object.name.as_deref().unwrap_or_default();
    // Unique as long as nobody reports twice about one object in one nanosecond.
    let name = format!("{about}.{:x}", news.at.as_nanosecond());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: news.object.clone(),
        type_: Some(match news.severity {
            Severity::Normal => "Normal".to_owned(),
            Severity::Warning => "Warning".to_owned(),
        }),
        reason: Some(news.reason.clone().into_owned()),
        message: Some(news.message.clone()),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(news.at)),
        last_timestamp: Some(Time(news.at)),
        event_time: None::<MicroTime>,
        count: Some(1),
        ..Event::default()
    }
}

impl Bucket {
    fn level(&self, now: Instant) -> f64 {
        let refilled = now.duration_since(self.filled).as_secs_f64() / REFILL.as_secs_f64();
        (self.left + refilled).min(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = self.level(now);
        self.filled = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_fails_in_a_loop_is_heard_less_and_less() {
        let start = Instant::now();
        let mut bucket = Bucket {
            left: BURST,
            filled: start,
        };
        let heard = (0..100).filter(|_| bucket.take(start)).count();
        assert_eq!(heard, 25);
        assert!(!bucket.take(start + REFILL / 2));
        assert!(bucket.take(start + REFILL * 2));
    }
}
