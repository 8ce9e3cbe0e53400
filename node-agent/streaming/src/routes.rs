//! The paths, which are the kubelet's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use windlass_cri::{Runtime, StreamTarget};

use crate::logs::{self, LogOptions};
use crate::lookup::{ContainerInstance, ContainerInstances, LookupError, PodLookup};
use crate::node_logs;
use crate::query::{Query, decode};
use crate::respond::{self, Body, Refusal};
use crate::stats::Stats;
use crate::tunnel;

pub(crate) struct Routes {
    runtime: Runtime,
    lookup: Arc<dyn PodLookup>,
    stats: Stats,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The node's settings, in the form of the kubelet's configuration.
    pub(crate) configuration: serde_json::Value,
}

impl Routes {
    pub(crate) fn new(
        node_name: String,
        runtime: Runtime,
        lookup: Arc<dyn PodLookup>,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        let stats = Stats::new(node_name, runtime.clone(), lookup.clone());
        Self {
            runtime,
            lookup,
            stats,
            metrics,
            configuration: json!({"kubeletconfig": {}}),
        }
    }

    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let segments: Vec<String> = request
            .uri()
            .path()
            .split('/')
            .skip(1)
            .map(|part| decode(&part.replace('+', "%2B")))
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match segments[..] {
            ["exec" | "attach" | "portForward", ..] => {}
            _ if request.method() != Method::GET => {
                let text = format!("{} is not allowed here", request.method());
                return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
            }
            _ => {}
        }
        match segments[..] {
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Ok(respond::text("ok")),
            ["pods"] | ["pods", ""] => Ok(respond::json(&self.pods())),
            ["metrics"] => {
                let text = (self.metrics)() + &self.stats.volume_metrics().await;
                Ok(respond::with_type(PROMETHEUS, text))
            }
            ["metrics", "resource"] => Ok(respond::with_type(
                PROMETHEUS,
                self.stats.resource_metrics().await,
            )),
            ["metrics", "probes"] => {
                Ok(respond::with_type(PROMETHEUS, self.lookup.probe_metrics()))
            }
            ["metrics", "cadvisor"] => {
                let text = self.stats.cadvisor_metrics().await?;
                Ok(respond::with_type(PROMETHEUS, text))
            }
            ["configz"] => Ok(respond::json(&self.configuration)),
            ["runningpods"] | ["runningpods", ""] => Ok(respond::json(&self.running_pods())),
            ["stats", "summary"] => {
                let summary = self.stats.summary().await;
                Ok(respond::json(
                    &summary.map_err(|error| Refusal::internal(error.to_string()))?,
                ))
            }
            ["logs", ref parts @ ..] => node_logs::answer(node_logs::FOLDER.as_ref(), parts).await,
            ["containerLogs", namespace, pod, container] => {
                self.logs(request, &query, namespace, pod, container).await
            }
            ["exec", namespace, pod, container] => {
                self.exec(request, &query, (namespace, pod, None, container))
                    .await
            }
            ["exec", namespace, pod, uid, container] => {
                self.exec(request, &query, (namespace, pod, Some(uid), container))
                    .await
            }
            ["attach", namespace, pod, container] => {
                self.attach(request, &query, (namespace, pod, None, container))
                    .await
            }
            ["attach", namespace, pod, uid, container] => {
                self.attach(request, &query, (namespace, pod, Some(uid), container))
                    .await
            }
            ["portForward", namespace, pod] => {
                self.port_forward(request, &query, (namespace, pod, None))
                    .await
            }
            ["portForward", namespace, pod, uid] => {
                self.port_forward(request, &query, (namespace, pod, Some(uid)))
                    .await
            }
            _ => Err(Refusal::not_found("404 page not found")),
        }
    }

    fn pods(&self) -> serde_json::Value {
        pod_list(self.lookup.pods())
    }

    /// Those of which at least one container runs, with only what tells them apart.
    fn running_pods(&self) -> serde_json::Value {
        let runs = |status: &serde_json::Value| status["state"]["running"].is_object();
        let running = self.lookup.pods().into_iter().filter_map(|pod| {
            let statuses = pod["status"]["containerStatuses"].as_array()?;
            let containers: Vec<_> = statuses
                .iter()
                .filter(|status| runs(status))
                .map(|status| json!({"name": status["name"], "image": status["image"], "resources": {}}))
                .collect();
            let metadata = &pod["metadata"];
            (!containers.is_empty()).then(|| {
                json!({
                    "metadata": {
                        "name": metadata["name"], "namespace": metadata["namespace"],
                        "uid": metadata["uid"], "creationTimestamp": null,
                    },
                    "spec": {"containers": containers},
                    "status": {},
                })
            })
        });
        pod_list(running.collect())
    }

    async fn logs(
        &self,
        request: Request<Incoming>,
        query: &Query,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Response<Body>, Refusal> {
        let options = LogOptions::parse(query, SystemTime::now()).map_err(Refusal::bad_request)?;
        let instances = self.lookup.container(namespace, pod, None, container)?;
        let instance = if options.previous {
            instances.previous.ok_or_else(|| {
                Refusal::bad_request(format!(
                    "previous terminated container {container:?} in pod {pod:?} not found"
                ))
            })?
        } else {
            current(instances, pod, container)?
        };
        let finished = if instance.running {
            self.lookup.finished(&instance.id)
        } else {
            Box::pin(std::future::ready(()))
        };
        let stream = logs::read(instance.log_path.clone(), options, finished)
            .await
            .map_err(|error| unreadable(&error, container, instance.log_path))?;
        if tunnel::wants_web_socket(request.headers()) {
            return tunnel::open_log(request, stream);
        }
        let frames = futures::stream::unfold(stream, |mut stream| async {
            let next = stream.recv().await?;
            Some((next.map(Frame::data), stream))
        });
        let mut response = respond::text("");
        *response.body_mut() = StreamBody::new(frames).boxed_unsync();
        Ok(response)
    }

    async fn exec(
        &self,
        request: Request<Incoming>,
        query: &Query,
        (namespace, pod, uid, container): (&str, &str, Option<&str>, &str),
    ) -> Result<Response<Body>, Refusal> {
        let instance = self.running(namespace, pod, uid, container)?;
        let command = query.all("command");
        if command.is_empty() {
            return Err(Refusal::bad_request(
                "you must specify at least 1 command for the container",
            ));
        }
        let target = stream_target(query)?;
        let kind = tunnel::Kind::of(&request, tunnel::To::Container)?;
        let url = self
            .runtime
            .exec_url(&instance.id, &command, target)
            .await?;
        tunnel::open(request, kind, &url, target).await
    }

    async fn attach(
        &self,
        request: Request<Incoming>,
        query: &Query,
        (namespace, pod, uid, container): (&str, &str, Option<&str>, &str),
    ) -> Result<Response<Body>, Refusal> {
        let instance = self.running(namespace, pod, uid, container)?;
        let target = stream_target(query)?;
        let kind = tunnel::Kind::of(&request, tunnel::To::Container)?;
        let url = self.runtime.attach_url(&instance.id, target).await?;
        tunnel::open(request, kind, &url, target).await
    }

    async fn port_forward(
        &self,
        request: Request<Incoming>,
        query: &Query,
        (namespace, pod, uid): (&str, &str, Option<&str>),
    ) -> Result<Response<Body>, Refusal> {
        let sandbox = self.lookup.sandbox(namespace, pod, uid)?;
        if !sandbox.ready {
            return Err(Refusal::bad_request(format!("pod {pod:?} is not running")));
        }
        // Web sockets name the ports here; SPDY names them with each stream. Both `port=1&port=2` and
        // `ports=1,2` are in use.
        let mut ports = query.all("port");
        ports.extend(query.all("ports"));
        let ports: Result<Vec<i32>, _> = ports
            .iter()
            .flat_map(|list| list.split(','))
            .map(|port| port.parse::<u16>().map(i32::from))
            .collect();
        let ports =
            ports.map_err(|_| Refusal::bad_request("a port is not a number up to 65535"))?;
        let kind = tunnel::Kind::of(&request, tunnel::To::Ports)?;
        let url = self.runtime.port_forward_url(&sandbox.id, &ports).await?;
        let none = StreamTarget {
            stdin: false,
            stdout: false,
            stderr: false,
            tty: false,
        };
        tunnel::open(request, kind, &url, none).await
    }

    fn running(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
        container: &str,
    ) -> Result<ContainerInstance, Refusal> {
        let instances = self.lookup.container(namespace, pod, uid, container)?;
        let running = instances.current.filter(|instance| instance.running);
        // Without a colon: kubectl tries to read a refusal as YAML, and would say nothing.
        running.ok_or_else(|| Refusal::internal(format!("container not found ({container:?})")))
    }
}

