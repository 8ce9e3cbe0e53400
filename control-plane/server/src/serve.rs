//! `serve`: starts everything in order and stops it in reverse.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windlass_api::resource::Resource;
use windlass_apiserver::authn::{Authenticator, CertificateAuthenticator, UserInfo};
use windlass_apiserver::authz::{Chain, PrivilegedGroup, Rbac};
use windlass_apiserver::{ApiServer, Build, Caches, Config, Metered, ServingTls, Step};
use windlass_controllers::ControllersConfig;
use windlass_informers::Informers;
use windlass_informers::leader::{self, LeaderConfig};
use windlass_scheduler::SchedulerConfig;
use windlass_store::Store;

use crate::credentials::{Keys, LOOK, Renewals, Signing};
use crate::{api_options, bootstrap, kubeconfig, store};

/// Before what failed at the start is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// From `build.rs`.
const BUILD: Build = Build {
    commit: env!("WINDLASS_COMMIT"),
    tree: env!("WINDLASS_TREE"),
    date: env!("WINDLASS_DATE"),
    compiler: env!("WINDLASS_RUSTC"),
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where keys and the embedded store live.
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    pub(crate) data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// The address at which nodes and pods reach this server.
    #[arg(long)]
    pub(crate) advertise_address: IpAddr,
    /// Where ClusterIPs come from; one range per IP family, comma-separated, the primary first.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    pub(crate) service_cluster_ip_range: Vec<IpNet>,
    /// Where nodes' podCIDRs come from; one range per IP family, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    cluster_cidr: Vec<IpNet>,
    /// Prefix length of a node's IPv4 podCIDR.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size_ipv4: u8,
    /// Prefix length of a node's IPv6 podCIDR.
    #[arg(long, default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,
    /// Addresses for Services of type LoadBalancer, comma-separated; without, somebody else gives them out.
    #[arg(long, value_delimiter = ',')]
    load_balancer_pool: Vec<IpNet>,
    /// First and last port of NodePorts.
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// More names or addresses for the serving certificate.
    #[arg(long, value_delimiter = ',')]
    pub(crate) tls_san: Vec<String>,
    /// A serving certificate that somebody else has signed, issuers behind it (PEM); read again when it changes.
    #[arg(long, requires = "tls_private_key_file")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "tls_cert_file")]
    pub(crate) tls_private_key_file: Option<PathBuf>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Where to write this process's id.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// A KubeSchedulerConfiguration: profiles, plugins, weights. YAML or JSON.
    #[arg(long)]
    scheduler_config: Option<PathBuf>,
    #[command(flatten)]
    store: store::Options,
    #[command(flatten)]
    pub(crate) api: api_options::Options,
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parsed = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .filter(|(first, last)| first <= last && *first > 0);
    parsed.ok_or_else(|| format!("{text:?} is not a port range such as 30000-32767"))
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    fs::create_dir_all(&options.data_dir)
        .with_context(|| format!("create {}", options.data_dir.display()))?;
    let files = Renewals::of(&options)?;
    let keys = Keys::read(&options)?;
    let shutdown = CancellationToken::new();
    let store = options.store.open(&options.data_dir, &shutdown).await?;

    let server = api_server(&options, &keys, store, &shutdown).await?;
    let address = SocketAddr::new(options.bind_address, options.secure_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    let tls = Arc::new(ServingTls::from_pointee(keys.serving_tls(&server)?));
    let serving = tokio::spawn(
        server
            .clone()
            .serve_tls(listener, tls.clone(), shutdown.clone()),
    );
    tracing::info!(%address, "API server serves");

    announce(&options, &keys)?;
    let options = Arc::new(options);
    let (renewed, keys) = watch::channel(keys.signing());
    let renewing = renew(files, options.clone(), server.clone(), tls, renewed);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(renewing));
    tokio::spawn(windlass_own_code::forget_unused());
    let background = tokio::spawn(components(server.clone(), options, keys, shutdown.clone()));

    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = shutdown.cancelled() => {}
    }
    tracing::info!("stopping");
    shutdown.cancel();
    background.await.context("the controllers ended early")??;
    serving.await.context("the listener ended early")?;
    Ok(())
}

