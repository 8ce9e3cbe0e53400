//! The network role: the datapath, the Services in it, pods' interfaces, cluster DNS.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
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
use windlass_network::interface::Namespace;
use windlass_network::services::{ServiceController, ServiceControllerConfig};
use windlass_network::{
    Attachments, AttachmentsConfig, CniService, DatapathInterfaces, cni_conf, socket, uplink,
};

use crate::cli::{RunOptions, Switch};
use windlass_pods::Patience;

const DNS_RETRY: Duration = Duration::from_secs(5);

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
    let datapath = Arc::new(open(options).await?);
    let host = Namespace::current().await?;
    for device in &options.devices {
        uplink::enable_forwarding(&host, device).await?;
    }
    let config = AttachmentsConfig {
        state_dir: options.state_dir.join("network"),
        node_addresses: options.node_ip.clone(),
        uplinks: options.devices.clone(),
    };
    let interfaces = Arc::new(DatapathInterfaces(datapath.clone()));
    let attachments = Arc::new(Attachments::open(config, host, interfaces).await?);
    let adopted = attachments.subscribe().borrow().clone();
    let live: Vec<IpAddr> = adopted
        .values()
        .flat_map(|pod| pod.link.addresses.iter().copied())
        .collect();
    datapath
        .retain_pods(&live)
        .context("drop addresses of pods that are gone")?;

    let listener = socket::bind(&options.socket)
        .await
        .with_context(|| format!("serve {}", options.socket.display()))?;
    let routes = Routes::new(CniService::server(attachments.clone()));
    let closed = stop.clone().cancelled_owned();
    tasks.spawn(async move { Ok(socket::serve(listener, routes, closed).await?) });

    let name = ServiceControllerConfig {
        node_name: options.node_name.clone(),
    };
    let services = ServiceController::new(datapath.clone(), name);
    let (controller, controller_client) = (services.clone(), client.clone());
    let end = stop.clone();
    tasks.spawn(async move {
        end.run_until_cancelled(controller.run(controller_client))
            .await;
        Ok(())
    });

    let (end, tended) = (stop.clone(), attachments.clone());
    tasks.spawn(async move {
        end.run_until_cancelled(tended.tend()).await;
        Ok(())
    });

    let nodes = watch_nodes(client.clone(), tasks, stop.clone());
    let follower = Follower {
        node_name: options.node_name.clone(),
        cluster_cidr: options.cluster_cidr.clone(),
        node_ips: options.node_ip.clone(),
        datapath: datapath.clone(),
        attachments,
        nodes,
    };
    let (conf_dir, bin_dir) = (options.cni_conf_dir.clone(), options.cni_bin_dir.clone());
    let (agent_socket, ready) = (options.socket.clone(), services.clone());
    let end = stop.clone();
    tasks.spawn(async move {
        let work = async {
            follower.first().await?;
            ready.ready().await;
            cni_conf::install_plugin(&bin_dir)
                .with_context(|| format!("install the CNI plugin in {}", bin_dir.display()))?;
            cni_conf::write(&conf_dir, &agent_socket).with_context(|| {
                format!("write the CNI configuration in {}", conf_dir.display())
            })?;
            state.send_modify(|state| *state = Ok(()));
            tracing::info!("network ready");
            follower.follow().await
        };
        end.run_until_cancelled(work).await.unwrap_or(Ok(()))
    });

    if options.dns == Switch::On
        && let Some(ip) = options.node_ip.first()
    {
        let dns = windlass_dns::DnsOptions {
            listen: SocketAddr::new(*ip, options.dns_port),
            domain: options.cluster_domain.clone(),
            node_name: options.node_name.clone(),
            resolv_conf: options.resolv_conf.clone(),
        };
        tasks.spawn(serve_dns(client, dns, stop));
    }
    Ok(Network { datapath, services })
}

/// Loads, attaches and tells the datapath who it is; system calls, so off the async threads.
async fn open(options: &RunOptions) -> anyhow::Result<Datapath> {
    let mut config = DatapathConfig::new(&options.bpffs);
    config.node_ports = options.service_node_port_range;
    let (cgroup, devices) = (options.cgroup2.clone(), options.devices.clone());
    let networks = native_networks(&options.cluster_cidr, options.node_ip.iter().copied());
    let addresses = node_addresses(options)?;
    let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<Datapath> {
        let datapath = Datapath::open(config).context("load the datapath")?;
        datapath.set_node_addresses(&addresses)?;
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
        Ok(datapath)
    });
    opened.await?
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

/// DNS is not what the node stands or falls with: it is tried again.
async fn serve_dns(
    client: kube::Client,
    options: windlass_dns::DnsOptions,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        match windlass_dns::run(client.clone(), options.clone(), stop.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::error!(%error, "cluster DNS failed, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(DNS_RETRY) => {}
        }
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
