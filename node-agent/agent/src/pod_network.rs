//! What pods need of the network role: their policies, interfaces and addresses, routes to other nodes, cluster DNS and
//! the CNI plugin.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use windlass_datapath::Datapath;
use windlass_network::interface::Namespace;
use windlass_network::policy::{NameService, PolicyController, PolicyControllerConfig};
use windlass_network::{
    Attachments, AttachmentsConfig, CniService, DatapathInterfaces, GuardedInterfaces, cni_conf,
};

use crate::adoption::Newcomer;
use crate::cli::{Role, RunOptions, Switch};
use crate::network::Readiness;
use crate::nodes::{Follower, say_available, watch_nodes};
use crate::tasks::Tasks;
use crate::{dns, routing};

pub(crate) struct PodNetwork {
    pub(crate) policy: PolicyController,
    pub(crate) attachments: Arc<Attachments>,
    /// The index of the tunnel's device.
    tunnel: Option<u32>,
}

impl PodNetwork {
    /// Adopts the interfaces that are there, and keeps policies in force for them.
    pub(crate) async fn open(
        options: &RunOptions,
        client: &kube::Client,
        host: Namespace,
        datapath: &Arc<Datapath>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let tunnel = routing::prepare(options, &host, datapath).await?;
        let config = PolicyControllerConfig {
            names_file: options.network_state().join("names"),
            pod_networks: options.cluster_cidr.0.clone(),
            node_name: options.node_name.clone(),
        };
        let policy = PolicyController::new(datapath.clone(), config);
        let attachments = open_attachments(options, host, datapath, &policy).await?;
        let (running, client) = (policy.clone(), client.clone());
        let interfaces = attachments.subscribe();
        tasks.spawn("policies", async move {
            running.run(client, interfaces).await;
        });
        Ok(Self {
            policy,
            attachments,
            tunnel,
        })
    }

    /// What the CNI plugin and cluster DNS ask by the agent's socket.
    pub(crate) fn routes(&self, stop: CancellationToken) -> Routes {
        let names = NameService::server(self.policy.clone(), stop.cancelled_owned());
        Routes::default()
            .add_service(CniService::server(self.attachments.clone()))
            .add_service(names)
    }

    /// Starts the rest; the network is ready when this node has addresses for pods and the plugin is installed.
    pub(crate) async fn start(
        self,
        options: &RunOptions,
        client: kube::Client,
        datapath: Arc<Datapath>,
        mut readiness: Readiness,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let Self {
            attachments,
            tunnel,
            ..
        } = self;
        let nodes = watch_nodes(client.clone(), tasks);
        routing::start(options, tunnel, datapath.clone(), &nodes, tasks).await?;
        let tended = attachments.clone();
        tasks.spawn("pods' interfaces", async move { tended.tend().await });
        match options.dns {
            Switch::On => {
                let keeper = dns::Keeper::new(options, client.clone(), attachments.clone());
                let (mut ready, stop) = (readiness.state.subscribe(), tasks.stop());
                tasks.spawn_stopping("cluster DNS", async move {
                    // An address is to be had once the node was given some.
                    let network = stop
                        .run_until_cancelled(ready.wait_for(Result::is_ok))
                        .await;
                    drop(network);
                    keeper.keep(stop).await
                });
            }
            Switch::Off => dns::retire(options, &client, &attachments).await?,
        }
        let plugin = Plugin::of(options);
        let newcomer = Newcomer::new(options, &client, attachments.clone());
        let follower = Follower {
            node_name: options.node_name.clone(),
            cluster_cidr: options.cluster_cidr.0.clone(),
            node_ips: options.node_ip.clone(),
            datapath,
            attachments,
            nodes,
        };
        let node = options.node_name.clone();
        // A kubelet of ours says all that there is to say of its Node itself.
        let tells = !options.has(Role::Pods);
        tasks.spawn_fallible(
            "the network's start and the node's pod addresses",
            async move {
                follower.first(&readiness.state).await?;
                readiness.wait().await?;
                // Before an address is given that one of them has.
                newcomer.look().await;
                plugin.install()?;
                readiness.tell();
                let tell = async {
                    if tells {
                        say_available(client, &node).await;
                    }
                };
                let ((), (), followed) =
                    tokio::join!(tell, newcomer.look_again(), follower.follow());
                followed
            },
        );
        Ok(())
    }
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
