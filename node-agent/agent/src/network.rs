//! The network and services roles: the datapath, the Services in it, cluster DNS; with the
//! former also pods' interfaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use windlass_datapath::{Datapath, DatapathConfig};
use windlass_flows::{FlowLog, FlowLogConfig, FlowService};
use windlass_network::interface::Namespace;
use windlass_network::policy::{PolicyController, PolicyControllerConfig};
use windlass_network::services::{ServiceController, ServiceControllerConfig, of_interfaces};
use windlass_network::{
    Attachments, AttachmentsConfig, CniService, DatapathInterfaces, GuardedInterfaces, cni_conf,
    socket, uplink,
};

use crate::cli::{Role, RunOptions, Switch};
use crate::inspect::Inspector;
use crate::{dns, local_pods, metrics, proc_sys, routing};
use windlass_pods::Patience;

const PORT_RETRY: Duration = Duration::from_secs(10);

/// The role's parts that others need.
pub(crate) struct Network {
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) services: ServiceController,
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
    let datapath = Arc::new(open(options).await?);
    let host = Namespace::current().await?;
    for device in &options.devices {
        uplink::enable_forwarding(&host, device).await?;
    }
    let mut routes = Routes::default();
    let mut attachments = None;
    let mut tunnel = None;
    let mut policy = None;
    if options.has(Role::Network) {
        tunnel = routing::prepare(options, &host, &datapath).await?;
        let config = PolicyControllerConfig {
            pod_networks: options.cluster_cidr.clone(),
        };
        let controller = PolicyController::new(datapath.clone(), config);
        let opened = open_attachments(options, host, &datapath, &controller).await?;
        let (watching, interfaces) = (client.clone(), opened.subscribe());
        policy = Some(controller.clone());
        let end = stop.clone();
        tasks.spawn(async move {
            end.run_until_cancelled(controller.run(watching, interfaces))
                .await;
            Ok(())
        });
        routes = routes.add_service(CniService::server(opened.clone()));
        attachments = Some(opened);
    }
    let name = ServiceControllerConfig {
        node_name: options.node_name.clone(),
        health_check_addresses: match options.nodeport_addresses.is_empty() {
            true => Vec::new(),
            false => node_port_addresses(options)?,
        },
    };
    let services = ServiceController::new(datapath.clone(), name);
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

    let log = flow_log(options, &datapath, policy);
    let (hearing, naming) = (log.clone(), client.clone());
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(hearing.run(naming)).await;
        Ok(())
    });
    let (held, told) = (datapath.clone(), services.clone());
    let inspector = Inspector {
        client: client.clone(),
        datapath: datapath.clone(),
        node_name: options.node_name.clone(),
        metrics: Arc::new(move || metrics::text(None, Some(&held)) + &told.metrics_text()),
    };
    let routes = routes
        .add_service(FlowService::server(log))
        .add_service(inspector.server());
    let listener = socket::bind(&options.socket)
        .await
        .with_context(|| format!("serve {}", options.socket.display()))?;
    let closed = stop.clone().cancelled_owned();
    tasks.spawn(async move { Ok(socket::serve(listener, routes, closed).await?) });

    let held = datapath.clone();
    let ports = serve_proxy_ports(
        services.clone(),
        options.proxy_healthz_address,
        options.proxy_metrics_address,
        Arc::new(move || metrics::text(None, Some(&held))),
    );
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(ports).await;
        Ok(())
    });

    let mut ready = state.subscribe();
    let mut becoming_ready = Readiness {
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
            cluster_cidr: options.cluster_cidr.clone(),
            node_ips: options.node_ip.clone(),
            datapath: datapath.clone(),
            attachments: attachments.clone(),
            nodes,
        };
        let (end, tended) = (stop.clone(), attachments.clone());
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
        let end = stop.clone();
        tasks.spawn(async move {
            let work = async {
                follower.first().await?;
                becoming_ready.wait().await?;
                plugin.install()?;
                becoming_ready.tell();
                follower.follow().await
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

    Ok(Network { datapath, services })
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
        state_dir: options.state_dir.join("network"),
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
    services: ServiceController,
    /// The node's root, when a kube-proxy's rules are to be removed.
    host_root: Option<PathBuf>,
    state: watch::Sender<Result<(), String>>,
}

impl Readiness {
    /// Waits until all Services are served; then nobody needs the rules of a kube-proxy, and
    /// connections that they have translated go on by the kernel's memory of them.
    async fn wait(&mut self) -> anyhow::Result<()> {
        self.services.ready().await;
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
}

impl Plugin {
    fn of(options: &RunOptions) -> Self {
        Self {
            conf_dir: options.cni_conf_dir.clone(),
            bin_dir: options.cni_bin_dir.clone(),
            socket: options.socket.clone(),
        }
    }

    fn install(&self) -> anyhow::Result<()> {
        let (conf, bin) = (&self.conf_dir, &self.bin_dir);
        cni_conf::install_plugin(bin)
            .with_context(|| format!("install the CNI plugin in {}", bin.display()))?;
        cni_conf::write(conf, &self.socket)
            .with_context(|| format!("write the CNI configuration in {}", conf.display()))
    }
}

/// Loads, attaches and tells the datapath who it is; system calls, so off the async threads.
async fn open(options: &RunOptions) -> anyhow::Result<Datapath> {
    let mut config = DatapathConfig::new(&options.bpffs);
    config.node_ports = options.service_node_port_range;
    let (cgroup, devices) = (options.cgroup2.clone(), options.devices.clone());
    let networks = native_networks(&options.cluster_cidr, options.node_ip.iter().copied());
    let chosen = node_port_addresses(options)?;
    let addresses: Vec<(IpAddr, bool)> = node_addresses(options)?
        .into_iter()
        .map(|address| (address, chosen.contains(&address)))
        .collect();
    let loopback = IpAddr::from([127, 0, 0, 1]);
    config.loopback_node_ports = options.nodeport_addresses.is_empty()
        || options
            .nodeport_addresses
            .iter()
            .any(|net| net.contains(&loopback));
    config.maglev_size = options.maglev_table_size;
    let denied: Vec<(IpAddr, u8)> = options
        .deny_cidrs
        .iter()
        .map(|net| (net.network(), net.prefix_len()))
        .collect();
    // Another CNI plugin makes the pods' namespaces, and does not tell us which they are.
    let everybody = !options.has(Role::Network);
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

/// Those of the node's addresses on which NodePorts answer.
fn node_port_addresses(options: &RunOptions) -> anyhow::Result<Vec<IpAddr>> {
    let chosen = &options.nodeport_addresses;
    let mut addresses = node_addresses(options)?;
    addresses.retain(|address| {
        chosen.is_empty() || chosen.iter().any(|network| network.contains(address))
    });
    Ok(addresses)
}

/// The node's own addresses, and those of its uplinks: NodePorts answer on all of them.
fn node_addresses(options: &RunOptions) -> anyhow::Result<Vec<IpAddr>> {
    let mut addresses: BTreeSet<IpAddr> = options.node_ip.iter().copied().collect();
    for interface in nix::ifaddrs::getifaddrs().context("list the node's addresses")? {
        if !options.devices.contains(&interface.interface_name) {
            continue;
        }
        let Some(address) = interface.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.insert(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6()
            && !v6.ip().is_unicast_link_local()
        {
            addresses.insert(v6.ip().into());
        }
    }
    Ok(addresses.into_iter().collect())
}

/// Whoever is in the cluster sees pods' own addresses: the pods and the nodes.
fn native_networks(cluster: &[IpNet], nodes: impl Iterator<Item = IpAddr>) -> Vec<(IpAddr, u8)> {
    let pods = cluster.iter().map(|net| (net.network(), net.prefix_len()));
    let nodes = nodes.map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 }));
    let all: BTreeSet<(IpAddr, u8)> = pods.chain(nodes).collect();
    all.into_iter().collect()
}

/// The cluster's nodes, without what is not needed of them.
struct Nodes {
    store: Store<Node>,
    changed: watch::Receiver<u64>,
}

fn watch_nodes(
    client: kube::Client,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
) -> Nodes {
    let (store, writer) = reflector::store();
    let (told, changed) = watch::channel(0);
    let nodes: Api<Node> = Api::all(client);
    let stream = watcher::watcher(nodes, watcher::Config::default())
        .backoff(Patience::default())
        .modify(|node| {
            node.metadata.managed_fields = None;
            if let Some(status) = node.status.as_mut() {
                status.images = None;
                status.conditions = None;
            }
        })
        .reflect(writer);
    tasks.spawn(async move {
        let follow = stream.for_each(|event| {
            match event {
                Ok(_) => told.send_modify(|count| *count += 1),
                Err(error) => tracing::debug!(%error, "watch of nodes interrupted"),
            }
            std::future::ready(())
        });
        stop.run_until_cancelled(follow).await;
        Ok(())
    });
    Nodes { store, changed }
}

/// Carries what Nodes say into the datapath: this node's pod addresses, all nodes' own.
struct Follower {
    node_name: String,
    cluster_cidr: Vec<IpNet>,
    node_ips: Vec<IpAddr>,
    datapath: Arc<Datapath>,
    attachments: Arc<Attachments>,
    nodes: Nodes,
}

impl Follower {
    /// Waits until this node was given addresses for its pods.
    async fn first(&self) -> anyhow::Result<()> {
        let mut changed = self.nodes.changed.clone();
        while !self.apply()? {
            changed.changed().await?;
        }
        Ok(())
    }

    async fn follow(self) -> anyhow::Result<()> {
        let mut changed = self.nodes.changed.clone();
        while changed.changed().await.is_ok() {
            if let Err(error) = self.apply() {
                tracing::error!(error = format!("{error:#}"), "nodes not taken over");
            }
        }
        Ok(())
    }

    /// Whether this node has pod addresses.
    fn apply(&self) -> anyhow::Result<bool> {
        let nodes = self.nodes.store.state();
        let others = nodes.iter().flat_map(|node| {
            let addresses = node
                .status
                .iter()
                .flat_map(|it| it.addresses.iter().flatten());
            let internal = addresses.filter(|address| address.type_ == "InternalIP");
            internal.filter_map(|address| address.address.parse().ok())
        });
        let all = self.node_ips.iter().copied().chain(others);
        self.datapath
            .set_native_networks(&native_networks(&self.cluster_cidr, all))?;

        let own = nodes
            .iter()
            .find(|node| node.metadata.name.as_deref() == Some(self.node_name.as_str()));
        let spec = own.and_then(|node| node.spec.as_ref());
        let cidrs: Vec<IpNet> = spec
            .into_iter()
            .flat_map(|spec| match &spec.pod_cidrs {
                Some(cidrs) => cidrs.clone(),
                None => spec.pod_cidr.iter().cloned().collect(),
            })
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        if cidrs.is_empty() {
            return Ok(false);
        }
        self.attachments.set_pod_cidrs(&cidrs)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_nodes_are_native() {
        let cluster = [
            "10.244.0.0/16".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        ];
        let nodes: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let networks = native_networks(&cluster, nodes.into_iter());
        let text: Vec<String> = networks
            .iter()
            .map(|(ip, length)| format!("{ip}/{length}"))
            .collect();
        assert_eq!(
            text,
            [
                "10.244.0.0/16",
                "192.0.2.1/32",
                "2001:db8::1/128",
                "fd00::/48"
            ]
        );
    }
}
