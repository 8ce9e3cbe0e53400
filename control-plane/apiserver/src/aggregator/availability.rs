//! Whether the servers behind APIServices answer, and what they serve.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, HOST};
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Definitions, GROUP, PLURAL, Remote, State};
use crate::authn::{GROUP_MASTERS, UserInfo};
use crate::cacher::{Filter, From};
use crate::connections;
use crate::context::now_text;
use crate::outbound::{self, Target, Trust};
use crate::server::ApiServer;

/// Between looks at servers that answer.
const QUIET: Duration = Duration::from_secs(15);
/// Between looks while one does not, or after a failure.
const EAGER: Duration = Duration::from_secs(1);
/// How long a document with types is taken for the present one.
const FRESH: Duration = Duration::from_secs(60);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest list of resources that is read, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Follows the APIServices for ever.
pub(super) async fn follow(server: &Arc<ApiServer>) {
    loop {
        if let Err(error) = look_often(server).await {
            tracing::warn!(%error, "APIServices not in step");
        }
        tokio::time::sleep(EAGER).await;
    }
}

async fn look_often(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(GROUP, PLURAL) else {
        return Err(ApiError::internal("APIServices are not served"));
    };
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let now = From::Now {
        with_initial: false,
    };
    let watch = server.caches.watch(&cacher, everything.clone(), now)?;
    loop {
        let mut objects = Vec::new();
        for entry in cacher.entries(&everything) {
            let object = entry.decode()?;
            if object["spec"]["service"].is_object() {
                objects.push(object);
            }
        }
        let all_answer = look(server, objects).await;
        let pause = if all_answer { QUIET } else { EAGER };
        // A change of any APIService is worth a look at once.
        if let Ok(events) = tokio::time::timeout(pause, watch.next()).await {
            events?;
        }
    }
}

/// Asks every server once; answers whether all of them answered.
async fn look(server: &Arc<ApiServer>, objects: Vec<Value>) -> bool {
    let known = server.aggregator.remotes.load_full();
    let mut remotes = HashMap::new();
    let mut pairs = Vec::new();
    for object in objects {
        let remote = Arc::new(remote(&object, &known));
        remotes.insert(
            (remote.group.clone(), remote.version.clone()),
            remote.clone(),
        );
        pairs.push((object, remote));
    }
    server.aggregator.remotes.store(Arc::new(remotes));
    let asked = pairs.into_iter().map(|(object, remote)| async move {
        let found = match unreachable(server, &remote) {
            Some(why) => Err(why),
            None => discover(server, &remote)
                .await
                .map_err(|why| ("FailedDiscoveryCheck", why)),
        };
        let verdict = match &found {
            Ok(_) => ("True", "Passed", "all checks passed".to_owned()),
            Err((reason, why)) => ("False", *reason, why.clone()),
        };
        let available = found.is_ok();
        let definitions = match available {
            true => definitions(server, &remote).await,
            false => None,
        };
        *remote.state.write() = State {
            available,
            resources: found.ok(),
            definitions,
        };
        if let Err(error) = tell(server, object, verdict).await {
            tracing::debug!(%error, "an APIService's status was not written");
        }
        available
    });
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().all(|available| available)
}

/// The remote of an APIService, with what was known of it.
fn remote(object: &Value, known: &HashMap<(String, String), Arc<Remote>>) -> Remote {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    let service = &spec["service"];
    let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok());
    let trust = if spec["insecureSkipTLSVerify"] == true {
        Trust::Anything
    } else {
        let bundle = spec["caBundle"].as_str().unwrap_or_default();
        Trust::Bundle(STANDARD.decode(bundle).unwrap_or_default())
    };
    let state = known
        .get(&(group.clone(), version.clone()))
        .map(|remote| remote.state.read().clone());
    Remote {
        group,
        version,
        target: Target::Service {
            namespace: text(&service["namespace"]),
            name: text(&service["name"]),
            port: port.unwrap_or(443),
            path: String::new(),
        },
        trust,
        version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
        state: parking_lot::RwLock::new(state.unwrap_or_default()),
    }
}