/// The API server over `store`.
async fn api_server(
    options: &Options,
    keys: &Keys,
    store: Arc<dyn Store>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Arc<ApiServer>> {
    let resources: Vec<Arc<Resource>> = windlass_api::registry::builtin()
        .into_iter()
        .map(Arc::new)
        .collect();
    let store: Arc<dyn Store> = Arc::new(Metered(store));
    let store = options.api.encrypted(store, &resources, shutdown)?;
    let caches = Caches::start(store, &resources, shutdown.clone())
        .await
        .context("read the store into the caches")?;
    let domain = &options.cluster_domain;
    let tokens = options
        .api
        .account_tokens(keys.accounts.clone(), domain, &caches);
    let credentials = keys.credentials()?;
    let certificates =
        CertificateAuthenticator::new(credentials.client_roots).context("the cluster CA")?;
    let rbac = Arc::new(Rbac::default());
    let authorizer = Chain(vec![Arc::new(PrivilegedGroup), rbac.clone()]);
    let others = options.api.tokens(&caches, shutdown)?;
    ApiServer::new(Config {
        caches,
        resources,
        authenticator: Arc::new(Authenticator::new(certificates, tokens).with(others)),
        authorizer: Arc::new(authorizer),
        rbac,
        service_cluster_ip_ranges: options.service_cluster_ip_range.clone(),
        node_port_range: options.service_node_port_range.0..=options.service_node_port_range.1,
        advertise_address: options.advertise_address,
        secure_port: options.secure_port,
        node_tls: credentials.node_tls,
        front_proxy: credentials.front_proxy,
        audit: options.api.audit()?,
        build: BUILD,
        shutdown: shutdown.clone(),
    })
    .await
    .context("start the API server")
}

/// The files that others wait for, written once the server listens.
fn announce(options: &Options, keys: &Keys) -> anyhow::Result<()> {
    let url = format!(
        "https://{}",
        SocketAddr::new(options.advertise_address, options.secure_port)
    );
    let admin = options.data_dir.join("admin.kubeconfig");
    let written = kubeconfig::write(
        &keys.authority,
        &url,
        "kubernetes-admin",
        "system:masters",
        &admin,
    );
    if let Err(error) = written {
        if !admin.exists() {
            return Err(error);
        }
        // On a full disk what is there is read all the same, and an earlier run's file lets in who makes room.
        tracing::warn!(error = format!("{error:#}"), "an earlier file stays in use");
    }
    if let Some(pid_file) = &options.pid_file {
        fs::write(pid_file, std::process::id().to_string())
            .with_context(|| format!("write {}", pid_file.display()))?;
    }
    Ok(())
}

/// The controllers and the scheduler, each under its Lease.
async fn components(
    server: Arc<ApiServer>,
    options: Arc<Options>,
    keys: watch::Receiver<Signing>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let admin = server.local_client(UserInfo::new("system:apiserver", &["system:masters"]));
    // Another server of the same cluster may write the same objects, and etcd may have no leader for a moment.
    while let Err(error) = bootstrap::defaults(&admin, dns_address(&options)).await {
        tracing::warn!(
            error = format!("{error:#}"),
            "what every cluster holds is not complete yet"
        );
        if shutdown
            .run_until_cancelled(tokio::time::sleep(AGAIN))
            .await
            .is_none()
        {
            return Ok(());
        }
    }
    server.finished(Step::DefaultObjects);
    let controllers = server.local_client(UserInfo::new("system:kube-controller-manager", &[]));
    let scheduler = server.local_client(UserInfo::new("system:kube-scheduler", &[]));
    // Alone on its store, this process has seen all that was written before a term of its own, and one set of views
    // serves both. Else another server may have led until now: a term begins with views of its own, which are listed
    // after its Lease was taken, and miss nothing that was made before.
    let lasting = match options.store.kind() {
        store::Kind::Embedded => Some(Informers::new(controllers.clone())),
        store::Kind::Etcd => None,
    };
    let views = || {
        let lasting = lasting.clone();
        lasting.unwrap_or_else(|| Informers::new(controllers.clone()))
    };
    let identity = identity(options.store.kind())?;

    let config = ControllersConfig {
        cluster_cidrs: options.cluster_cidr.clone(),
        load_balancer_pools: options.load_balancer_pool.clone(),
        node_cidr_mask_v4: options.node_cidr_mask_size_ipv4,
        node_cidr_mask_v6: options.node_cidr_mask_size_ipv6,
        ..ControllersConfig::default()
    };
    let scheduling = scheduler_config(&options)?;
    windlass_scheduler::check(&scheduling, &views()).context("--scheduler-config")?;
    let lease = |name: &str| LeaderConfig::new(name, identity.clone());
    tokio::join!(
        leader::lead(
            controllers.clone(),
            lease("kube-controller-manager"),
            shutdown.clone(),
            |term| {
                let (client, informers) = (controllers.clone(), views());
                let start = move |config, until| {
                    windlass_controllers::run(client.clone(), informers.clone(), config, until)
                };
                with_present_keys(config.clone(), keys.clone(), term, start)
            }
        ),
        leader::lead(
            scheduler.clone(),
            lease("kube-scheduler"),
            shutdown.clone(),
            |term| {
                let run =
                    windlass_scheduler::run(scheduler.clone(), views(), scheduling.clone(), term);
                async {
                    if let Err(error) = run.await {
                        tracing::error!(%error, "scheduler failed");
                    }
                }
            }
        ),
    );
    Ok(())
}

/// Runs the controllers for a term, and anew when keys rotate: they take keys when they start. Their informers go on.
async fn with_present_keys<F>(
    config: ControllersConfig,
    mut keys: watch::Receiver<Signing>,
    term: CancellationToken,
    start: impl Fn(ControllersConfig, CancellationToken) -> F,
) where
    F: Future<Output = anyhow::Result<()>>,
{
    while !term.is_cancelled() {
        let until = term.child_token();
        let config = {
            let keys = keys.borrow_and_update();
            ControllersConfig {
                root_ca_pem: Some(keys.bundle_pem.clone()),
                signing_ca: Some(keys.ca.clone()),
                ..config.clone()
            }
        };
        let rotated = async {
            if keys.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            until.cancel();
        };
        let work = async {
            let ended = start(config, until.clone()).await;
            until.cancel();
            ended
        };
        let (ended, _) = tokio::join!(work, until.run_until_cancelled(rotated));
        if let Err(error) = ended {
            tracing::error!(%error, "controllers failed");
            return;
        }
    }
}

/// Goes on with other keys whenever the files say so, or the certificates grow old.
async fn renew(
    mut files: Renewals,
    options: Arc<Options>,
    server: Arc<ApiServer>,
    tls: Arc<ServingTls>,
    renewed: watch::Sender<Signing>,
) {
    loop {
        files.next().await;
        let done = Keys::read(&options).and_then(|keys| {
            server
                .renew(keys.credentials()?)
                .context("the cluster CA")?;
            tls.store(Arc::new(keys.serving_tls(&server)?));
            announce(&options, &keys)?;
            renewed.send_replace(keys.signing());
            server.expect_account_keys(&keys.accounts);
            Ok(keys.accounts)
        });
        match done {
            Ok(accounts) => {
                tracing::info!("serving and client certificates renewed");
                // Other servers over the same files look at them as often: by then they believe what is signed here.
                tokio::time::sleep(2 * LOOK).await;
                server.use_account_keys(accounts);
            }
            // Perhaps half of them is written; the next change is another attempt.
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the old certificates stay in use"
            ),
        }
    }
}

