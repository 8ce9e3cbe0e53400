//! Writes core/v1 Events, counting repetitions instead of repeating objects.
//!
//! Recording never blocks and never fails its caller: an Event is an explanation for a person, and a slow
//! API server must not stop a controller because of it. The queue is bounded; what does not fit is
//! counted and dropped.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;
use tracing::debug;

/// Event types of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Something expected.
    Normal,
    /// Something that a person may have to act on.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Remembered repetitions; older ones start counting anew.
const REMEMBERED: usize = 1024;
const QUEUED: usize = 1024;
/// Events about one object are written in order by one writer; several writers fill the server's group
/// commit.
const WRITERS: usize = 4;

/// Records events in the name of one component.
#[derive(Clone)]
pub struct Recorder {
    queues: Arc<[mpsc::Sender<Observation>]>,
    component: Arc<str>,
    action: Option<&'static str>,
}

struct Observation {
    component: Arc<str>,
    action: Option<&'static str>,
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// Starts the writing tasks; they end when the last clone is dropped.
    pub fn start(client: Client, component: &str) -> Self {
        let queues = (0..WRITERS).map(|_| {
            let (queue, observations) = mpsc::channel(QUEUED);
            tokio::spawn(write(client.clone(), observations));
            queue
        });
        Self {
            queues: queues.collect(),
            component: component.into(),
            action: None,
        }
    }

    /// The same writing tasks under another component's name.
    pub fn named(&self, component: &str) -> Self {
        Self {
            queues: Arc::clone(&self.queues),
            component: component.into(),
            action: self.action,
        }
    }

    /// The same, of what was done or tried (`action` of an Event).
    pub fn doing(&self, action: &'static str) -> Self {
        Self {
            action: Some(action),
            ..self.clone()
        }
    }

    /// The writer of an object's events: the same one for every clone, hence the fixed seeds.
    fn queue_of(&self, about: &ObjectReference) -> &mpsc::Sender<Observation> {
        let seeded = ahash::RandomState::with_seeds(1, 2, 3, 4);
        let hash = seeded.hash_one(about.uid.as_deref().unwrap_or_default());
        &self.queues[usize::try_from(hash).unwrap_or_default() % WRITERS]
    }

    /// Records what happened to an object.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        self.record_about(object.object_ref(&()), kind, reason, message);
    }

    /// Records what happened to a referenced object.
    pub(crate) fn record_about(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        let observation = Observation {
            component: Arc::clone(&self.component),
            action: self.action,
            about,
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        let queue = self.queue_of(&observation.about);
        if queue.try_send(observation).is_err() {
            debug!(component = %self.component, reason, "event queue full, event dropped");
        }
    }
}

type Identity = (Arc<str>, String, String, String);

struct Seen {
    namespace: String,
    name: String,
    count: i32,
}

async fn write(client: Client, mut observations: mpsc::Receiver<Observation>) {
    let mut seen: AHashMap<Identity, Seen> = AHashMap::new();
    let mut order: VecDeque<Identity> = VecDeque::new();
    while let Some(observation) = observations.recv().await {
        let identity = (
            Arc::clone(&observation.component),
            observation.about.uid.clone().unwrap_or_default(),
            observation.reason.clone(),
            observation.message.clone(),
        );
        if let Some(earlier) = seen.get_mut(&identity)
            && repeat(&client, earlier, observation.at).await
        {
            continue;
        }
        let event = first(&observation);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        if let Err(error) = post(&client, &namespace, &event).await {
            debug!(%error, reason = observation.reason, "event not written");
            continue;
        }
        if seen
            .insert(
                identity.clone(),
                Seen {
                    namespace,
                    name,
                    count: 1,
                },
            )
            .is_none()
        {
            order.push_back(identity);
        }
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            seen.remove(&oldest);
        }
    }
}

async fn post(client: &Client, namespace: &str, event: &Event) -> kube::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    // An event is not worth a stuck writer.
    let params = PostParams::default();
    let writing = api.create(&params, event);
    match tokio::time::timeout(Duration::from_secs(10), writing).await {
        Ok(result) => result.map(drop),
        Err(_elapsed) => Ok(()),
    }
}

/// Counts a repetition; false when the earlier Event is gone and a new one is needed.
async fn repeat(client: &Client, earlier: &mut Seen, at: Timestamp) -> bool {
    let api: Api<Event> = Api::namespaced(client.clone(), &earlier.namespace);
    let patch = serde_json::json!({ "count": earlier.count + 1, "lastTimestamp": Time(at) });
    match api
        .patch(
            &earlier.name,
            &PatchParams::default(),
            &Patch::Merge(&patch),
        )
        .await
    {
        Ok(_) => {
            earlier.count += 1;
            true
        }
        Err(error) => {
            debug!(%error, "event not counted");
            false
        }
    }
}

fn first(observation: &Observation) -> Event {
    let about = &observation.about;
    // Events about cluster-scoped objects live in `default`, where kubectl looks for them.
    let namespace = about
        .namespace
        .clone()
        .filter(|ns| !ns.is_empty())
        .unwrap_or("default".into());
    let mut about = about.clone();
    about.resource_version = None;
    Event {
        metadata: ObjectMeta {
            // Upstream's form: the object's name and a number that grows with time.
            name: Some(format!(
                "{}.{:x}",
                about.name.as_deref().unwrap_or_default(),
                observation.at.as_nanosecond()
            )),
            namespace: Some(namespace),
            ..Default::default()
        },
        involved_object: about,
        type_: Some(observation.kind.as_str().to_owned()),
        reason: Some(observation.reason.clone()),
        message: Some(observation.message.clone()),
        action: observation.action.map(str::to_owned),
        count: Some(1),
        first_timestamp: Some(Time(observation.at)),
        last_timestamp: Some(Time(observation.at)),
        source: Some(EventSource {
            component: Some(observation.component.to_string()),
            ..Default::default()
        }),
        reporting_component: Some(observation.component.to_string()),
        ..Default::default()
    }
}