/// Why there is nobody to be asked, with the reasons that users of upstream know.
fn unreachable(server: &ApiServer, remote: &Remote) -> Option<(&'static str, String)> {
    let Target::Service {
        namespace,
        name,
        port,
        ..
    } = &remote.target
    else {
        return None;
    };
    let services = server.cacher("", "services")?;
    let service = services.get(namespace, name);
    let Some(service) = service.and_then(|entry| entry.decode().ok()) else {
        let why = format!("service/{name} in {namespace:?} is not present");
        return Some(("ServiceNotFound", why));
    };
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.find(|found| found["port"] == *port) else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(("ServicePortError", why));
    };
    let endpoint = connections::service_endpoint(server, &service, &port.to_string());
    let port_name = found["name"].as_str().unwrap_or_default();
    endpoint.err().map(|_| {
        let why = format!(
            "endpoints for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        ("MissingEndpoints", why)
    })
}

/// The resources that the other server says it has.
async fn discover(server: &ApiServer, remote: &Remote) -> Result<Value, String> {
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let asked = tokio::time::timeout(PATIENCE, ask(server, remote, &path)).await;
    let asked = asked.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
    asked.map_err(|why| format!("failing or missing response from {path}: {why}"))
}

/// The types of its OpenAPI v2 document, read again after a while. Many small servers have none.
async fn definitions(server: &ApiServer, remote: &Remote) -> Option<Definitions> {
    let known = remote.definitions();
    if known
        .as_ref()
        .is_some_and(|known| known.read.elapsed() < FRESH)
    {
        return known;
    }
    let asked = tokio::time::timeout(PATIENCE, ask(server, remote, "/openapi/v2")).await;
    let mut document = asked.ok()?.ok()?;
    let types = document.get_mut("definitions").map(Value::take);
    let Some(Value::Object(types)) = types else {
        return known;
    };
    let text = serde_json::to_vec(&types).ok()?;
    Some(Definitions {
        hash: crate::openapi::hash_of(&text),
        types: Arc::new(types),
        read: Instant::now(),
    })
}

async fn ask(server: &ApiServer, remote: &Remote, path: &str) -> Result<Value, String> {
    let connection = super::connect(server, remote).await?;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(HOST, &connection.host)
        .header(ACCEPT, "application/json")
        .body(Full::<bytes::Bytes>::default())
        .map_err(|e| text(&e))?;
    let aggregator = UserInfo::new("system:kube-aggregator", &[GROUP_MASTERS]);
    request.headers_mut().extend(super::headers(&aggregator));
    let (status, body) = outbound::exchange(connection.io, request, MAX_ANSWER).await?;
    if !status.is_success() {
        return Err(format!("bad status: {status}"));
    }
    serde_json::from_slice(&body).map_err(|e| text(&e))
}

/// Writes the condition, if it says anything new.
pub(super) async fn tell(
    server: &Arc<ApiServer>,
    mut object: Value,
    (status, reason, message): (&str, &str, String),
) -> Result<(), ApiError> {
    let conditions = object["status"]["conditions"].as_array();
    let old = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Available");
    if let Some(old) = old
        && old["status"] == status
        && old["reason"] == reason
        && old["message"] == message.as_str()
    {
        return Ok(());
    }
    let since = old
        .filter(|old| old["status"] == status)
        .and_then(|old| old["lastTransitionTime"].as_str())
        .map_or_else(now_text, str::to_owned);
    let others = object["status"]["conditions"].as_array();
    let others = others
        .into_iter()
        .flatten()
        .filter(|c| c["type"] != "Available");
    let own = json!({
        "type": "Available", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since,
    });
    let conditions: Vec<Value> = std::iter::once(own).chain(others.cloned()).collect();
    object["status"]["conditions"] = conditions.into();
    let path = format!("/apis/{GROUP}/v1/{PLURAL}/{}/status", meta::name(&object));
    server.replace_seen(&path, &object).await
}
