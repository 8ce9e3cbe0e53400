//! The network and services roles: the datapath and the Services in it; with the former also what pods need.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use windlass_datapath::{Datapath, DatapathConfig, XdpMode};
use windlass_flows::{FlowLog, FlowLogConfig, FlowService};
use windlass_network::interface::Namespace;
use windlass_network::policy::PolicyController;
use windlass_network::services::{ServiceController, ServiceControllerConfig, of_interfaces};
use windlass_network::{Announcer, Attachments, NodeAddresses, Settings, UplinkSettings, socket};

use crate::cli::{LoadBalancerMode, Role, RunOptions, SocketHooks, Switch, Xdp};
use crate::inspect::Inspector;
use crate::metrics::{self, MetricsText};
use crate::nodes::native_networks;
use crate::pod_network::PodNetwork;
use crate::ports::Ports;
use crate::tasks::Tasks;
use crate::{api_server, cgroup2, local_pods, ports, proc_sys};

const PORT_RETRY: Duration = Duration::from_secs(10);

/// The role's parts that others need.
pub(crate) struct Network {
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) services: ServiceController,
    /// What policies do.
    pub(crate) policy_metrics: MetricsText,
}

/// Loads the datapath and starts everything that keeps it true. `state` becomes ready when pods can be given a network.
pub(crate) async fn start(
    options: &RunOptions,
    client: kube::Client,
    state: watch::Sender<Result<(), String>>,
    tasks: &mut Tasks,
) -> anyhow::Result<Network> {
    proc_sys::make_writable()?;
    let host = Namespace::current().await?;
    let settings = Settings::noted_in(&options.network_state());
    let source_ports = ports::divide(options.service_node_port_range, &settings, &host)
        .await
        .context("see which ports the host's sockets draw")?;
    let datapath = Arc::new(open(options, source_ports).await?);
    let uplinks = UplinkSettings {
        settings,
        host: Namespace::current().await?,
        forwards_by_xdp: matches!(options.xdp, Xdp::Native | Xdp::Generic),
    };
    for device in &options.devices {
        uplinks.apply(device).await?;
    }
    let pods = if options.has(Role::Network) {
        Some(PodNetwork::open(options, &client, host, &datapath, tasks).await?)
    } else {
        None
    };
    let policy = pods.as_ref().map(|pods| pods.policy.clone());
    let attachments = pods.as_ref().map(|pods| &*pods.attachments);
    let services = start_services(
        options,
        &client,
        &datapath,
        policy.as_ref(),
        attachments,
        tasks,
    )?;
    let follow = addresses_of(options).follow(datapath.clone(), uplinks);
    tasks.spawn_fallible("the node's addresses", async { Ok(follow.await?) });

    let told = policy.clone();
    let policy_metrics: MetricsText = Arc::new(move || {
        let text = told.as_ref().map(PolicyController::metrics_text);
        text.unwrap_or_default()
    });
    let (counted, of_policies) = (datapath.clone(), policy_metrics.clone());
    let served = services.clone();
    let all_metrics: MetricsText = Arc::new(move || {
        served.metrics_text() + &metrics::text(None, Some(&counted)) + &of_policies()
    });

    let log = flow_log(options, &datapath, policy);
    let (hearing, naming) = (log.clone(), client.clone());
    tasks.spawn("the flow log", async move { hearing.run(naming).await });
    let inspector = Inspector {
        client: client.clone(),
        datapath: datapath.clone(),
        node_name: options.node_name.clone(),
        metrics: all_metrics.clone(),
    };
    let routes = pods
        .as_ref()
        .map_or_else(Routes::default, |pods| pods.routes(tasks.stop()))
        .add_service(FlowService::server(log))
        .add_service(inspector.server());
    serve_socket(options, routes, tasks).await?;
    let proxy_ports = serve_proxy_ports(
        services.clone(),
        options.proxy_healthz_address,
        options.proxy_metrics_address,
        all_metrics,
    );
    tasks.spawn("kube-proxy's ports", proxy_ports);

    let mut readiness = Readiness {
        client: client.clone(),
        services: services.clone(),
        handed_over: None,
        host_root: (options.clean_kube_proxy == Switch::On).then(|| options.host_root.clone()),
        state,
    };
    if let Some(pods) = pods {
        pods.start(options, client, datapath.clone(), readiness, tasks)
            .await?;
    } else {
        readiness.handed_over = Some(datapath.clone());
        leave_pods_to_others(options, client, datapath.clone(), readiness, tasks);
    }

    Ok(Network {
        datapath,
        services,
        policy_metrics,
    })
}