fn pod_list(items: Vec<serde_json::Value>) -> serde_json::Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn current(
    instances: ContainerInstances,
    pod: &str,
    container: &str,
) -> Result<ContainerInstance, Refusal> {
    instances.current.ok_or_else(|| {
        let reason = match instances.waiting_reason.as_deref() {
            Some("ErrImagePull") => "image can't be pulled",
            Some("ImagePullBackOff") => "trying and failing to pull image",
            Some(other) => other,
            None => "ContainerCreating",
        };
        Refusal::bad_request(format!(
            "container {container:?} in pod {pod:?} is waiting to start: {reason}"
        ))
    })
}

/// The kubelet's names of the streams, and the API's.
fn stream_target(query: &Query) -> Result<StreamTarget, Refusal> {
    let either = |one: &str, other: &str| -> Result<bool, Refusal> {
        let flag = |name| query.flag(name).map_err(Refusal::bad_request);
        Ok(flag(one)? || flag(other)?)
    };
    let tty = either("tty", "tty")?;
    let target = StreamTarget {
        stdin: either("input", "stdin")?,
        stdout: either("output", "stdout")?,
        // With a terminal there is one output.
        stderr: either("error", "stderr")? && !tty,
        tty,
    };
    if !(target.stdin || target.stdout || target.stderr) {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal::bad_request(text));
    }
    Ok(target)
}

fn unreadable(error: &io::Error, container: &str, path: PathBuf) -> Refusal {
    if error.kind() == io::ErrorKind::NotFound {
        return Refusal::not_found(format!(
            "the log of container {container:?} has been removed"
        ));
    }
    tracing::warn!(%error, path = %path.display(), "a container's log cannot be read");
    Refusal::internal(format!(
        "the log of container {container:?} cannot be read: {error}"
    ))
}

impl From<LookupError> for Refusal {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::NoPod { .. } => Self::not_found(error.to_string()),
            LookupError::NoContainer { .. } => Self::bad_request(error.to_string()),
        }
    }
}

impl From<windlass_cri::Error> for Refusal {
    fn from(error: windlass_cri::Error) -> Self {
        match error {
            windlass_cri::Error::NotFound { .. } => Self::not_found(error.to_string()),
            other => {
                tracing::warn!(error = %other, "the runtime refused a stream");
                Self::internal(other.to_string())
            }
        }
    }
}
