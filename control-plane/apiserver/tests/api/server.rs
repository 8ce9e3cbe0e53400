//! A server of its own for each test, and requests to it.

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use windlass_apiserver::audit::AuditLog;
use windlass_apiserver::authn::{
    AccountKeys, Authenticator, CertificateAuthenticator, Lifetimes, OtherTokens,
    ServiceAccountTokens, UserInfo,
};
use windlass_apiserver::authz::{Chain, PrivilegedGroup, Rbac};
use windlass_apiserver::{ApiServer, Body, Caches, Config, FrontProxy, LocalIdentity, Metered};
use windlass_loopback::EtcdServer;
use windlass_store::Store;

use crate::store;

static CRYPTO: Once = Once::new();

/// Who issues the server's ServiceAccount tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Longer than anything here takes; reached only by a fault.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Server {
    pub api: Arc<ApiServer>,
    pub shutdown: CancellationToken,
    /// What its own store needs.
    under: Option<(TempDir, Option<EtcdServer>)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What a server is started with.
pub struct Setup {
    pub audit: Option<AuditLog>,
    pub tokens_besides: OtherTokens,
    pub advertise_address: IpAddr,
    /// Of ServiceAccount tokens, besides the server's own.
    pub issuers: Vec<String>,
    pub lifetimes: Lifetimes,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            audit: None,
            tokens_besides: OtherTokens::default(),
            advertise_address: "192.0.2.1".parse().unwrap(),
            issuers: Vec::new(),
            lifetimes: Lifetimes::default(),
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(&self.body)))
    }

    /// The object of a successful request.
    pub fn ok(self) -> Value {
        assert!(
            self.code < 300,
            "{} {}",
            self.code,
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    /// The `Status` of a refused one.
    pub fn refused(self, code: u16) -> Value {
        let status = self.json();
        assert_eq!(self.code, code, "{status}");
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], code);
        status
    }
}