/// What remains to be started when another plugin makes the pods' network.
fn leave_pods_to_others(
    options: &RunOptions,
    client: kube::Client,
    datapath: Arc<Datapath>,
    mut readiness: Readiness,
    tasks: &mut Tasks,
) {
    if options.dns == Switch::On {
        tracing::info!("--dns=on needs --roles=network: cluster DNS is answered by others");
    }
    let local = local_pods::follow(client, options, datapath);
    tasks.spawn("the watch of this node's pods", local);
    tasks.spawn_fallible("the network's start", async move {
        readiness.wait().await?;
        readiness.tell();
        std::future::pending().await
    });
}

async fn serve_socket(
    options: &RunOptions,
    routes: Routes,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let path = options.socket.clone();
    let listener = socket::bind(&path)
        .await
        .with_context(|| format!("serve {}", path.display()))?;
    let closed = tasks.stop().cancelled_owned();
    tasks.spawn_stopping("the agent's socket", async move {
        Ok(socket::keep(listener, &path, routes, closed).await?)
    });
    Ok(())
}

/// Starts what keeps Services in the datapath, with the host ports of pods where those are ours, and what answers for
/// balancers' addresses.
fn start_services(
    options: &RunOptions,
    client: &kube::Client,
    datapath: &Arc<Datapath>,
    policy: Option<&PolicyController>,
    attachments: Option<&Attachments>,
    tasks: &mut Tasks,
) -> anyhow::Result<ServiceController> {
    let config = ServiceControllerConfig {
        node_name: options.node_name.clone(),
        health_check_addresses: match node_ports_on(options).is_empty() {
            true => Vec::new(),
            false => addresses_of(options)
                .with_node_ports()
                .context("list the node's addresses")?,
        },
        load_balancer_pools: options.load_balancer_pool.0.clone(),
    };
    let mut services = ServiceController::new(datapath.clone(), config);
    if let Some(policy) = policy {
        services = services.asking(policy.clone());
    }
    if let Some(attachments) = attachments {
        // Before it runs: what it does not know of it would withdraw.
        let (ports, interfaces) = (services.host_ports(), attachments.subscribe());
        ports.replace(of_interfaces(&interfaces.borrow()));
        tasks.spawn("host ports", async move { ports.follow(interfaces).await });
    }
    let (controller, client) = (services.clone(), client.clone());
    tasks.spawn("services", async move { controller.run(client).await });
    if !options.load_balancer_pool.is_empty() {
        let devices = options.devices.clone();
        let announcing = announce(datapath.clone(), services.clone(), devices, tasks.stop());
        tasks.spawn_stopping("balancers' addresses", announcing);
    }
    Ok(services)
}

/// Answers for balancers' addresses once it is known which ones this node can serve, until `stop`.
async fn announce(
    datapath: Arc<Datapath>,
    services: ServiceController,
    devices: Vec<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if stop.run_until_cancelled(services.ready()).await.is_none() {
        return Ok(());
    }
    let announcer = Announcer::start(&datapath, &devices, &services.servable_addresses())
        .context("announce addresses")?;
    stop.cancelled().await;
    // It tells the others, who need not wait then.
    tokio::task::spawn_blocking(move || drop(announcer)).await?;
    Ok(())
}

/// kube-proxy's ports, for those who ask them. Traffic does not depend on them, and a
/// kube-proxy that is being replaced may still hold them: they are tried again.
async fn serve_proxy_ports(
    services: ServiceController,
    health: SocketAddr,
    metrics: SocketAddr,
    text: MetricsText,
) {
    let healthz = async {
        while let Err(error) = services.serve_health(health).await {
            tracing::warn!(%error, address = %health, "health port not served; trying again");
            tokio::time::sleep(PORT_RETRY).await;
        }
    };
    let metrics = async {
        while let Err(error) = services.serve_metrics(metrics, text.clone()).await {
            tracing::warn!(%error, address = %metrics, "metrics port not served; trying again");
            tokio::time::sleep(PORT_RETRY).await;
        }
    };
    futures::future::join(healthz, metrics).await;
}

/// What the kernel tells of single flows, with the names of policies where this agent has them.
fn flow_log(
    options: &RunOptions,
    datapath: &Arc<Datapath>,
    policy: Option<PolicyController>,
) -> FlowLog {
    let decider = move |rule| Some(policy.as_ref()?.decider(rule)?.to_string());
    let config = FlowLogConfig {
        node_name: options.node_name.clone(),
        per_second: options.flow_events_per_second,
        policy_name: Arc::new(decider),
    };
    FlowLog::new(datapath.clone(), config)
}

