//! The pipeline that every request passes: identity, permission, dispatch, and what is noted about it.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use rustls_pki_types::CertificateDer;
use windlass_api::resource::Verbs;
use windlass_machinery::status::ApiError;
use windlass_machinery::time;

use crate::audit::{self, Account};
use crate::authn::{UserInfo, impersonation};
use crate::authz::Decision;
use crate::context::{Context, now};
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::{Body, compress, health, negotiation, pretty, response};

/// Request extension: the certificates that the client showed on its connection.
#[derive(Clone)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// Request extension: where the connection comes from.
#[derive(Clone, Copy)]
pub(crate) struct PeerAddress(pub std::net::SocketAddr);

/// Request extension: who a request made inside this process comes from.
#[derive(Clone)]
pub struct LocalIdentity(pub Arc<UserInfo>);

/// The server as a `tower::Service`.
#[derive(Clone)]
pub struct ApiService {
    server: Arc<ApiServer>,
}

impl ApiService {
    pub(crate) fn new(server: Arc<ApiServer>) -> Self {
        Self { server }
    }
}

impl tower::Service<Request<Body>> for ApiService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send + 'static>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.server.clone();
        Box::pin(async move { Ok(answer(server, request).await) })
    }
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

async fn answer(server: Arc<ApiServer>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let audit_id = audit_id(request.headers());
    let labels = server.metrics.begin(&info, request.method());
    // Neither watches nor what only passes through.
    let compressible = info.verb != "watch"
        && info.subresource.is_empty()
        && compress::accepted(request.headers());
    let indented = pretty::wanted(&info, &query, request.headers());

    let id = audit_id.to_str().unwrap_or_default().to_owned();
    let handled = AssertUnwindSafe(pipeline(server.clone(), request, info.clone(), query, id));
    let mut response = match handled.catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            if error.code >= 500 {
                tracing::warn!(path = info.path, verb = info.verb, code = error.code, %error, "request failed");
            }
            response::error(&error)
        }
        Err(_) => {
            tracing::error!(
                path = info.path,
                verb = info.verb,
                "request handler panicked"
            );
            response::error(&ApiError::internal("the request handler panicked"))
        }
    };
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID, audit_id);
    headers
        .entry(http::header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, private"));
    tracing::debug!(
        path = info.path,
        verb = info.verb,
        code = response.status().as_u16(),
        micros = started.elapsed().as_micros(),
        "request"
    );
    if indented {
        response = pretty::indent(response);
    }
    if compressible {
        response = compress::compress(response);
    }
    let (parts, body) = response.into_parts();
    let body = labels.finish(parts.status, started, body);
    Response::from_parts(parts, body)
}

/// The client's own id, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    headers
        .get(AUDIT_ID)
        .filter(|id| id.len() <= 64)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a uuid is plain text")
        })
}

async fn pipeline(
    server: Arc<ApiServer>,
    mut request: Request<Body>,
    info: RequestInfo,
    query: Query,
    audit_id: String,
) -> Result<Response<Body>, ApiError> {
    let user = authenticate(&server, &mut request)?;
    let user = impersonation::effective(user, request.headers(), &*server.authorizer)?;
    let Some(audit) = server.audit.as_ref() else {
        return work(server.clone(), request, info, query, user, &mut None).await;
    };
    let uri = request
        .uri()
        .path_and_query()
        .map_or("", |p| p.as_str())
        .to_owned();
    let source = request.extensions().get::<PeerAddress>();
    let source = source.map(|peer| peer.0.ip().to_string());
    let headers = request.headers();
    let mut account = audit.begin(&info, &user, headers, &uri, source.as_deref(), &audit_id);
    let lasts = lasts(&info);
    let worked = work(server.clone(), request, info, query, user, &mut account).await;
    let answer = worked.unwrap_or_else(|error| response::error(&error));
    Ok(match account {
        Some(account) => audit.complete(account, answer, lasts).await,
        None => answer,
    })
}

/// What becomes of the request of a known user; `account` is told what it wants to know.
async fn work(
    server: Arc<ApiServer>,
    request: Request<Body>,
    info: RequestInfo,
    query: Query,
    user: UserInfo,
    account: &mut Option<Account>,
) -> Result<Response<Body>, ApiError> {
    let (seat, flow) = server.flow_control.admit(&user, &info).await?;
    let worked = admitted(server, request, info, query, user, account).await;
    let mut answered = worked.unwrap_or_else(|error| response::error(&error));
    flow.tell(answered.headers_mut());
    // Long answers go on without it.
    drop(seat);
    Ok(answered)
}

