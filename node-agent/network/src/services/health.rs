//! What the outside asks about the service proxy, in kube-proxy's words: whether it keeps
//! up (`/healthz`, `/livez` on 10256), and for each Service with a `healthCheckNodePort`
//! whether this node has endpoints, by which a balancer chooses nodes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::header::{HeaderName, HeaderValue};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{
    http::{self, Answer},
    parse::ServiceName,
};

/// How long a change may wait for being written before the proxy counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Service that a balancer asks this node about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HealthCheck {
    pub(super) port: u16,
    /// Ready endpoints on this node.
    pub(super) local_endpoints: usize,
}

/// Whether the proxy keeps up and the node is to get traffic.
#[derive(Debug)]
pub(super) struct ProxyHealth(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The oldest change that is not written yet.
    pending: Option<Instant>,
    updated: Timestamp,
    /// Neither deleted nor about to be (the cluster autoscaler's taint).
    node_eligible: bool,
}

impl ProxyHealth {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            pending: None,
            updated: Timestamp::now(),
            node_eligible: true,
        }))
    }

    /// A change has come in.
    pub(super) fn queued(&self) {
        self.0.lock().pending.get_or_insert_with(Instant::now);
    }

    /// Everything that came in is written.
    pub(super) fn updated(&self) {
        let mut state = self.0.lock();
        state.pending = None;
        state.updated = Timestamp::now();
    }

    pub(super) fn set_node_eligible(&self, eligible: bool) {
        self.0.lock().node_eligible = eligible;
    }

    pub(super) fn is_healthy(&self) -> bool {
        let pending = self.0.lock().pending;
        pending.is_none_or(|since| since.elapsed() < PATIENCE)
    }

    /// `/healthz` (which also tells a balancer to leave a node that goes) and `/livez`.
    pub(super) fn answer(&self, path: &str) -> Option<Answer> {
        let healthy = self.is_healthy();
        let (updated, eligible) = {
            let state = self.0.lock();
            (state.updated, state.node_eligible)
        };
        let (well, node_eligible) = match path {
            "/healthz" => (healthy && eligible, Some(eligible)),
            "/livez" => (healthy, None),
            _ => return None,
        };
        let now = Timestamp::now();
        let proxier = Proxier {
            last_updated: updated,
            healthy,
        };
        let told = Told {
            // While all is well, "last updated" is now: nothing is left to be updated.
            last_updated: if well { now } else { updated },
            current_time: now,
            node_eligible,
            healthy,
            status: [("IPv4", proxier), ("IPv6", proxier)].into(),
        };
        let body = serde_json::to_string(&told).unwrap_or_default();
        Some(Answer::json(well, body))
    }
}

/// kube-proxy's answer, whose proxiers are one for each family.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, Proxier>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxier {
    last_updated: Timestamp,
    healthy: bool,
}

/// One HTTP port for each Service that asks for one.
pub(super) struct HealthServers {
    proxy: Arc<ProxyHealth>,
    /// The addresses to listen on: those on which NodePorts answer.
    addresses: Vec<IpAddr>,
    open: BTreeMap<ServiceName, Server>,
}

