//! The agent's life: what starts in which order, and how it ends.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use windlass_cri::Runtime;
use windlass_machinery::quantity::Quantity;
use windlass_pods::{Config, EndpointDrain, NoDrain, Parts, Patience, Pods, Recorder};
use windlass_streaming::{Server, StreamingConfig};
use windlass_volumes::NodeFacts;

use crate::cli::{Role, RunOptions};
use crate::drain::ServiceDrain;
use crate::health::{self, Health};
use crate::kubelet_access::ClusterAccess;
use crate::lookup::PodsLookup;
use crate::metrics::{self, MetricsText};
use crate::network::{self, Network};
use crate::node::{self, Capacity};
use crate::pid_file::PidFile;
use crate::tasks::Tasks;
use crate::{api_server, client_certificate, kubelet_conf, retirement, this_node};

const RUNTIME_RETRY: Duration = Duration::from_millis(100);

/// Runs until a signal, which leaves pods, programs and connections as they are.
pub(crate) async fn run(mut options: RunOptions) -> anyhow::Result<()> {
    let _pid_file = options
        .pid_file
        .as_deref()
        .map(PidFile::write)
        .transpose()?;
    std::fs::create_dir_all(&options.state_dir)
        .with_context(|| format!("make {}", options.state_dir.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tasks = Tasks::default();
    let mut asked = false;
    let result = tokio::select! {
        result = serve(&mut options, &mut tasks) => result,
        _ = terminate.recv() => { asked = true; Ok(()) },
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("stopping; pods and connections go on");
    tasks.end().await;
    if asked && retirement::is_final(&options).await {
        return retirement::leave(&options).await;
    }
    result
}

/// Starts everything; returns only when a part of it fails.
async fn serve(options: &mut RunOptions, tasks: &mut Tasks) -> anyhow::Result<()> {
    if options.kubeconfig.is_none() && options.kube_apiserver.is_empty() {
        options.kube_apiserver = kubelet_conf::server(&options.host_root).unwrap_or_default();
    }
    let mut kube =
        api_server::config(options.kubeconfig.as_deref(), &options.kube_apiserver).await?;
    tracing::info!(server = %kube.cluster_url, "the API server");
    let is_kubelet = options.has(Role::Pods);
    if is_kubelet {
        client_certificate::prefer_renewed(&mut kube, &options.state_dir);
    }
    let identity = kube.clone();
    let client_ca = pem(kube.root_cert.as_deref().unwrap_or_default());
    let client = kube::Client::try_from(kube).context("prepare to talk to the API server")?;
    this_node::complete(options, &client).await?;
    let options = &*options;
    if is_kubelet {
        let renewing =
            client_certificate::keep(client.clone(), identity, options.state_dir.clone());
        tasks.spawn_fallible("the client certificate", renewing);
    }
    let runtime = Runtime::new(options.runtime_endpoint.clone());
    let not_yet = "the network is not programmed yet".to_owned();
    let (network_state, network_seen) = watch::channel(Err(not_yet));

    // The Node registers while the datapath loads: neither needs the other yet.
    let registering = async {
        if !options.has(Role::Pods) {
            return Ok(None);
        }
        let settings = node_settings(options, &runtime).await?;
        node::register(&client, &settings).await;
        Ok::<_, anyhow::Error>(Some(settings))
    };
    let networking = async {
        if !options.serves_services() {
            // Whoever else serves the network tells the runtime, which tells us.
            network_state.send_modify(|state| *state = Ok(()));
            return Ok(None);
        }
        let (client, state) = (client.clone(), network_state.clone());
        network::start(options, client, state, tasks)
            .await
            .map(Some)
    };
    let (settings, network) = tokio::try_join!(registering, networking)?;

    let mut starter = Starter {
        options,
        client,
        runtime,
        tasks,
    };
    let mut pods = None;
    if let Some(settings) = &settings {
        pods = Some(starter.pods(settings, network.as_ref())?);
    }
    let metrics = metrics_of(pods.clone(), network.as_ref());
    if let (Some(pods), Some(settings)) = (pods, settings) {
        starter.node(settings, network_seen.clone());
        starter.streams(client_ca, pods, metrics.clone()).await?;
    }
    if let Some(address) = options.health_address {
        let health = Health {
            network: network_seen,
            metrics,
        };
        let serving = health::serve(address, health, starter.tasks.stop()).await?;
        starter.tasks.spawn_stopping("the health port", serving);
    }
    tracing::info!(node = options.node_name, roles = ?options.roles, "node agent runs");
    tokio::spawn(windlass_own_code::forget_unused());
    Err(starter.tasks.first_end().await)
}

fn metrics_of(pods: Option<Pods>, network: Option<&Network>) -> MetricsText {
    let datapath = network.map(|network| network.datapath.clone());
    let services = network.map(|network| network.services.clone());
    let of_policies = network.map(|network| network.policy_metrics.clone());
    Arc::new(move || {
        let mut text = metrics::text(pods.as_ref(), datapath.as_ref());
        if let Some(services) = &services {
            text.push_str(&services.metrics_text());
        }
        if let Some(of_policies) = &of_policies {
            text.push_str(&of_policies());
        }
        text
    })
}

/// The certificates that the kubeconfig trusts, for those who want them as text.
fn pem(certificates: &[Vec<u8>]) -> Vec<u8> {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text.into_bytes()
}

/// Waits for the runtime, whose version is a part of the Node.
async fn node_settings(options: &RunOptions, runtime: &Runtime) -> anyhow::Result<node::Settings> {
    let capacity = Capacity::measure(&options.state_dir, options.max_pods)?;
    let version = loop {
        match runtime.version().await {
            Ok(version) => break version,
            Err(error) => {
                tracing::warn!(%error, "waiting for the container runtime");
                tokio::time::sleep(RUNTIME_RETRY).await;
            }
        }
    };
    let number = version.runtime_version.trim_start_matches('v');
    Ok(node::Settings {
        name: options.node_name.clone(),
        ips: options.node_ip.clone(),
        labels: options.node_labels.clone(),
        taints: options.register_with_taints.clone(),
        kubelet_port: options.kubelet_port,
        state_dir: options.state_dir.clone(),
        eviction: options.eviction_hard.clone(),
        capacity,
        runtime_version: format!("{}://{number}", version.runtime_name),
    })
}

/// What the parts of the pods role are started from.
struct Starter<'a> {
    options: &'a RunOptions,
    client: kube::Client,
    runtime: Runtime,
    tasks: &'a mut Tasks,
}

impl Starter<'_> {
    fn pods(
        &mut self,
        settings: &node::Settings,
        network: Option<&Network>,
    ) -> anyhow::Result<Pods> {
        let drain: Arc<dyn EndpointDrain> = match network {
            Some(network) => Arc::new(ServiceDrain(network.services.clone())),
            None => Arc::new(NoDrain),
        };
        let runtime_name = settings
            .runtime_version
            .split("://")
            .next()
            .unwrap_or_default();
        let pods = Pods::new(Parts {
            config: pods_config(self.options, settings),
            runtime: self.runtime.clone(),
            runtime_name: runtime_name.to_owned(),
            recorder: Recorder::new(self.client.clone(), self.options.node_name.clone()),
            client: self.client.clone(),
            services: self.services(),
            drain,
        })
        .context("prepare pods' cgroups")?;
        let (running, stop) = (pods.clone(), self.tasks.stop());
        self.tasks.spawn_stopping("pods", async move {
            running.run(stop).await;
            Ok(())
        });
        Ok(pods)
    }

    /// Services as containers' environments tell of them, without what is not needed for
    /// that.
    fn services(&mut self) -> Store<Service> {
        let (store, writer) = reflector::store();
        let services: Api<Service> = Api::all(self.client.clone());
        let stream = watcher::watcher(services, watcher::Config::default())
            .backoff(Patience::default())
            .modify(|service| {
                service.metadata.managed_fields = None;
                service.metadata.annotations = None;
                service.status = None;
            })
            .reflect(writer);
        let follow = stream.for_each(|event| {
            if let Err(error) = event {
                tracing::debug!(%error, "watch of services interrupted");
            }
            std::future::ready(())
        });
        self.tasks.spawn("the watch of services", follow);
        store
    }

    fn node(&mut self, settings: node::Settings, network: watch::Receiver<Result<(), String>>) {
        let (client, stop) = (self.client.clone(), self.tasks.stop());
        let lease = node::keep_lease(client.clone(), settings.name.clone(), stop.clone());
        let status = node::keep_status(client, settings, self.runtime.clone(), network, stop);
        self.tasks.spawn_stopping("the node's lease", async move {
            lease.await;
            Ok(())
        });
        self.tasks.spawn_stopping("the node's status", async move {
            status.await;
            Ok(())
        });
    }

    async fn streams(
        &mut self,
        client_ca: Vec<u8>,
        pods: Pods,
        metrics: MetricsText,
    ) -> anyhow::Result<()> {
        let config = StreamingConfig {
            // Of both families.
            address: (Ipv6Addr::UNSPECIFIED, self.options.kubelet_port).into(),
            node_name: self.options.node_name.clone(),
            node_addresses: self.options.node_ip.clone(),
            state_dir: self.options.state_dir.clone(),
            client_ca,
        };
        let lookup = Arc::new(PodsLookup(pods));
        let access = ClusterAccess::new(self.client.clone(), self.options.node_name.clone());
        let server = Server::bind(config, self.runtime.clone(), lookup, metrics)
            .await?
            .with_access(Arc::new(access))
            .with_configuration(kubelet_configuration(self.options));
        let stop = self.tasks.stop();
        self.tasks.spawn_stopping("logs and exec", async move {
            server.run(stop).await;
            Ok(())
        });
        Ok(())
    }
}

/// What `/configz` tells: the settings that have a name in the kubelet's configuration.
fn kubelet_configuration(options: &RunOptions) -> serde_json::Value {
    let dns: Vec<String> = options
        .cluster_dns
        .iter()
        .map(ToString::to_string)
        .collect();
    serde_json::json!({
        "port": options.kubelet_port,
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": dns,
        "clusterDomain": options.cluster_domain,
        "cgroupRoot": options.cgroup_root,
        "containerLogMaxFiles": options.container_log_max_files,
        "containerLogMaxSize": options.container_log_max_size.to_string(),
        "maxPods": options.max_pods,
        "podPidsLimit": -1,
        "resolvConf": options.resolv_conf,
        "allowedUnsafeSysctls": options.allowed_unsafe_sysctls,
        "staticPodPath": options.pod_manifest_path,
        "evictionHard": options.eviction_hard.by_signal(),
        "imageGCHighThresholdPercent": options.image_gc_high_threshold,
        "imageGCLowThresholdPercent": options.image_gc_low_threshold,
    })
}

fn pods_config(options: &RunOptions, settings: &node::Settings) -> Config {
    let allocatable = settings.capacity.allocatable();
    let allocatable = allocatable
        .into_iter()
        .filter_map(|(name, amount)| Some((name, Quantity::parse(&amount.0).ok()?)));
    Config {
        node: NodeFacts {
            name: options.node_name.clone(),
            ips: options.node_ip.iter().map(ToString::to_string).collect(),
            allocatable: allocatable.collect(),
        },
        memory_capacity: settings.capacity.memory(),
        huge_pages: settings.capacity.huge_pages().clone(),
        state_dir: options.state_dir.clone(),
        root_dir: options
            .root_dir
            .clone()
            .unwrap_or_else(|| options.state_dir.clone()),
        cgroup_root: options.cgroup_root.clone(),
        cgroup_mount: options.cgroup_mount.clone(),
        cluster_dns: options
            .cluster_dns
            .iter()
            .map(ToString::to_string)
            .collect(),
        cluster_domain: options.cluster_domain.clone(),
        resolv_conf: options.resolv_conf.clone(),
        log_max_bytes: options.container_log_max_size,
        log_max_files: options.container_log_max_files,
        allowed_unsafe_sysctls: options.allowed_unsafe_sysctls.clone(),
        manifests: options.pod_manifest_path.clone(),
        eviction: options.eviction_hard.clone(),
        image_gc: (
            options.image_gc_high_threshold,
            options.image_gc_low_threshold,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_become_text_in_lines_of_64() {
        let text = String::from_utf8(pem(&[vec![0; 60]])).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "-----BEGIN CERTIFICATE-----");
        assert_eq!((lines[1].len(), lines[2].len()), (64, 16));
        assert_eq!(lines[3], "-----END CERTIFICATE-----");
    }
}
