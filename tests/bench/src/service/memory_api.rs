//! An API server for one reader: it lists by pages, as its client asks for them, it watches, and one slice changes.
//!
//! Its objects lie in a file as they are sent, so that the memory of the process is the agent's.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response};
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
    services: Arc<Objects>,
    slices: Arc<Objects>,
    changes: broadcast::Sender<Bytes>,
    revision: Arc<AtomicU64>,
}

impl MemoryApi {
    pub fn new(table: &Table) -> Result<Self> {
        let services = table.services.iter();
        Ok(Self {
            services: Objects::write("v1", "ServiceList", services.clone().map(service))?,
            slices: Objects::write(
                "discovery.k8s.io/v1",
                "EndpointSliceList",
                services.map(|service| slice(service, 1)),
            )?,
            changes: broadcast::channel(64).0,
            revision: Arc::new(AtomicU64::new(1)),
        })
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
                let api = api.clone();
                async move {
                    let body = match *request.method() {
                        Method::GET => api.answer(&request),
                        _ => taken(request).await,
                    };
                    let mut response = Response::new(body);
                    let json = http::HeaderValue::from_static("application/json");
                    response
                        .headers_mut()
                        .insert(http::header::CONTENT_TYPE, json);
                    Ok(response)
                }
            },
        ))
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Body {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let plural = request.uri().path().rsplit('/').next();
        match (watches, plural) {
            (false, Some("services")) => self.services.page(request.uri().query()),
            (false, Some("endpointslices")) => self.slices.page(request.uri().query()),
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
        }
    }
}

/// Objects of a kind, one after another in a file without a name.
struct Objects {
    head: String,
    file: File,
    /// Where each begins, and where the last ends.
    offsets: Vec<u32>,
}

impl Objects {
    fn write(
        api_version: &str,
        kind: &str,
        objects: impl Iterator<Item = Value>,
    ) -> Result<Arc<Self>> {
        let mut file = std::io::BufWriter::new(tempfile::tempfile().context("making a file")?);
        let mut offsets = vec![0];
        let mut end = 0;
        for object in objects {
            let text = format!("{object},");
            file.write_all(text.as_bytes())?;
            end += text.len();
            offsets.push(u32::try_from(end).context("too many objects")?);
        }
        Ok(Arc::new(Self {
            head: format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}","metadata":"#),
            file: file.into_inner().context("writing the objects")?,
            offsets,
        }))
    }

    /// What `limit` and `continue` of a query ask for.
    fn page(&self, query: Option<&str>) -> Body {
        let asked = |name: &str| {
            let pairs = query.into_iter().flat_map(|query| query.split('&'));
            let mut values = pairs.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            values.find_map(|value| value.parse::<usize>().ok())
        };
        let count = self.offsets.len() - 1;
        let from = asked("continue").unwrap_or(0).min(count);
        let to = asked("limit").map_or(count, |limit| count.min(from + limit.max(1)));
        let (first, end) = (self.offsets[from], self.offsets[to]);
        let mut objects = vec![0; (end - first) as usize];
        if let Err(error) = self.file.read_exact_at(&mut objects, first.into()) {
            eprintln!("reading the objects: {error}");
        }
        // The comma behind the last one.
        objects.pop();
        let mut metadata = json!({ "resourceVersion": "1" });
        if to < count {
            metadata["continue"] = to.to_string().into();
        }
        let mut body = format!(r#"{}{metadata},"items":["#, self.head).into_bytes();
        body.append(&mut objects);
        body.extend(b"]}");
        Full::new(body.into()).boxed_unsync()
    }
}

/// What the agent says of its node, an Event or a condition, is for whoever measures to read.
async fn taken(request: Request<kube::client::Body>) -> Body {
    let is_patch = request.method() == Method::PATCH;
    let said = match request.into_body().collect_bytes().await {
        Ok(body) => body,
        Err(error) => {
            tracing::warn!(%error, "what the agent says cannot be read");
            return Full::default().boxed_unsync();
        }
    };
    tracing::warn!(said = %String::from_utf8_lossy(&said), "the agent has something to say");
    let object = if is_patch {
        node().to_string().into()
    } else {
        said
    };
    Full::new(object).boxed_unsync()
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