/// Self-signed: the servers behind this one in tests believe everybody.
fn front_proxy() -> FrontProxy {
    let own = rcgen::generate_simple_self_signed(vec!["front-proxy-client".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    FrontProxy {
        chain: vec![own.cert.der().clone()],
        key: Arc::new(key),
        ca_pem: own.cert.pem(),
        client_ca_pem: own.cert.pem(),
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(None, OtherTokens::default()).await
    }

    pub async fn start_with(audit: Option<AuditLog>, tokens_besides: OtherTokens) -> Self {
        let setup = Setup {
            audit,
            tokens_besides,
            ..Setup::default()
        };
        Self::start_as(setup).await
    }

    pub async fn start_as(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, etcd) = store::open(dir.path()).await;
        let mut server = Self::start_over(store, setup).await;
        server.under = Some((dir, etcd));
        server
    }

    /// A server over a store that others may use as well.
    pub async fn start_over(store: Arc<dyn Store>, setup: Setup) -> Self {
        CRYPTO.call_once(|| {
            rustls::crypto::aws_lc_rs::default_provider()
                .install_default()
                .expect("first");
        });
        let shutdown = CancellationToken::new();
        let resources: Vec<_> = windlass_api::registry::builtin()
            .into_iter()
            .map(Arc::new)
            .collect();
        let store: Arc<dyn Store> = Arc::new(Metered(store));
        let caches = Caches::start(store, &resources, shutdown.clone())
            .await
            .unwrap();
        let authority = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
        let keys = AccountKeys::read(&authority.signing_key.serialize_pem(), "").unwrap();
        let tokens = ServiceAccountTokens::new(keys, ISSUER, caches.clone())
            .accepting(&setup.issuers, &[])
            .living(setup.lifetimes);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.cert.der().clone()).unwrap();
        let certificates = CertificateAuthenticator::new(roots).unwrap();
        let rbac = Arc::new(Rbac::default());
        let api = ApiServer::new(Config {
            caches,
            resources,
            authenticator: Arc::new(
                Authenticator::new(certificates, tokens).with(setup.tokens_besides),
            ),
            authorizer: Arc::new(Chain(vec![Arc::new(PrivilegedGroup), rbac.clone()])),
            rbac,
            service_cluster_ip_ranges: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: 30000..=32767,
            advertise_address: setup.advertise_address,
            secure_port: 6443,
            node_tls: windlass_tls::any_server().with_no_client_auth(),
            front_proxy: Some(front_proxy()),
            audit: setup.audit,
            build: Default::default(),
            shutdown: shutdown.clone(),
        })
        .await
        .unwrap();
        api.finished(windlass_apiserver::Step::DefaultObjects);
        Self {
            api,
            shutdown,
            under: None,
        }
    }

    /// Sends as an administrator.
    pub async fn send(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Answer {
        self.send_as(
            Some(UserInfo::new("admin", &["system:masters"])),
            request,
            body,
        )
        .await
    }

    /// Sends as `user`; `None` shows no credential at all.
    pub async fn send_as(
        &self,
        user: Option<UserInfo>,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Answer {
        read(self.open(user, request, body).await).await
    }

    /// Sends a body of any kind, as an administrator.
    pub async fn send_body(&self, request: http::request::Builder, body: Body) -> Answer {
        let admin = UserInfo::new("admin", &["system:masters"]);
        read(self.open_body(Some(admin), request, body).await).await
    }

    /// Sends and leaves the answer's body to the caller.
    pub async fn open(
        &self,
        user: Option<UserInfo>,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> http::Response<Body> {
        let body = Full::new(body.into())
            .map_err(|never| match never {})
            .boxed_unsync();
        self.open_body(user, request, body).await
    }

    async fn open_body(
        &self,
        user: Option<UserInfo>,
        request: http::request::Builder,
        body: Body,
    ) -> http::Response<Body> {
        tokio::time::timeout(PATIENCE, self.attempt(user, request, body))
            .await
            .expect("an answer in time")
    }

    /// Sends, and waits for the answer as long as it takes.
    pub async fn attempt(
        &self,
        user: Option<UserInfo>,
        request: http::request::Builder,
        body: Body,
    ) -> http::Response<Body> {
        let mut request: Request<Body> = request.body(body).unwrap();
        if let Some(user) = user {
            request
                .extensions_mut()
                .insert(LocalIdentity(Arc::new(user)));
        }
        self.api.service().oneshot(request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path), "").await
    }

    /// Asks until the answer is as `wanted`, where nothing tells when it will be.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            let (code, body) = (answer.code, String::from_utf8_lossy(&answer.body));
            assert!(Instant::now() < deadline, "{path}: {code} {body:.2000}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_code(&self, path: &str, code: u16) {
        self.until(path, |answer| answer.code == code).await;
    }

    pub async fn post(&self, path: &str, object: &Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request, object.to_string()).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Answer {
        let request = Request::put(path).header("content-type", "application/json");
        self.send(request, object.to_string()).await
    }

    /// `form` is `merge`, `json`, `strategic` or `apply`.
    pub async fn patch(&self, path: &str, form: &str, patch: &Value) -> Answer {
        let media = match form {
            "merge" => "application/merge-patch+json",
            "json" => "application/json-patch+json",
            "strategic" => "application/strategic-merge-patch+json",
            "apply" => "application/apply-patch+yaml",
            other => panic!("no patch form {other}"),
        };
        self.send(
            Request::patch(path).header("content-type", media),
            patch.to_string(),
        )
        .await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> Answer {
        let body = if options.is_null() {
            String::new()
        } else {
            options.to_string()
        };
        self.send(Request::builder().method(Method::DELETE).uri(path), body)
            .await
    }

    /// What the ServiceAccount controller would make, so that pods can be created.
    pub async fn with_default_account(self) -> Self {
        let account = json!({"metadata": {"name": "default"}});
        self.post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await
            .ok();
        self
    }

    /// What the scheduler would do with a pod.
    pub async fn bind(&self, pod: &str, node: &str) {
        let binding = json!({"metadata": {"name": pod}, "target": {"name": node}});
        let path = format!("{PODS}/{pod}/binding");
        self.post(&path, &binding).await.ok();
    }

    /// Lets users do everything with `resources` of `groups`, and waits until the authorizer has heard of it.
    pub async fn allow(&self, users: &[&str], groups: &[&str], resources: &[&str]) {
        self.allow_to(&["*"], users, groups, resources).await;
    }

    /// The same for some verbs, "get" among them.
    pub async fn allow_to(
        &self,
        verbs: &[&str],
        users: &[&str],
        groups: &[&str],
        resources: &[&str],
    ) {
        let rules = json!([{"verbs": verbs, "apiGroups": groups, "resources": resources}]);
        let role = json!({"metadata": {"name": "allowed"}, "rules": rules});
        let subjects: Vec<_> = users
            .iter()
            .map(|user| json!({"kind": "User", "name": user}))
            .collect();
        let role_ref = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "allowed"});
        let binding =
            json!({"metadata": {"name": "allowed"}, "subjects": subjects, "roleRef": role_ref});
        for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{kind}");
            self.post(&path, &object).await.ok();
        }
        let attributes = json!({"verb": "get", "group": groups[0], "resource": resources[0]});
        let review = json!({"spec": {"user": users[0], "resourceAttributes": attributes}});
        let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let heard = async {
            while self.post(reviews, &review).await.ok()["status"]["allowed"] != true {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard)
            .await
            .expect("the role takes effect");
    }
}

async fn read(response: http::Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .expect("the answer ends")
        .expect("the answer is whole")
        .to_bytes();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const SERVICES: &str = "/api/v1/namespaces/default/services";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "example.test/image:1"}]},
    })
}

pub fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod(name)["spec"]},
        },
    })
}