fn scheduler_config(options: &Options) -> anyhow::Result<SchedulerConfig> {
    let Some(path) = &options.scheduler_config else {
        return Ok(SchedulerConfig::default());
    };
    let document = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    SchedulerConfig::parse(&document).with_context(|| path.display().to_string())
}

/// The name that this process leads under. The embedded store admits one process, so the host's name is identity
/// enough, and a process that comes back after a crash resumes its own term at once. Of several servers over one
/// etcd, two may have one host.
fn identity(store: store::Kind) -> anyhow::Result<String> {
    let host = nix::unistd::gethostname().context("the host's name")?;
    let host = host.to_string_lossy().into_owned();
    Ok(match store {
        store::Kind::Embedded => host,
        store::Kind::Etcd => format!("{host}_{}", uuid::Uuid::new_v4()),
    })
}

/// Where pods find cluster DNS: the tenth address of the primary range, as kubeadm has it.
fn dns_address(options: &Options) -> Option<IpAddr> {
    service_address(options.service_cluster_ip_range.first()?, 10)
}

/// Of a range of Services, counted from the range's own address in both families.
pub(crate) fn service_address(range: &IpNet, number: u32) -> Option<IpAddr> {
    let address: IpAddr = match range.network() {
        IpAddr::V4(own) => Ipv4Addr::from(u32::from(own).checked_add(number)?).into(),
        IpAddr::V6(own) => Ipv6Addr::from(u128::from(own).checked_add(number.into())?).into(),
    };
    range.contains(&address).then_some(address)
}