struct Server {
    port: u16,
    local_endpoints: Arc<Mutex<usize>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl HealthServers {
    /// Without addresses, on all of the node's.
    pub(super) fn new(proxy: Arc<ProxyHealth>, mut addresses: Vec<IpAddr>) -> Self {
        if addresses.is_empty() {
            addresses.push(Ipv6Addr::UNSPECIFIED.into());
        }
        Self {
            proxy,
            addresses,
            open: BTreeMap::new(),
        }
    }

    /// Opens and closes ports until they are these. Returns those that could not be opened,
    /// which are tried again by the next call.
    pub(super) async fn set(
        &mut self,
        wanted: &BTreeMap<ServiceName, HealthCheck>,
    ) -> Vec<(ServiceName, u16, std::io::Error)> {
        self.open
            .retain(|name, server| wanted.get(name).is_some_and(|it| it.port == server.port));
        let mut failed = Vec::new();
        for (name, check) in wanted {
            if let Some(server) = self.open.get(name) {
                *server.local_endpoints.lock() = check.local_endpoints;
                continue;
            }
            match self.start(name, *check).await {
                Ok(server) => drop(self.open.insert(name.clone(), server)),
                Err(error) => failed.push((name.clone(), check.port, error)),
            }
        }
        failed
    }

    async fn start(&self, name: &ServiceName, check: HealthCheck) -> std::io::Result<Server> {
        let mut server = Server {
            port: check.port,
            local_endpoints: Arc::new(Mutex::new(check.local_endpoints)),
            tasks: Vec::new(),
        };
        for address in &self.addresses {
            let address = SocketAddr::new(*address, check.port);
            let listener = http::bind(address).await?;
            let (name, proxy) = (name.clone(), self.proxy.clone());
            let local = server.local_endpoints.clone();
            let handler = Arc::new(move |_: &str| Some(answer(&name, *local.lock(), &proxy)));
            server
                .tasks
                .push(tokio::spawn(http::serve(listener, handler)));
        }
        Ok(server)
    }
}

/// kube-proxy's answer, to the letter: balancers' controllers parse it.
fn answer(name: &ServiceName, local_endpoints: usize, proxy: &ProxyHealth) -> Answer {
    let healthy = proxy.is_healthy();
    let (namespace, service) = (&name.namespace, &name.name);
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{service}\"\n\t}},\n\t\
         \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut answer = Answer::json(healthy && local_endpoints > 0, body);
    answer.headers.push((
        HeaderName::from_static("x-load-balancing-endpoint-weight"),
        HeaderValue::from(local_endpoints),
    ));
    answer
}

#[cfg(test)]
mod tests {
    use super::{super::http::tests::get, *};

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_balancer_learns_whether_this_node_has_endpoints() {
        let proxy = Arc::new(ProxyHealth::new());
        let mut servers = HealthServers::new(proxy, vec!["127.0.0.1".parse().unwrap()]);
        let port = free_port();
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let checks = |local_endpoints| {
            let name = ServiceName::new("shop", "web");
            let check = HealthCheck {
                port,
                local_endpoints,
            };
            BTreeMap::from([(name, check)])
        };
        assert!(servers.set(&checks(2)).await.is_empty());
        let told = get(at, "/").await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert!(
            told.contains("X-Load-Balancing-Endpoint-Weight: 2"),
            "{told}"
        );
        let (_, body) = told.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!({
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
        servers.set(&checks(0)).await;
        assert!(get(at, "/healthz").await.starts_with("HTTP/1.1 503"));
        servers.set(&BTreeMap::new()).await;
        // The listener goes with its task, which ends when the runtime gets to it.
        while tokio::net::TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_reported_and_tried_again() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let proxy = Arc::new(ProxyHealth::new());
        let mut servers = HealthServers::new(proxy, vec!["127.0.0.1".parse().unwrap()]);
        let check = HealthCheck {
            port,
            local_endpoints: 1,
        };
        let wanted = BTreeMap::from([(ServiceName::new("d", "a"), check)]);
        assert_eq!(servers.set(&wanted).await.len(), 1);
        drop(taken);
        assert!(servers.set(&wanted).await.is_empty());
    }

    #[test]
    fn the_proxy_is_healthy_while_nothing_waits_and_the_node_stays() {
        let proxy = ProxyHealth::new();
        let status = |path| proxy.answer(path).unwrap().status.as_u16();
        assert_eq!(status("/healthz"), 200);
        proxy.queued();
        assert_eq!(status("/healthz"), 200, "not late yet");
        proxy.0.lock().pending = Instant::now().checked_sub(PATIENCE);
        assert_eq!((status("/healthz"), status("/livez")), (503, 503));
        proxy.updated();
        assert_eq!(status("/healthz"), 200);
        proxy.set_node_eligible(false);
        assert_eq!((status("/healthz"), status("/livez")), (503, 200));
        assert!(proxy.answer("/else").is_none());
        let told = |path| -> serde_json::Value {
            serde_json::from_str(&proxy.answer(path).unwrap().body).unwrap()
        };
        let body = told("/healthz");
        assert_eq!(
            (&body["nodeEligible"], &body["healthy"]),
            (&false.into(), &true.into())
        );
        assert_eq!(body["status"]["IPv6"]["healthy"], true);
        assert!(told("/livez").get("nodeEligible").is_none());
    }
}
