//! An API server that lives in memory: it lists, it watches, and one slice changes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tower::util::BoxCloneService;

use super::table::{PORT, Service, TARGET_PORT, Table};

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone)]
pub struct MemoryApi {
    services: Bytes,
    slices: Bytes,
    changes: broadcast::Sender<Bytes>,
    revision: Arc<AtomicU64>,
}

impl MemoryApi {
    pub fn new(table: &Table) -> Self {
        Self {
            services: list("v1", "ServiceList", table.services.iter().map(service)),
            slices: list(
                "discovery.k8s.io/v1",
                "EndpointSliceList",
                table.services.iter().map(|service| slice(service, 1)),
            ),
            changes: broadcast::channel(64).0,
            revision: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Tells the watchers that a Service's endpoints have changed.
    pub fn change(&self, service: &Service) {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let event = json!({ "type": "MODIFIED", "object": slice(service, revision) });
        // Nobody watches before the first list has been read.
        let _ = self.changes.send(format!("{event}\n").into());
    }

    pub fn service(
        &self,
    ) -> BoxCloneService<Request<kube::client::Body>, Response<Body>, Infallible> {
        let api = self.clone();
        BoxCloneService::new(tower::service_fn(
            move |request: Request<kube::client::Body>| {
                let answer = api.answer(&request);
                async move { Ok(answer) }
            },
        ))
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Response<Body> {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let plural = request.uri().path().rsplit('/').next();
        let body = match (watches, plural) {
            (false, Some("services")) => Full::new(self.services.clone()).boxed_unsync(),
            (false, Some("endpointslices")) => Full::new(self.slices.clone()).boxed_unsync(),
            // The node's own object, by name or by selector, and what else there is none of.
            (false, Some("node")) => Full::new(node().to_string().into()).boxed_unsync(),
            (false, Some("nodes")) => {
                Full::new(list("v1", "NodeList", std::iter::once(node()))).boxed_unsync()
            }
            (false, _) => Full::new(list("v1", "List", std::iter::empty())).boxed_unsync(),
            (true, Some("endpointslices")) => {
                let changes =
                    futures::stream::unfold(self.changes.subscribe(), async |mut changes| {
                        let change = changes.recv().await.ok()?;
                        Some((Ok(Frame::data(change)), changes))
                    });
                StreamBody::new(changes).boxed_unsync()
            }
            (true, _) => StreamBody::new(futures::stream::pending()).boxed_unsync(),
        };
        let mut response = Response::new(body);
        let json = http::HeaderValue::from_static("application/json");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, json);
        response
    }
}

fn list(api_version: &str, kind: &str, items: impl Iterator<Item = Value>) -> Bytes {
    let items: Vec<Value> = items.collect();
    json!({ "apiVersion": api_version, "kind": kind, "metadata": { "resourceVersion": "1" }, "items": items })
        .to_string()
        .into()
}

fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node", "uid": "node", "resourceVersion": "1" },
    })
}

fn service(service: &Service) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&service.name, &service.name, 1),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.address,
            "clusterIPs": [service.address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{ "name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT }],
            "selector": { "app": service.name },
        },
        "status": { "loadBalancer": {} },
    })
}

fn slice(service: &Service, revision: u64) -> Value {
    let endpoints = service.backends.iter().map(|backend| {
        json!({
            "addresses": [backend.ip()],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node",
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&format!("{}-slice", service.name), &service.name, revision),
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": TARGET_PORT, "protocol": "TCP" }],
    })
}

fn metadata(name: &str, service: &str, revision: u64) -> Value {
    json!({
        "name": name,
        "namespace": "bench",
        "uid": format!("00000000-0000-0000-0000-{name:0>12}"),
        "resourceVersion": revision.to_string(),
        "labels": { "kubernetes.io/service-name": service },
    })
}
