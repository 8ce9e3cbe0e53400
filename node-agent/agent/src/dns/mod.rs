//! Cluster DNS: a process of its own in a network namespace of its own.
//!
//! The process outlives the agent, which adopts it again after a restart: names are resolved while there is no
//! agent. The namespace is attached like a pod's, so the server has an address of the node's pod network and
//! port 53 for itself, every node can reach it, and NetworkPolicies that admit the kube-dns pods can admit it.

mod process;
mod server;
mod teacher;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use windlass_dns::{OwnPod, Publication, Serving};
use windlass_network::Attachments;
use windlass_network::interface::{ensure_namespace, remove_namespace};
use windlass_network::ipam::{AttachmentKey, PodName};
use windlass_pods::Patience;

use self::process::Process;
pub(crate) use self::server::{ServerOptions, serve};
use crate::cli::{Role, RunOptions};

/// The interface's owner in the leases, where a pod's has the id of its sandbox.
const CONTAINER_ID: &str = "windlass-dns";
/// With it a container ends, and all that runs there.
const FIRST_PROCESS: u32 = 1;
/// Less than what the agent's parts have together.
const FAREWELL: Duration = Duration::from_secs(3);
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Where owners of the kube-dns Service's slices have to be.
const NAMESPACE: &str = "kube-system";

/// Keeps the server running and its node's endpoint true.
pub(crate) struct Keeper {
    client: kube::Client,
    attachments: Arc<Attachments>,
    /// Its files stand beside the agent's socket, so that each of several agents on a machine has its own.
    namespace: PathBuf,
    pid_file: PathBuf,
    node_name: String,
    pod: Option<OwnPod>,
    port: u16,
    /// What the server is told beside its addresses.
    arguments: Vec<OsString>,
}

impl Keeper {
    pub(crate) fn new(
        options: &RunOptions,
        client: kube::Client,
        attachments: Arc<Attachments>,
    ) -> Self {
        let namespace = beside(&options.socket, ".dns");
        let mut arguments: Vec<OsString> = ["dns", "--namespace"].map(OsString::from).into();
        arguments.push(namespace.clone().into());
        arguments.push("--agent-socket".into());
        arguments.push(options.socket.clone().into());
        arguments.extend(["--cluster-domain", &options.cluster_domain].map(OsString::from));
        if options.has(Role::Pods) {
            arguments.push("--state-dir".into());
            arguments.push(options.state_dir.clone().into());
        }
        arguments.push("--resolv-conf".into());
        arguments.push(options.resolv_conf.clone().into());
        if let Some(kubeconfig) = &options.kubeconfig {
            arguments.extend(["--kubeconfig".into(), kubeconfig.clone().into()]);
        }
        if !options.kube_apiserver.is_empty() {
            arguments.extend(["--kube-apiserver", &options.kube_apiserver].map(OsString::from));
        }
        for service in &options.cluster_dns {
            arguments.extend(["--not-upstream".into(), service.to_string().into()]);
        }
        Self {
            client,
            attachments,
            namespace,
            pid_file: beside(&options.socket, ".dns.pid"),
            node_name: options.node_name.clone(),
            pod: own_pod(options),
            port: options.dns_port,
            arguments,
        }
    }

