//! The network and services roles: the datapath, the Services in it, cluster DNS; with the
//! former also pods' interfaces.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use windlass_datapath::{Datapath, DatapathConfig, XdpMode};
use windlass_flows::{FlowLog, FlowLogConfig, FlowService};
use windlass_network::interface::Namespace;
use windlass_network::policy::{NameService, PolicyController, PolicyControllerConfig};
use windlass_network::services::{ServiceController, ServiceControllerConfig, of_interfaces};
use windlass_network::{
    Announcer, Attachments, AttachmentsConfig, CniService, DatapathInterfaces, GuardedInterfaces,
    NodeAddresses, Settings, UplinkSettings, cni_conf, socket,
};

use crate::cli::{LoadBalancerMode, Role, RunOptions, SocketHooks, Switch, Xdp};
use crate::inspect::Inspector;
use crate::nodes::{Follower, native_networks, say_available, watch_nodes};
use crate::ports::Ports;
use crate::{adoption, api_server, cgroup2, dns, local_pods, metrics, ports, proc_sys, routing};

const PORT_RETRY: Duration = Duration::from_secs(10);

/// The role's parts that others need.
pub(crate) struct Network {
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) services: ServiceController,
    /// What policies do, in Prometheus' text format.
    pub(crate) policy_metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Loads the datapath and starts everything that keeps it true; each task runs until
