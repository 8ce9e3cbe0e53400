//! API aggregation (`apiregistration.k8s.io`): group versions that another server answers.
//!
//! An APIService that names a Service takes its group version over: requests are authenticated and authorized
//! here, then go on to one of the Service's endpoints with the requester's name in `X-Remote-*` headers, under
//! a client certificate that the other server was told to believe ([`published`]). [`availability`] asks each
//! such server whether it answers and what it serves; [`registered`] lists what this server answers itself.

mod availability;
mod published;
mod registered;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Response};
use parking_lot::RwLock;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value};
use tokio::sync::Notify;
use windlass_machinery::status::ApiError;

use crate::Body;
use crate::authn::UserInfo;
use crate::connections::{self, Connection};
use crate::context::Context;
use crate::outbound::{self, Identity, Target, Trust};
use crate::server::ApiServer;

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";

const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// Who this server is to the servers behind it.
pub struct FrontProxy {
    /// The certificate that is shown, its issuers behind it.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Arc<PrivateKeyDer<'static>>,
    /// PEM of the authority that signed it: what the others verify it by.
    pub ca_pem: String,
    /// PEM of the authority of ordinary clients, which the others accept as well.
    pub client_ca_pem: String,
}

/// A group version that another server answers.
pub(crate) struct Remote {
    pub group: String,
    pub version: String,
    pub target: Target,
    pub trust: Trust,
    /// Which versions of a group are preferred.
    version_priority: i64,
    state: RwLock<State>,
}

/// What is known of the other server.
#[derive(Clone, Default)]
struct State {
    available: bool,
    /// Its APIResourceList.
    resources: Option<Value>,
    definitions: Option<Definitions>,
}

/// The types of another server's OpenAPI v2 document, by name.
#[derive(Clone)]
pub(crate) struct Definitions {
    pub hash: String,
    pub types: Arc<Map<String, Value>>,
    read: Instant,
}

impl Remote {
    pub(crate) fn is_available(&self) -> bool {
        self.state.read().available
    }

    /// The APIResourceList that the other server last answered.
    pub(crate) fn resources(&self) -> Option<Value> {
        self.state.read().resources.clone()
    }

    /// The types that the other server last told of.
    pub(crate) fn definitions(&self) -> Option<Definitions> {
        self.state.read().definitions.clone()
    }
}

/// The group versions of other servers.
#[derive(Default)]
pub(crate) struct Aggregator {
    front_proxy: ArcSwapOption<FrontProxy>,
    renewed: Notify,
    remotes: ArcSwap<HashMap<(String, String), Arc<Remote>>>,
}

impl Aggregator {
    pub(crate) fn new(front_proxy: Option<FrontProxy>) -> Self {
        Self {
            front_proxy: ArcSwapOption::from(front_proxy.map(Arc::new)),
            renewed: Notify::new(),
            remotes: ArcSwap::default(),
        }
    }

    /// Shows itself to other servers by this from now on, once they can know.
    pub(crate) fn renew(&self, front_proxy: Option<FrontProxy>) {
        self.front_proxy.store(front_proxy.map(Arc::new));
        self.renewed.notify_one();
    }

    /// PEM of the authorities that ordinary clients and this server itself are signed by.
    pub(crate) fn cluster_ca(&self) -> Option<String> {
        let front_proxy = self.front_proxy.load();
        Some(front_proxy.as_ref()?.client_ca_pem.clone())
    }

    /// The other server that answers a group version.
    pub(crate) fn remote(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        if remotes.is_empty() {
            return None;
        }
        remotes
            .get(&(group.to_owned(), version.to_owned()))
            .cloned()
    }

    /// The available ones, by group, the preferred version of each first.
    pub(crate) fn available(&self) -> Vec<Arc<Remote>> {
        let remotes = self.remotes.load();
        let mut found: Vec<_> = remotes
            .values()
            .filter(|r| r.is_available())
            .cloned()
            .collect();
        found.sort_by(|a, b| {
            let key = |r: &Remote| (r.group.clone(), -r.version_priority, r.version.clone());
            key(a).cmp(&key(b))
        });
        found
    }

    fn identity(&self) -> Option<Identity> {
        let front_proxy = self.front_proxy.load_full()?;
        Some((front_proxy.chain.clone(), front_proxy.key.clone()))
    }
}

/// Publishes what other servers need, registers what this one serves, and follows the APIServices.
pub(crate) fn start(server: &Arc<ApiServer>) {
    for task in [Task::Publish, Task::Register, Task::Follow] {
        let server = server.clone();
        tokio::spawn(async move {
            let shutdown = server.shutdown.clone();
            let work = async {
                match task {
                    Task::Publish => published::keep(&server).await,
                    Task::Register => registered::keep(&server).await,
                    Task::Follow => availability::follow(&server).await,
                }
            };
            shutdown.run_until_cancelled(work).await;
        });
    }
}

#[derive(Clone, Copy)]
enum Task {
    Publish,
    Register,
    Follow,
}

/// Sends a request on to the server that answers it.
///
/// # Errors
/// 503 when it cannot be reached.
pub(crate) async fn forward(
    context: &Arc<Context>,
    remote: &Remote,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    if !remote.is_available() {
        return Err(ApiError::service_unavailable("service unavailable"));
    }
    let query = match context.raw_query.as_str() {
        "" => String::new(),
        query => format!("?{query}"),
    };
    let path = format!("{}{query}", connections::encode_path(&context.info.path));
    let connection = connect(&context.server, remote).await.map_err(|why| {
        ApiError::service_unavailable(format!("error trying to reach service: {why}"))
    })?;
    let identity = headers(&context.user);
    connections::forward(context, connection, &path, body, extensions, identity).await
}

async fn connect(server: &ApiServer, remote: &Remote) -> Result<Connection, String> {
    let route = outbound::route(server, &remote.target)?;
    let identity = server.aggregator.identity();
    let io = outbound::connect(&route, &remote.trust, identity.as_ref()).await?;
    Ok(Connection {
        io: Box::new(io),
        host: route.server_name,
    })
}

/// The requester, as the other server shall see them.
fn headers(user: &UserInfo) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    add(REMOTE_USER, &user.name);
    if !user.uid.is_empty() {
        add(REMOTE_UID, &user.uid);
    }
    for group in &user.groups {
        add(REMOTE_GROUP, group);
    }
    for (key, values) in &user.extra {
        let name = format!("{REMOTE_EXTRA}{}", escaped(key));
        let Ok(name) = name.parse::<HeaderName>() else {
            continue;
        };
        values.iter().for_each(|value| add(name.clone(), value));
    }
    headers
}

/// A key of the extras as a part of a header's name: what has no place there is percent-encoded.
fn escaped(key: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(byte);
    key.bytes().fold(String::new(), |mut text, byte| {
        if plain(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requester_travels_in_headers() {
        let mut user = UserInfo::new("jane", &["a", "b"]);
        user.extra
            .insert("example.com/x y".to_owned(), vec!["v".to_owned()]);
        let headers = headers(&user);
        assert_eq!(headers["x-remote-user"], "jane");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert_eq!(headers["x-remote-extra-example.com%2fx%20y"], "v");
    }
}