/// What becomes of a request that has its seat.
async fn admitted(
    server: Arc<ApiServer>,
    request: Request<Body>,
    info: RequestInfo,
    query: Query,
    user: UserInfo,
    account: &mut Option<Account>,
) -> Result<Response<Body>, ApiError> {
    if !health::is_public(&info) {
        let authorized = authorize(&server, &user, &info);
        if let Some(account) = account {
            let reason = authorized.as_ref().err().map(ToString::to_string);
            account.decided(authorized.is_ok(), reason.as_deref().unwrap_or_default());
        }
        authorized?;
    }
    let accepted = match negotiation::accept(request.headers(), offers(&server, &info)) {
        Ok(accepted) => accepted,
        // Logs, health and the like answer in plain text whatever is accepted.
        Err(error) if info.is_resource && info.subresource.is_empty() => return Err(error),
        Err(_) => negotiation::Accepted {
            encoding: negotiation::Encoding::Json,
            transform: negotiation::Transform::None,
        },
    };
    let (mut parts, mut body) = request.into_parts();
    if let Some(account) = account
        && account.wants_request()
        && !lasts(&info)
        && !matches!(info.verb, "get" | "list" | "watch")
    {
        let bytes = audit::buffered(&parts.headers, body).await?;
        account.request(&bytes);
        // It has been unpacked on the way.
        parts.headers.remove(http::header::CONTENT_ENCODING);
        body = response::full(bytes);
    }
    let context = Arc::new(Context::new(server, info, query, &parts, user, accepted));
    let upgrade = parts.extensions;
    let result = match patience(&context)? {
        None => crate::handlers::dispatch(&context, body, upgrade).await,
        Some(patience) => {
            let handled = crate::handlers::dispatch(&context, body, upgrade);
            tokio::time::timeout(patience, handled)
                .await
                .unwrap_or_else(|_| {
                    Err(ApiError::timeout(format!(
                        "request did not complete within the requested timeout - {patience:?}"
                    )))
                })
        }
    };
    let mut answered = match result {
        Ok(response) => response,
        Err(error) => response::error_as(&error, accepted.encoding),
    };
    response::add_warnings(&mut answered, &context.take_warnings());
    Ok(answered)
}

/// In what forms the request can be answered.
fn offers(server: &ApiServer, info: &RequestInfo) -> negotiation::Offers {
    let endpoint = server
        .catalog
        .load()
        .endpoint(&info.group, &info.version, &info.resource);
    match endpoint {
        Some(endpoint) => negotiation::Offers {
            protobuf: endpoint.version().openapi.is_none(),
            transforms: endpoint.resource.verbs != Verbs::Create,
        },
        None => negotiation::EVERYTHING,
    }
}

/// Whether the answer goes on for as long as the client wants.
fn lasts(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || matches!(
            info.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        )
}

/// How long the request may take: a minute, or less where the client says so. `None` for those that last.
fn patience(context: &Context) -> Result<Option<Duration>, ApiError> {
    const LONGEST: Duration = Duration::from_secs(60);
    if lasts(&context.info) {
        return Ok(None);
    }
    let Some(text) = context.query.get("timeout") else {
        return Ok(Some(LONGEST));
    };
    let nanos = time::parse_duration(text).and_then(|nanos| u64::try_from(nanos).ok());
    let asked = nanos.map(Duration::from_nanos).ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid timeout specified in the request URL: {text:?}"
        ))
    })?;
    Ok(Some(if asked.is_zero() {
        LONGEST
    } else {
        asked.min(LONGEST)
    }))
}

fn authenticate(server: &ApiServer, request: &mut Request<Body>) -> Result<UserInfo, ApiError> {
    if let Some(LocalIdentity(user)) = request.extensions().get() {
        return Ok(UserInfo::clone(user));
    }
    if !request.headers().contains_key(AUTHORIZATION) {
        take_subprotocol_token(request.headers_mut());
    }
    let peer = request
        .extensions()
        .get::<PeerCertificates>()
        .map(|peer| peer.0.clone());
    let found = server
        .authenticator
        .authenticate(request.headers(), peer.as_deref(), now())?;
    Ok(found.unwrap_or_else(UserInfo::anonymous))
}

/// Browsers cannot set headers on a WebSocket, so the token comes as a subprotocol; it goes no further.
fn take_subprotocol_token(headers: &mut HeaderMap) {
    const PROTOCOLS: HeaderName = http::header::SEC_WEBSOCKET_PROTOCOL;
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    let Some(text) = headers.get(PROTOCOLS).and_then(|v| v.to_str().ok()) else {
        return;
    };
    let (tokens, rest): (Vec<&str>, Vec<&str>) = text
        .split(',')
        .map(str::trim)
        .partition(|protocol| protocol.starts_with(PREFIX));
    let token = tokens
        .first()
        .and_then(|token| URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok())
        .and_then(|token| String::from_utf8(token).ok());
    let Some(token) = token else { return };
    let rest = rest.join(", ");
    if let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}")) {
        headers.insert(AUTHORIZATION, value);
    }
    if let Ok(value) = HeaderValue::from_str(&rest) {
        headers.insert(PROTOCOLS, value);
    }
}

fn authorize(server: &ApiServer, user: &UserInfo, info: &RequestInfo) -> Result<(), ApiError> {
    let attributes = info.attributes(user, info.verb);
    match server.authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(reason) => Err(attributes.forbidden(&reason)),
        Decision::NoOpinion => Err(attributes.forbidden("")),
    }
}

/// Calls `done` once, when the body has been sent or dropped.
pub(crate) struct Noted<F: FnOnce()> {
    body: Body,
    done: Option<F>,
}

impl<F: FnOnce()> Noted<F> {
    pub(crate) fn new(body: Body, done: F) -> Self {
        Self {
            body,
            done: Some(done),
        }
    }
}

impl<F: FnOnce() + Unpin> http_body::Body for Noted<F> {
    type Data = bytes::Bytes;
    type Error = crate::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, crate::BodyError>>> {
        Poll::Ready(ready!(Pin::new(&mut self.body).poll_frame(cx)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl<F: FnOnce()> Drop for Noted<F> {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done();
        }
    }
}