/// What has to be true before the node may be called ready.
pub(crate) struct Readiness {
    client: kube::Client,
    services: ServiceController,
    /// What has begun to take over from netfilter.
    handed_over: Option<Arc<Datapath>>,
    /// The node's root, when a kube-proxy's rules are to be removed.
    host_root: Option<PathBuf>,
    pub(crate) state: watch::Sender<Result<(), String>>,
}

impl Readiness {
    /// Waits until all Services are served; then nobody needs the rules of a kube-proxy, and
    /// connections that they have translated go on by the kernel's memory of them.
    pub(crate) async fn wait(&mut self) -> anyhow::Result<()> {
        let handed_over = self.handed_over.take();
        let served = async {
            self.services.ready().await;
            match handed_over {
                // At once: packets of connections that are in between are dropped until then.
                Some(datapath) => {
                    tokio::task::spawn_blocking(move || datapath.end_handover()).await?
                }
                None => Ok(()),
            }
            .context("end the handover")
        };
        let new_enough = api_server::wait_until_new_enough(&self.client, &self.state);
        tokio::join!(served, new_enough).0?;
        let Some(host_root) = self.host_root.take() else {
            return Ok(());
        };
        // In a process of its own, which leaves this one's root.
        let mut clean = tokio::process::Command::new("/proc/self/exe");
        clean
            .arg("clean-kube-proxy")
            .arg("--host-root")
            .arg(host_root);
        let status = clean.status().await.context("clean up after kube-proxy")?;
        if !status.success() {
            // Its rules are in nobody's way: our hooks come first.
            tracing::error!(%status, "rules of kube-proxy are left on this node");
        }
        Ok(())
    }

    pub(crate) fn tell(&self) {
        self.state.send_modify(|state| *state = Ok(()));
        tracing::info!("network ready");
    }
}

/// Loads, attaches and tells the datapath who it is; system calls, so off the async threads.
async fn open(options: &RunOptions, source_ports: Ports) -> anyhow::Result<Datapath> {
    let mut config = DatapathConfig::new(&options.bpffs);
    config.node_ports = options.service_node_port_range;
    config.snat_ports = source_ports;
    let (cgroup, devices) = (
        cgroup2::hierarchy(&options.cgroup2)?,
        options.devices.clone(),
    );
    let networks = native_networks(&options.cluster_cidr.0, options.node_ip.iter().copied());
    let addresses = addresses_of(options)
        .list()
        .context("list the node's addresses")?;
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let chosen = node_ports_on(options);
    config.loopback_node_ports =
        chosen.is_empty() || chosen.iter().any(|net| net.contains(&loopback));
    config.xdp = match options.xdp {
        Xdp::Off => XdpMode::Off,
        Xdp::Drop => XdpMode::Drop,
        Xdp::Native => XdpMode::Native,
        Xdp::Generic => XdpMode::Generic,
    };
    config.pod_sockets = options.socket_hooks == SocketHooks::All;
    config.direct_answers = options.load_balancer_mode == LoadBalancerMode::Dsr;
    config.maglev_size = options.maglev_table_size;
    config.capacities.maglev = options
        .maglev_tables
        .saturating_mul(config.maglev_size)
        .max(1);
    let denied: Vec<(IpAddr, u8)> = options
        .deny_cidrs
        .iter()
        .map(|net| (net.network(), net.prefix_len()))
        .collect();
    // Another CNI plugin makes the pods' namespaces, and does not tell us which they are.
    let everybody = !options.has(Role::Network);
    anyhow::ensure!(
        config.pod_sockets || !everybody,
        "--socket-hooks=host needs --roles=network: pods' packets pass nothing of ours otherwise"
    );
    let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<Datapath> {
        let datapath = Datapath::open(config).context("load the datapath")?;
        datapath.set_node_addresses(&addresses)?;
        datapath.set_denied_networks(&denied)?;
        datapath.set_native_networks(&networks)?;
        for device in &devices {
            datapath
                .attach_uplink(device)
                .with_context(|| format!("attach to {device}"))?;
        }
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        datapath.retain_uplinks(&devices)?;
        datapath
            .attach_cgroup(&cgroup)
            .with_context(|| format!("attach to {}", cgroup.display()))?;
        datapath.serve_all_namespaces(everybody)?;
        if everybody {
            datapath.begin_handover()?;
        }
        Ok(datapath)
    });
    opened.await?
}

/// The node's own addresses, and those of its uplinks: NodePorts answer on all of them, or on the chosen.
fn addresses_of(options: &RunOptions) -> NodeAddresses {
    NodeAddresses {
        own: options.node_ip.clone(),
        uplinks: options.devices.clone(),
        node_ports_on: node_ports_on(options),
    }
}

fn node_ports_on(options: &RunOptions) -> Vec<IpNet> {
    options.nodeport_addresses.networks(&options.node_ip)
}
