//! The API server's parts, put together.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use windlass_api::resource::Resource;
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, time};

use crate::admission::Admission;
use crate::aggregator::{Aggregator, FrontProxy};
use crate::audit::AuditLog;
use crate::authn::{AccountKeys, Authenticator, BoundObjects, CertificateError};
use crate::authz::node::NodeAuthorizer;
use crate::authz::{Authorizer, Chain, Rbac};
use crate::cacher::{Cacher, Caches, Filter, From};
use crate::catalog::Catalog;
use crate::connections::NodeClient;
use crate::context::now;
use crate::discovery::Build;
use crate::flow_control::FlowControl;
use crate::health::{self, Step, Steps};
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::service::ApiService;
use crate::service_addresses::ServiceAddresses;
use crate::usage::Usages;

/// A token is good for so many seconds after the moment at which what it is bound to should have been gone, as upstream.
const DELETION_LEEWAY: i64 = 60;

/// What an [`ApiServer`] is made of.
pub struct Config {
    /// Made by [`Caches::start`] over the same resources; also answers what tokens are bound to.
    pub caches: Arc<Caches>,
    /// In the order in which discovery lists them.
    pub resources: Vec<Arc<Resource>>,
    pub authenticator: Arc<Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    /// Kept up to date from the caches.
    pub rbac: Arc<Rbac>,
    /// Where ClusterIPs come from, the primary family first.
    pub service_cluster_ip_ranges: Vec<IpNet>,
    pub node_port_range: RangeInclusive<u16>,
    /// What the `kubernetes` Service leads to.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    /// Shows the server's client certificate to node agents.
    pub node_tls: rustls::ClientConfig,
    /// Who this server is to those behind it; without it they are not believed.
    pub front_proxy: Option<FrontProxy>,
    /// Where requests are accounted for.
    pub audit: Option<AuditLog>,
    /// What the program was built from.
    pub build: Build,
    /// Ends watches and background work.
    pub shutdown: CancellationToken,
}

/// What the server shows to others and whom it believes: all that is new when keys rotate.
pub struct Credentials {
    /// Who may sign client certificates.
    pub client_roots: rustls::RootCertStore,
    /// Shows the server's client certificate to node agents.
    pub node_tls: rustls::ClientConfig,
    /// Who this server is to those behind it.
    pub front_proxy: Option<FrontProxy>,
}

/// The API server. Cheap to share; [`service`](Self::service) answers requests.
pub struct ApiServer {
    pub(crate) caches: Arc<Caches>,
    pub(crate) catalog: arc_swap::ArcSwap<Catalog>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) rbac: Arc<Rbac>,
    pub(crate) admission: Admission,
    pub(crate) addresses: ServiceAddresses,
    pub(crate) nodes: NodeClient,
    pub(crate) usages: Usages,
    pub(crate) aggregator: Aggregator,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) openapi: OpenApi,
    pub(crate) flow_control: FlowControl,
    pub(crate) metrics: Metrics,
    pub(crate) steps: Steps,
    pub(crate) health: health::Record,
    pub(crate) build: Build,
    pub(crate) advertise_address: IpAddr,
    pub(crate) secure_port: u16,
    pub(crate) shutdown: CancellationToken,
}

impl ApiServer {
    /// Composes the server, makes the system namespaces, and begins its background work: the `kubernetes`
    /// Service's endpoints, the authorizer's view of RBAC objects, the index of Service addresses.
    ///
    /// # Errors
    /// When the store cannot be written or the ranges hold no address.
    pub async fn new(config: Config) -> anyhow::Result<Arc<Self>> {
        let catalog = Catalog::new(config.resources, &config.caches);
        let addresses =
            ServiceAddresses::new(config.service_cluster_ip_ranges, config.node_port_range)?;
        let nodes: Arc<dyn Authorizer> = Arc::new(NodeAuthorizer::new(config.caches.clone()));
        let authorizer = Arc::new(Chain(vec![nodes, config.authorizer]));
        let server = Arc::new(Self {
            catalog: arc_swap::ArcSwap::from_pointee(catalog),
            authenticator: config.authenticator,
            authorizer,
            rbac: config.rbac,
            admission: Admission::standard(),
            addresses,
            nodes: NodeClient::new(config.node_tls),
            usages: Usages::default(),
            aggregator: Aggregator::new(config.front_proxy),
            audit: config.audit,
            openapi: OpenApi::default(),
            flow_control: FlowControl::new(),
            metrics: Metrics::new(&config.build),
            steps: Steps::default(),
            health: health::Record::default(),
            build: config.build,
            advertise_address: config.advertise_address,
            secure_port: config.secure_port,
            shutdown: config.shutdown,
            caches: config.caches,
        });
        server.follow_rbac()?;
        if let Some(services) = server.cacher("", "services") {
            server.addresses.rebuild(&services);
        }
        server.finished(Step::Composed);
        crate::system_namespaces::ensure(&server).await?;
        server.finished(Step::SystemNamespaces);
        crate::kubernetes_service::start(&server).await?;
        server.finished(Step::KubernetesService);
        server.repair_addresses();
        server.finished(Step::ServiceAddresses);
        crate::identity::start(&server);
        server.finished(Step::Identity);
        crate::custom_resources::start(&server).await?;
        server.finished(Step::CustomResources);
        crate::aggregator::start(&server);
        server.finished(Step::Aggregation);
        crate::flow_control::start(&server);
        server.finished(Step::FlowControl);
        crate::admission::validating_policy::status::start(&server);
        crate::authn::legacy_tokens::start(&server);
        crate::authn::legacy_tracking::start(&server);
        server.finished(Step::LegacyTokens);
        Ok(server)
    }