    /// Until `stop`, which leaves the server running, unless this process takes its container with it. DNS is not what
    /// the node stands or falls with: what fails is tried again.
    pub(crate) async fn keep(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut pauses = Patience::default();
        let work = async {
            loop {
                if let Err(error) = self.attempt().await {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "cluster DNS failed, trying again"
                    );
                }
                tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            }
        };
        let ended = stop.run_until_cancelled(work).await;
        if std::process::id() == FIRST_PROCESS
            && let Some(publication) = self.publication()
        {
            let said = publication.set(&self.client, Serving::Leaving);
            match tokio::time::timeout(FAREWELL, said).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "clients are not told that this cluster DNS ends")
                }
                Err(_) => tracing::warn!("clients are not told in time that this cluster DNS ends"),
            }
        }
        ended.unwrap_or(Ok(()))
    }

    /// As clients find the server; none before it has an address.
    fn publication(&self) -> Option<Publication> {
        let interfaces = self.attachments.subscribe();
        let addresses = interfaces
            .borrow()
            .get(&attachment())?
            .link
            .addresses
            .clone();
        Some(Publication {
            node_name: self.node_name.clone(),
            pod: self.pod.clone(),
            addresses,
            port: self.port,
        })
    }

    /// Returns only when something fails.
    async fn attempt(&self) -> anyhow::Result<()> {
        let addresses = self.attach().await?;
        let publication = self
            .publication()
            .context("the server's interface is gone")?;
        let arguments = self.complete_arguments(&addresses);
        let mut server = match Process::adopt(&self.pid_file, &arguments)? {
            Some(running) => {
                tracing::info!(pid = running.pid(), "cluster DNS goes on");
                running
            }
            None => self.replace(&arguments).await?,
        };
        for stray in server.strays() {
            tracing::warn!(
                pid = stray.pid(),
                "ending a cluster DNS that nobody knew of"
            );
            stray.terminate()?;
        }
        loop {
            tokio::select! {
                ended = server.ended() => ended?,
                never = self.publish(&publication) => match never {},
            }
            tracing::warn!(pid = server.pid(), "cluster DNS ended, starting it again");
            if let Err(error) = publication.set(&self.client, Serving::No).await {
                // Clients keep on asking here meanwhile; it is a moment.
                tracing::debug!(%error, "kube-dns endpoint not marked");
            }
            server = Process::start(&self.pid_file, &arguments).await?;
        }
    }

    /// The server's addresses: the same ones as before, as long as its lease lives.
    async fn attach(&self) -> anyhow::Result<Vec<IpAddr>> {
        let namespace = self.namespace.clone();
        tokio::task::spawn_blocking(move || ensure_namespace(&namespace)).await??;
        let pod = PodName {
            namespace: NAMESPACE.into(),
            name: format!("{CONTAINER_ID}-{}", self.node_name),
            uid: String::new(),
        };
        let interface = self
            .attachments
            .add(attachment(), &self.namespace, pod)
            .await
            .context("give cluster DNS a network")?;
        Ok(interface.link.addresses)
    }

    fn complete_arguments(&self, addresses: &[IpAddr]) -> Vec<OsString> {
        let mut arguments = self.arguments.clone();
        for address in addresses {
            let listen = SocketAddr::new(*address, self.port).to_string();
            arguments.extend(["--listen".into(), listen.into()]);
        }
        arguments
    }

    /// Starts a server, and only then stops the one of another build or with other arguments: they share the port.
    async fn replace(&self, arguments: &[OsString]) -> anyhow::Result<Process> {
        let old = Process::read(&self.pid_file)?;
        let new = Process::start(&self.pid_file, arguments).await?;
        if let Some(old) = old {
            tracing::info!(old = old.pid(), new = new.pid(), "cluster DNS replaced");
            old.terminate()?;
        }
        Ok(new)
    }

    /// Says that the server serves until somebody has heard it, and from time to time again: who removes the endpoint
    /// does not end the server.
    async fn publish(&self, publication: &Publication) -> std::convert::Infallible {
        let mut pauses = Patience::default();
        loop {
            match publication.set(&self.client, Serving::Yes).await {
                Ok(()) => {
                    tokio::time::sleep(SAY_AGAIN).await;
                    pauses = Patience::default();
                }
                Err(error) => {
                    tracing::warn!(%error, "kube-dns endpoint not published yet");
                    tokio::time::sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }
}

/// Ends a server that an agent with `--dns=on` left, and takes it out of the Service.
pub(crate) async fn retire(
    options: &RunOptions,
    client: &kube::Client,
    attachments: &Attachments,
) -> anyhow::Result<()> {
    let Some(server) = Process::read(&beside(&options.socket, ".dns.pid"))? else {
        return Ok(());
    };
    let publication = Publication {
        node_name: options.node_name.clone(),
        pod: None,
        addresses: attachments
            .subscribe()
            .borrow()
            .get(&attachment())
            .map(|interface| interface.link.addresses.clone())
            .unwrap_or_default(),
        port: options.dns_port,
    };
    publication
        .withdraw(client)
        .await
        .context("take this node's DNS out of the kube-dns Service")?;
    server.terminate()?;
    attachments.del(&attachment()).await?;
    remove_namespace(&beside(&options.socket, ".dns"))?;
    Ok(())
}

/// Ends the server of an agent that does not run any more, and removes what is left of it but its interface.
pub(crate) fn remove(socket: &Path) -> anyhow::Result<()> {
    let pid_file = beside(socket, ".dns.pid");
    if let Some(server) = Process::read(&pid_file)? {
        server.terminate()?;
    }
    remove_namespace(&beside(socket, ".dns"))?;
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("remove {}", pid_file.display())),
    }
}

fn own_pod(options: &RunOptions) -> Option<OwnPod> {
    let (namespace, _) = options.daemon_set.as_ref()?;
    let (name, uid) = (options.pod_name.clone()?, options.pod_uid.clone()?);
    (namespace == NAMESPACE).then_some(OwnPod { name, uid })
}

fn attachment() -> AttachmentKey {
    AttachmentKey {
        container_id: CONTAINER_ID.into(),
        interface: "eth0".into(),
    }
}

fn beside(socket: &Path, suffix: &str) -> PathBuf {
    let mut path = socket.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}
