//! Requests that are not about a resource: discovery, OpenAPI, health, metrics, the token issuer's keys.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use windlass_machinery::status::ApiError;

use crate::aggregator::Remote;
use crate::context::Context;
use crate::negotiation::Transform;
use crate::openapi::{self, OpenApi, V2Form};
use crate::{Body, discovery, encode, health, response};

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) async fn serve(context: &Context) -> Result<Response<Body>, ApiError> {
    if !matches!(context.info.verb, "get" | "head") {
        return Err(ApiError::method_not_allowed());
    }
    if let Some(answer) = health::serve(context).await {
        return Ok(answer);
    }
    let server = &context.server;
    let catalog = server.catalog.load();
    let remotes = server.aggregator.available();
    let path = context.info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let found = match segments.as_slice() {
        [] => Some(json!({"paths": root_paths(&catalog.groups(), &remotes)})),
        ["version"] => Some(discovery::version(&context.server.build)),
        ["api"] | ["apis"] => return Ok(groups(context, segments[0] == "api")),
        ["api", version] => discovery::resources(&catalog, "", version),
        ["apis", group] => {
            discovery::group(&catalog, group).or_else(|| discovery::remote_group(&remotes, group))
        }
        ["apis", group, version] => discovery::resources(&catalog, group, version),
        ["openapi", "v3"] => {
            let mut index = server.openapi.index(&catalog);
            for remote in &remotes {
                let path = format!("apis/{}/{}", remote.group, remote.version);
                let url = format!("/openapi/v3/{path}");
                index["paths"][path] = json!({"serverRelativeURL": url});
            }
            Some(index)
        }
        ["openapi", "v3", rest @ ..] => return openapi_document(context, &rest.join("/")),
        ["openapi", "v2"] => return openapi_v2(context).await,
        ["metrics"] => return Ok(metrics(context)),
        ["metrics", "slis"] => {
            let text = response::full(server.health.text());
            return Ok(response::with_type(StatusCode::OK, PROMETHEUS_TEXT, text));
        }
        [".well-known", "openid-configuration"] => {
            let tokens = server.authenticator.service_account_tokens();
            let uri = format!("https://{}/openid/v1/jwks", address(context));
            Some(tokens.discovery(&uri))
        }
        ["openid", "v1", "jwks"] => {
            let keys = server.authenticator.service_account_tokens().key_set();
            let body = response::full(encode::object(&keys));
            return Ok(response::with_type(
                StatusCode::OK,
                "application/jwk-set+json",
                body,
            ));
        }
        _ => None,
    };
    let value: Value = found.ok_or_else(ApiError::unknown_path)?;
    Ok(response::object(
        StatusCode::OK,
        context.accepted.encoding,
        &value,
    ))
}

fn address(context: &Context) -> String {
    let server = &context.server;
    std::net::SocketAddr::new(server.advertise_address, server.secure_port).to_string()
}

fn groups(context: &Context, core: bool) -> Response<Body> {
    let catalog = context.server.catalog.load();
    if let Transform::Discovery { beta } = context.accepted.transform {
        let mut list = discovery::aggregated(&catalog, core, beta);
        if !core {
            discovery::add_aggregated(&mut list, &context.server.aggregator.available());
        }
        let bytes = encode::object(&list);
        let content_type = if beta {
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
        } else {
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        };
        let hash = openapi::hexadecimal(&Sha256::digest(&bytes));
        let mut answer = known(context, &hash).unwrap_or_else(|| {
            response::with_type(StatusCode::OK, content_type, response::full(bytes))
        });
        tag(&mut answer, &hash);
        // Who accepts no such document gets another one here.
        let accept = HeaderValue::from_static("Accept");
        answer.headers_mut().append(VARY, accept);
        return answer;
    }
    let value = if core {
        discovery::versions(&address(context))
    } else {
        let mut list = discovery::groups(&catalog);
        discovery::add_groups(&mut list, &context.server.aggregator.available());
        list
    };
    response::object(StatusCode::OK, context.accepted.encoding, &value)
}

fn openapi_document(context: &Context, path: &str) -> Result<Response<Body>, ApiError> {
    let server = &context.server;
    let document = server.openapi.document(&server.catalog.load(), path);
    let (bytes, hash) = document.ok_or_else(ApiError::unknown_path)?;
    if let Some(answer) = known(context, &hash) {
        return Ok(answer);
    }
    let mut answer = response::json_bytes(StatusCode::OK, bytes);
    tag(&mut answer, &hash);
    // An address with the hash in it never changes its content.
    if context.query.get("hash") == Some(&hash) {
        let forever = HeaderValue::from_static("public, immutable");
        answer.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(answer)
}

fn accepts(context: &Context, form: &str) -> bool {
    let accepted = context.headers.get(http::header::ACCEPT);
    accepted.is_some_and(|value| value.to_str().is_ok_and(|text| text.contains(form)))
}

async fn openapi_v2(context: &Context) -> Result<Response<Body>, ApiError> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    // What clients ask for is no valid media type, so it cannot be what they are answered with.
    const ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let (form, content_type) = if accepts(context, PROTOBUF) || accepts(context, ASKED) {
        (V2Form::Protobuf, PROTOBUF)
    } else {
        (V2Form::Json, "application/json")
    };
    let server = context.server.clone();
    let remotes = server.aggregator.available();
    let others: Vec<_> = remotes.iter().filter_map(|r| r.definitions()).collect();
    let hash = OpenApi::v2_hash(&server.catalog.load(), &others, form);
    if let Some(answer) = known(context, &hash) {
        return Ok(answer);
    }
    // It takes a while to make.
    let made =
        tokio::task::spawn_blocking(move || OpenApi::v2(&server.catalog.load(), &others, form));
    let bytes = made.await.map_err(ApiError::internal)?;
    let mut answer = response::with_type(StatusCode::OK, content_type, response::full(bytes));
    tag(&mut answer, &hash);
    Ok(answer)
}

/// The answer to a client that has the document of this hash.
fn known(context: &Context, hash: &str) -> Option<Response<Body>> {
    let etag = etag(hash);
    let given = context.headers.get_all(IF_NONE_MATCH).iter();
    given
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == etag)
        .then(|| {
            let mut answer = Response::new(response::full(""));
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            tag(&mut answer, hash);
            answer
        })
}

/// Names the document, so that a client need not be sent it again.
fn tag(answer: &mut Response<Body>, hash: &str) {
    if let Ok(etag) = etag(hash).parse() {
        answer.headers_mut().insert(ETAG, etag);
    }
}

fn etag(hash: &str) -> String {
    format!("\"{hash}\"")
}

fn metrics(context: &Context) -> Response<Body> {
    let open = accepts(context, "application/openmetrics-text");
    let text = context.server.metrics.encode(&context.server, open);
    let content_type = match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => PROMETHEUS_TEXT,
    };
    response::with_type(StatusCode::OK, content_type, response::full(text))
}

fn root_paths(groups: &[(String, Vec<String>)], remotes: &[Arc<Remote>]) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups.iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions
                .iter()
                .map(|version| format!("/apis/{group}/{version}")),
        );
    }
    for remote in remotes {
        paths.push(format!("/apis/{}", remote.group));
        paths.push(format!("/apis/{}/{}", remote.group, remote.version));
    }
    let fixed = [
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(fixed.map(str::to_owned));
    paths.sort();
    paths.dedup();
    paths
}