    /// Goes on with other keys. Connections stay; client certificates are judged by the new authorities with
    /// their next request.
    ///
    /// # Errors
    /// When no client could be believed any more; nothing has changed then.
    pub fn renew(&self, credentials: Credentials) -> Result<(), CertificateError> {
        self.authenticator.trust(credentials.client_roots)?;
        self.nodes.renew(credentials.node_tls);
        self.aggregator.renew(credentials.front_proxy);
        Ok(())
    }

    /// Believes these keys of ServiceAccount tokens too; the present one goes on signing.
    pub fn expect_account_keys(&self, keys: &AccountKeys) {
        self.authenticator.service_account_tokens().expect(keys);
    }

    /// Signs ServiceAccount tokens by these keys, and believes no others.
    pub fn use_account_keys(&self, keys: AccountKeys) {
        self.authenticator.service_account_tokens().use_keys(keys);
    }

    /// What answers HTTP requests, from sockets and in process alike.
    pub fn service(self: &Arc<Self>) -> ApiService {
        ApiService::new(self.clone())
    }

    /// The cache of a built-in resource.
    pub(crate) fn cacher(&self, group: &str, plural: &str) -> Option<Arc<Cacher>> {
        let endpoint = self.catalog.load().preferred(group, plural)?;
        endpoint.cacher().ok().cloned()
    }

    /// An object of a built-in kind that is cluster-wide, as it is at least by now.
    pub(crate) async fn known(
        &self,
        group: &str,
        plural: &str,
        name: &str,
    ) -> Result<Option<Value>, ApiError> {
        let Some(cacher) = self.cacher(group, plural) else {
            return Ok(None);
        };
        let mut found = cacher.get("", name);
        if found.is_none() {
            self.caches.wait_current().await?;
            found = cacher.get("", name);
        }
        found.map(|entry| entry.decode()).transpose()
    }

    /// Feeds the authorizer: first what there is, then every change.
    fn follow_rbac(self: &Arc<Self>) -> Result<(), ApiError> {
        for plural in Rbac::RESOURCES {
            let Some(cacher) = self.cacher("rbac.authorization.k8s.io", plural) else {
                continue;
            };
            let everything = Filter::new(&cacher.resource, None, None, None)?;
            let mut watch =
                self.caches
                    .watch(&cacher, everything, From::Now { with_initial: true })?;
            for entry in std::mem::take(&mut watch.initial) {
                let object = entry.decode()?;
                self.rbac
                    .update(plural, entry.namespace(), entry.name(), Some(&object));
            }
            let server = self.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = server.shutdown.cancelled() => {}
                    error = server.keep_feeding_rbac(plural, watch) => {
                        // The reader above never waits, so this takes a bug: stop granting by a stale policy.
                        tracing::error!(%error, plural, "the authorizer lost its view, shutting down");
                        server.shutdown.cancel();
                    }
                }
            });
        }
        Ok(())
    }

    async fn keep_feeding_rbac(&self, plural: &str, watch: crate::cacher::Watch) -> ApiError {
        loop {
            let events = match watch.next().await {
                Ok(events) => events,
                Err(error) => return error,
            };
            for (event, _) in events {
                let entry = event.entry();
                let object = match event.after.as_ref().map(|after| after.decode()).transpose() {
                    Ok(object) => object,
                    Err(error) => return error,
                };
                self.rbac
                    .update(plural, entry.namespace(), entry.name(), object.as_ref());
            }
        }
    }
}

impl BoundObjects for Caches {
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
        let prefix = match resource {
            "nodes" => "/registry/minions".to_owned(),
            other => format!("/registry/{other}"),
        };
        let object = self.get(&prefix)?.get(namespace, name)?.decode().ok()?;
        let ended = meta::deletion_timestamp(&object).and_then(time::parse_seconds);
        if ended.is_some_and(|then| then + DELETION_LEEWAY < now()) {
            return None;
        }
        let uid = meta::uid(&object);
        (!uid.is_empty()).then(|| uid.to_owned())
    }

    fn secret_label(&self, namespace: &str, name: &str, label: &str) -> Option<String> {
        let secret = self.get("/registry/secrets")?.get(namespace, name)?;
        let secret = secret.decode().ok()?;
        let label = secret["metadata"]["labels"][label].as_str();
        label.map(str::to_owned)
    }
}
