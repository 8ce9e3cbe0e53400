//! The server's process: `windlass-node-agent dns`, started by the agent.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use windlass_dns::{DnsOptions, METRICS_PORT, Sockets};
use windlass_network::interface::Namespace;

use super::process::READY;
use super::teacher::teacher;
use crate::health::{self, Health};
use crate::{api_server, client_certificate};

#[derive(Args)]
pub(crate) struct ServerOptions {
    /// The network namespace to listen in; upstreams are asked from the one it is started in.
    #[arg(long)]
    namespace: PathBuf,
    /// Where the agent is told what names are that policies speak of.
    #[arg(long)]
    agent_socket: PathBuf,
    /// Addresses to listen at, for UDP and TCP.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// How to reach the API server; by the pod's ServiceAccount without it.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The API server's URL, in place of what the kubeconfig or the pod's environment says.
    #[arg(long, default_value = "")]
    kube_apiserver: String,
    /// Where the agent keeps the certificate that it renews, if it has one.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// The end of all names of the cluster.
    #[arg(long)]
    cluster_domain: String,
    /// The node's resolver configuration, for names outside the cluster.
    #[arg(long)]
    resolv_conf: PathBuf,
    /// An address that leads back here, and so is no upstream.
    #[arg(long)]
    not_upstream: Vec<IpAddr>,
}

/// Serves until SIGTERM; says on standard output when it is ready.
pub(crate) async fn serve(options: ServerOptions) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let stop = CancellationToken::new();
    let namespace = Namespace::open(&options.namespace).await?;
    let listen = options.listen.clone();
    let sockets = namespace
        .within(move || {
            listen
                .into_iter()
                .map(Sockets::bind)
                .collect::<Result<_, _>>()
        })
        .await
        .flatten()
        .context("listen in the namespace of cluster DNS")?;
    let mut config =
        api_server::config(options.kubeconfig.as_deref(), &options.kube_apiserver).await?;
    if let Some(state_dir) = &options.state_dir {
        client_certificate::prefer_renewed(&mut config, state_dir);
    }
    let renewed = client_certificate::replaced(options.state_dir.clone());
    let client = kube::Client::try_from(config).context("prepare to talk to the API server")?;
    let own = options.listen.iter().map(SocketAddr::ip);
    let dns = DnsOptions {
        domain: options.cluster_domain,
        resolv_conf: options.resolv_conf,
        own: own.chain(options.not_upstream).collect(),
    };
    let metrics = windlass_dns::Metrics::default();
    serve_metrics(&namespace, &options.listen, metrics.clone(), &stop).await?;
    let (lessons, listening) = teacher(options.agent_socket);
    let _listening = AbortOnDropHandle::new(tokio::spawn(listening));
    let (end, lessons) = (stop.clone(), Some(lessons));
    let serving = windlass_dns::run(client, dns, sockets, metrics, lessons, say_ready, end);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        // The agent starts another, which takes the new one.
        () = renewed => {
            tracing::info!("the client certificate was renewed; making way for another server");
            stop.cancel();
            serving.await
        }
        _ = terminate.recv() => {
            stop.cancel();
            serving.await
        }
    };
    result.context("serve cluster DNS")
}

/// `/metrics` and `/healthz` at CoreDNS' port, where scrapers of the kube-dns Service look.
async fn serve_metrics(
    namespace: &Namespace,
    listen: &[SocketAddr],
    metrics: windlass_dns::Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let health = Health {
        network: watch::channel(Ok(())).1,
        metrics: Arc::new(move || metrics.text()),
    };
    for server in listen {
        let address = SocketAddr::new(server.ip(), METRICS_PORT);
        let listener = namespace
            .within(move || Sockets::listen(address))
            .await
            .flatten()
            .with_context(|| format!("listen for scrapers at {address}"))?;
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(health::answer_on(listener, health.clone(), stop.clone()));
    }
    Ok(())
}

fn say_ready() {
    // The agent that started this may be gone already; nothing else is ever written there.
    let _ = writeln!(std::io::stdout(), "{READY}");
}
