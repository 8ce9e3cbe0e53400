//! As much of the API server as a node talks to, in memory.
//!
//! A double, not a server: it stores what it is given, merges status patches the way the
//! agent's patches need, and tells watchers. The real one is used in the end-to-end tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The API; clones are the same one.
#[derive(Clone)]
pub(crate) struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    /// Objects by `resource/namespace/name`.
    objects: Mutex<(u64, BTreeMap<String, Value>)>,
    /// What was removed, with the version of its removal.
    removed: Mutex<Vec<(String, Value)>>,
    changes: broadcast::Sender<(String, String, Value)>,
    /// Answers with 503 while set.
    down: Mutex<bool>,
}

impl Api {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            objects: Mutex::default(),
            removed: Mutex::default(),
            changes: broadcast::channel(1024).0,
            down: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn set_down(&self, down: bool) {
        *self.inner.down.lock() = down;
    }

    pub(crate) fn put(&self, resource: &str, object: Value) -> Value {
        let (kind, object) = self.store(resource, object);
        let change = (resource.to_owned(), kind.to_owned(), object.clone());
        let _ = self.inner.changes.send(change);
        object
    }

    /// Changes an object of which the watchers are not told yet.
    pub(crate) fn put_unseen(&self, resource: &str, object: Value) {
        self.store(resource, object);
    }

    fn store(&self, resource: &str, mut object: Value) -> (&'static str, Value) {
        let key = key(resource, &object);
        let mut objects = self.inner.objects.lock();
        objects.0 += 1;
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", objects.0));
        }
        object["metadata"]["resourceVersion"] = json!(objects.0.to_string());
        let known = objects.1.insert(key, object.clone()).is_some();
        (if known { "MODIFIED" } else { "ADDED" }, object)
    }

    pub(crate) fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.inner
            .objects
            .lock()
            .1
            .get(&format!("{resource}/default/{name}"))
            .cloned()
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        let prefix = format!("{resource}/");
        let objects = self.inner.objects.lock();
        objects
            .1
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(_, o)| o.clone())
            .collect()
    }

    pub(crate) fn remove(&self, resource: &str, name: &str) {
        let mut objects = self.inner.objects.lock();
        objects.0 += 1;
        let version = objects.0;
        let removed = objects.1.remove(&format!("{resource}/default/{name}"));
        drop(objects);
        if let Some(mut object) = removed {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let removal = (resource.to_owned(), object.clone());
            self.inner.removed.lock().push(removal);
            let _ = self
                .inner
                .changes
                .send((resource.to_owned(), "DELETED".to_owned(), object));
        }
    }

    /// What a DELETE with a grace period does to a pod on a node.
    pub(crate) fn mark_deleted(&self, name: &str, grace: i64) {
        let mut pod = self.get("pods", name).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put("pods", pod);
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        if *self.inner.down.lock() {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        let method = request.method().clone();
        let path = request.uri().path().trim_start_matches("/api/v1/");
        let path = path.trim_start_matches("/apis/storage.k8s.io/v1/");
        let path = path
            .trim_start_matches("/apis/resource.k8s.io/v1/")
            .to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let (resource, name, sub) = match parts[..] {
            ["namespaces", _, resource] => (resource, None, None),
            ["namespaces", _, resource, name] => (resource, Some(name), None),
            ["namespaces", _, resource, name, sub] => (resource, Some(name), Some(sub)),
            [resource] => (resource, None, None),
            [resource, name] => (resource, Some(name), None),
            [resource, name, sub] => (resource, Some(name), Some(sub)),
            _ => return status(StatusCode::NOT_FOUND),
        };
        match (method, name, sub) {
            (Method::GET, None, None) if query.contains("watch=true") => {
                self.watch(resource, &query)
            }
            (Method::GET, None, None) => {
                let items: Vec<Value> = self
                    .list(resource)
                    .into_iter()
                    .filter(|object| selected(&query, object))
                    .collect();
                let version = self.inner.objects.lock().0.to_string();
                answer(&json!({"apiVersion": "v1", "kind": "List",
                               "metadata": {"resourceVersion": version}, "items": items}))
            }
            (Method::GET, Some(name), None) => match self.get(resource, name) {
                Some(object) => answer(&object),
                None => status(StatusCode::NOT_FOUND),
            },
            (Method::POST, None, None) => answer(&self.put(resource, body)),
            (Method::POST, Some(name), Some("token")) => {
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
                let mut request = body;
                request["status"] = json!({
                    "token": format!("token-of-{name}"), "expirationTimestamp": expires.to_string(),
                });
                answer(&request)
            }
            (Method::PATCH, Some(name), Some("status")) => {
                let Some(mut object) = self.get(resource, name) else {
                    return status(StatusCode::NOT_FOUND);
                };
                if body["metadata"]["uid"] != object["metadata"]["uid"] {
                    return status(StatusCode::CONFLICT);
                }
                merge(&mut object["status"], &body["status"]);
                answer(&self.put(resource, object))
            }
            (Method::PATCH, Some(name), None) => {
                let Some(mut object) = self.get(resource, name) else {
                    return status(StatusCode::NOT_FOUND);
                };
                merge(&mut object, &body);
                answer(&self.put(resource, object))
            }
            (Method::DELETE, Some(name), None) => match self.get(resource, name) {
                Some(object) if body["preconditions"]["uid"] == object["metadata"]["uid"] => {
                    assert_eq!(body["gracePeriodSeconds"], 0);
                    self.remove(resource, name);
                    answer(&object)
                }
                Some(_) => status(StatusCode::CONFLICT),
                None => status(StatusCode::NOT_FOUND),
            },
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    fn watch(&self, resource: &str, query: &str) -> Answer {
        let (resource, query) = (resource.to_owned(), query.to_owned());
        let since: u64 = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let changes = self.inner.changes.subscribe();
        // What happened between the list and this call is in the store already.
        let missed: Vec<(String, Value)> = self
            .list(&resource)
            .into_iter()
            .filter(|object| version(object) > since)
            .map(|object| ("MODIFIED".to_owned(), object))
            .collect();
        let removed = self.inner.removed.lock().clone();
        let removed = removed
            .into_iter()
            .filter(|(of, object)| *of == resource && version(object) > since)
            .map(|(_, object)| ("DELETED".to_owned(), object));
        let missed: Vec<(String, Value)> = removed.chain(missed).collect();
        let live = futures::stream::unfold(changes, |mut changes| async {
            changes.recv().await.ok().map(|change| (change, changes))
        });
        let live = live.filter_map(move |(of, kind, object)| {
            let fits = of == resource;
            async move { fits.then_some((kind, object)) }
        });
        let stream = futures::stream::iter(missed)
            .chain(live)
            .filter(move |(_, object)| std::future::ready(selected(&query, object)))
            .map(|(kind, object)| {
                let line = format!("{}\n", json!({"type": kind, "object": object}));
                Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
            });
        Response::new(BodyExt::boxed(SyncStream(Mutex::new(Box::pin(
            StreamBody::new(stream),
        )))))
    }
}

/// Makes a body shareable, as its type demands.
struct SyncStream<B>(Mutex<std::pin::Pin<Box<B>>>);

impl<B: hyper::body::Body<Data = Bytes, Error = Infallible>> hyper::body::Body for SyncStream<B> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.lock().as_mut().poll_frame(context)
    }
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or("0")
        .parse()
        .unwrap_or(0)
}