/// `stop`. `state` becomes ready when pods can be given a network.
pub(crate) async fn start(
    options: &RunOptions,
    client: kube::Client,
    state: watch::Sender<Result<(), String>>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
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
    let mut routes = Routes::default();
    let mut attachments = None;
    let mut tunnel = None;
    let mut policy = None;
    if options.has(Role::Network) {
        tunnel = routing::prepare(options, &host, &datapath).await?;
        let config = PolicyControllerConfig {
            names_file: options.network_state().join("names"),
            pod_networks: options.cluster_cidr.0.clone(),
            node_name: options.node_name.clone(),
        };
        let controller = PolicyController::new(datapath.clone(), config);
        let opened = open_attachments(options, host, &datapath, &controller).await?;
        let (watching, interfaces) = (client.clone(), opened.subscribe());
        policy = Some(controller.clone());
        let (end, running) = (stop.clone(), controller.clone());
        tasks.spawn(async move {
            end.run_until_cancelled(running.run(watching, interfaces))
                .await;
            Ok(())
        });
        routes = routes
            .add_service(CniService::server(opened.clone()))
            .add_service(NameService::server(
                controller,
                stop.clone().cancelled_owned(),
            ));
        attachments = Some(opened);
    }
    let name = ServiceControllerConfig {
        node_name: options.node_name.clone(),
        health_check_addresses: match node_ports_on(options).is_empty() {
            true => Vec::new(),
            false => addresses_of(options)
                .with_node_ports()
                .context("list the node's addresses")?,
        },
        load_balancer_pools: options.load_balancer_pool.0.clone(),
    };
    let mut services = ServiceController::new(datapath.clone(), name);
    if let Some(policy) = &policy {
        services = services.asking(policy.clone());
    }
    if let Some(attachments) = &attachments {
        // Before it runs: what it does not know of it would withdraw.
        let (ports, interfaces) = (services.host_ports(), attachments.subscribe());
        ports.replace(of_interfaces(&interfaces.borrow()));
        let end = stop.clone();
        tasks.spawn(async move {
            end.run_until_cancelled(ports.follow(interfaces)).await;
            Ok(())
        });
    }
    let (controller, controller_client) = (services.clone(), client.clone());
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(controller.run(controller_client))
            .await;
        Ok(())
    });

    if !options.load_balancer_pool.is_empty() {
        let (devices, end) = (options.devices.clone(), stop.clone());
        tasks.spawn(announce(datapath.clone(), services.clone(), devices, end));
    }
    let (addresses, held, end) = (addresses_of(options), datapath.clone(), stop.clone());
    tasks.spawn(async move {
        let followed = end
            .run_until_cancelled(addresses.follow(held, uplinks))
            .await;
        followed
            .unwrap_or(Ok(()))
            .context("follow the node's addresses")
    });

    let told = policy.clone();
    let of_policies: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(move || {
        let text = told.as_ref().map(PolicyController::metrics_text);
        text.unwrap_or_default()
    });
    let log = flow_log(options, &datapath, policy);
    let (hearing, naming) = (log.clone(), client.clone());
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(hearing.run(naming)).await;
        Ok(())
    });
    let (held, told) = (datapath.clone(), services.clone());
    let of_policy = of_policies.clone();
    let inspector = Inspector {
        client: client.clone(),
        datapath: datapath.clone(),
        node_name: options.node_name.clone(),
        metrics: Arc::new(move || {
            metrics::text(None, Some(&held)) + &told.metrics_text() + &of_policy()
        }),
    };
    let routes = routes
        .add_service(FlowService::server(log))
        .add_service(inspector.server());
    let listener = socket::bind(&options.socket)
        .await
        .with_context(|| format!("serve {}", options.socket.display()))?;
    let closed = stop.clone().cancelled_owned();
    let path = options.socket.clone();
    tasks.spawn(async move { Ok(socket::keep(listener, &path, routes, closed).await?) });

    let held = datapath.clone();
    let ports = serve_proxy_ports(
        services.clone(),
        options.proxy_healthz_address,
        options.proxy_metrics_address,
        Arc::new({
            let of_policy = of_policies.clone();
            move || metrics::text(None, Some(&held)) + &of_policy()
        }),
    );
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(ports).await;
        Ok(())
    });

    let mut ready = state.subscribe();
    let mut becoming_ready = Readiness {
        client: client.clone(),
        services: services.clone(),
        host_root: (options.clean_kube_proxy == Switch::On).then(|| options.host_root.clone()),
        state,
    };
    if let Some(attachments) = attachments {
        let nodes = watch_nodes(client.clone(), tasks, stop.clone());
        let (known, news) = (nodes.store.clone(), nodes.changed.clone());
        let held = datapath.clone();
        routing::start(options, tunnel, held, known, news, tasks, stop.clone()).await?;
        let follower = Follower {
            node_name: options.node_name.clone(),
            cluster_cidr: options.cluster_cidr.0.clone(),
            node_ips: options.node_ip.clone(),
            datapath: datapath.clone(),
            attachments: attachments.clone(),
            nodes,
        };
        let (end, tended) = (stop.clone(), attachments.clone());
        let tended_by = attachments.clone();
        tasks.spawn(async move {
            end.run_until_cancelled(tended.tend()).await;
            Ok(())
        });
        match options.dns {
            Switch::On => {
                let keeper = dns::Keeper::new(options, client.clone(), attachments);
                let end = stop.clone();
                tasks.spawn(async move {
                    // An address is to be had once the node was given some.
                    let network = end.run_until_cancelled(ready.wait_for(Result::is_ok)).await;
                    drop(network);
                    keeper.keep(end).await
                });
            }
            Switch::Off => dns::retire(options, &client, &attachments).await?,
        }
        let plugin = Plugin::of(options);
        let newcomer = adoption::Newcomer::new(options, &client, tended_by);
        let node = options.node_name.clone();
        // A kubelet of ours says all that there is to say of its Node itself.
        let tells = !options.has(Role::Pods);
        let end = stop.clone();
        tasks.spawn(async move {
            let work = async {
                follower.first(&becoming_ready.state).await?;
                becoming_ready.wait().await?;
                // Before an address is given that one of them has.
                newcomer.look().await;
                plugin.install()?;
                becoming_ready.tell();
                let tell = async {
                    if tells {
                        say_available(client, &node).await;
                    }
                };
                let ((), (), followed) =
                    tokio::join!(tell, newcomer.look_again(), follower.follow());
                followed
            };
            end.run_until_cancelled(work).await.unwrap_or(Ok(()))
        });
    } else {
        let local = local_pods::follow(client.clone(), options, datapath.clone());
        let end = stop.clone();
        tasks.spawn(async move {
            end.run_until_cancelled(local).await;
            Ok(())
        });
        let end = stop.clone();
        tasks.spawn(async move {
            let work = async {
                becoming_ready.wait().await?;
                becoming_ready.tell();
                std::future::pending().await
            };
            end.run_until_cancelled(work).await.unwrap_or(Ok(()))
        });
    }

    Ok(Network {
        datapath,
        services,
        policy_metrics: of_policies,
    })
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
    more: Arc<dyn Fn() -> String + Send + Sync>,
) {
    let told = services.clone();
    let text: Arc<dyn Fn() -> String + Send + Sync> =
        Arc::new(move || told.metrics_text() + &more());
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

/// Adopts the pods' interfaces that are there.
async fn open_attachments(
    options: &RunOptions,
    host: Namespace,
    datapath: &Arc<Datapath>,
    policy: &PolicyController,
) -> anyhow::Result<Arc<Attachments>> {
    let config = AttachmentsConfig {
        state_dir: options.network_state(),
        node_addresses: options.node_ip.clone(),
        uplinks: routing::ways(options),
    };
    let interfaces = Arc::new(GuardedInterfaces {
        datapath: DatapathInterfaces(datapath.clone()),
        gate: policy.gate(),
    });
    let attachments = Arc::new(Attachments::open(config, host, interfaces).await?);
    let adopted = attachments.subscribe().borrow().clone();
    let live: Vec<IpAddr> = adopted
        .values()
        .flat_map(|pod| pod.link.addresses.iter().copied())
        .collect();
    datapath
        .retain_pods(&live)
        .context("drop addresses of pods that are gone")?;
    Ok(attachments)
}

/// What has to be true before the node may be called ready.
struct Readiness {
    client: kube::Client,
    services: ServiceController,
    /// The node's root, when a kube-proxy's rules are to be removed.
    host_root: Option<PathBuf>,
    state: watch::Sender<Result<(), String>>,
}

impl Readiness {
    /// Waits until all Services are served; then nobody needs the rules of a kube-proxy, and
    /// connections that they have translated go on by the kernel's memory of them.
    async fn wait(&mut self) -> anyhow::Result<()> {
        tokio::join!(
            self.services.ready(),
            api_server::wait_until_new_enough(&self.client, &self.state)
        );
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

    fn tell(&self) {
        self.state.send_modify(|state| *state = Ok(()));
        tracing::info!("network ready");
    }
}

/// The CNI plugin, installed when ADD can be answered.
struct Plugin {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    socket: PathBuf,
    exclusive: bool,
}

impl Plugin {
    fn of(options: &RunOptions) -> Self {
        Self {
            conf_dir: options.cni_conf_dir.clone(),
            bin_dir: options.cni_bin_dir.clone(),
            socket: options.socket.clone(),
            exclusive: options.cni_exclusive == Switch::On,
        }
    }

    fn install(&self) -> anyhow::Result<()> {
        let (conf, bin) = (&self.conf_dir, &self.bin_dir);
        cni_conf::install_plugin(bin)
            .with_context(|| format!("install the CNI plugin in {}", bin.display()))?;
        cni_conf::write(conf, &self.socket)
            .with_context(|| format!("write the CNI configuration in {}", conf.display()))?;
        if self.exclusive {
            let aside = cni_conf::put_others_aside(conf)
                .with_context(|| format!("put configurations in {} aside", conf.display()))?;
            if !aside.is_empty() {
                tracing::info!(folder = %conf.display(), ?aside, "configurations of other CNI plugins put aside");
            }
        }
        Ok(())
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