fn selected(query: &str, object: &Value) -> bool {
    if let Some((_, name)) = query.split_once("metadata.name%3D") {
        let name = name.split('&').next().unwrap_or_default();
        return object["metadata"]["name"] == name;
    }
    true
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in fields {
        match (field.as_str(), value) {
            (_, Value::Null) => {
                target.as_object_mut().unwrap().remove(field);
            }
            ("conditions", Value::Array(conditions)) => {
                let mut known = target["conditions"].as_array().cloned().unwrap_or_default();
                for condition in conditions {
                    if condition["$patch"] == "delete" {
                        known.retain(|known| known["type"] != condition["type"]);
                        continue;
                    }
                    match known
                        .iter_mut()
                        .find(|known| known["type"] == condition["type"])
                    {
                        Some(known) => merge(known, condition),
                        None => known.push(condition.clone()),
                    }
                }
                target["conditions"] = Value::Array(known);
            }
            (_, Value::Array(items)) => {
                let items = items.iter().filter(|item| item.get("$patch").is_none());
                target[field] = Value::Array(items.cloned().collect());
            }
            _ => merge(&mut target[field], value),
        }
    }
}

fn key(resource: &str, object: &Value) -> String {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or("default")
            .to_owned()
    };
    format!("{resource}/{}/{}", text("namespace"), text("name"))
}

fn answer(value: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed())
}

fn status(code: StatusCode) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                      "message": code.to_string(), "reason": if code == StatusCode::NOT_FOUND { "NotFound" } else { "Test" }, "code": code.as_u16()});
    let mut response = answer(&body);
    *response.status_mut() = code;
    response
}
