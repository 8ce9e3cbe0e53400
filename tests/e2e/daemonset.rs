//! The node agent as a user installs it on somebody else's cluster: as a DaemonSet, from its image, on a node whose
//! kubelet (here: our agent with `--roles pods`) knows nothing of networks.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use windlass_tests::cluster::{self, Cluster, xtask};
use windlass_tests::eventually::until;
use windlass_tests::kubectl::{kubectl, kubectl_with_input, nodes_ready, try_kubectl};
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;
use windlass_tests::node_state::NodeState;
use windlass_tests::traffic::{Held, Traffic, all_answered};
use windlass_tests::web::Web;

const DAEMON_SET: &str = "daemonset/windlass-node-agent";
/// What a node has to fetch, in bytes.
const MOST_OF_IMAGE: u64 = 40_000_000;
const SOON: Duration = Duration::from_secs(60);
const DNS_SLICES: [&str; 7] = [
    "-n",
    "kube-system",
    "get",
    "endpointslices",
    "-l",
    "endpointslice.kubernetes.io/managed-by=dns.windlass.dev",
    "-o",
];

#[test]
fn updates_of_the_daemonset_lose_no_connection_and_its_removal_leaves_nothing() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    run(&mut xtask(&["image", "node-agent"]))?;
    let without = WithoutNetwork::start()?;
    let image = image()?;
    ensure!(
        fs::metadata(&image)?.len() < MOST_OF_IMAGE,
        "the image is large"
    );
    run(xtask(&["load-image"]).arg(image))?;
    let state = cluster::repository().join(".windlass/data/daemonset");
    let plugins = PathBuf::from(cluster.variable("WINDLASS_CNI_BIN")?);
    // The machine's own agent gave pods a network until now, and an earlier run may have been cut off.
    gone(fs::remove_file(plugins.join("windlass-cni")))?;
    gone(fs::remove_dir_all(&state))?;
    let folders = [
        cluster.variable("WINDLASS_CNI_CONF")?.into(),
        plugins,
        state,
    ];
    let before = NodeState::now(&folders)?;
    let api = SocketAddr::new(api_service()?, 443);
    ensure!(!answers(api)?, "somebody serves Services already");
    let installed = Installed::apply(manifest(&cluster)?)?;
    rolled_out()?;
    nodes_ready(60)?;

    let namespace = Namespace::create("daemonset")?;
    let web = Web::deploy(&namespace)?;
    let (service, port) = (web.cluster_address()?, web.node_port(cluster.node_ip()?)?);
    let (echo, echo_port) = echo(&namespace, cluster.node_ip()?)?;
    namespace.start_client("client")?;
    until(SOON, "names to be resolved", || resolves(&namespace))?;
    ensure!(answers(api)?, "the node does not reach a Service");
    let held = [
        Held::open(echo)?,
        netns::inside(cluster.outside()?, || Held::open(echo_port))?,
    ];
    let inside = Traffic::start(service);
    let outside = netns::inside(cluster.outside()?, || Ok(Traffic::start(port)))?;
    let old = agent_pod()?;
    kubectl(&["-n", "kube-system", "set", "env", DAEMON_SET, "ROUND=2"])?;
    rolled_out()?;
    ensure!(agent_pod()? != old, "the agent's pod was not replaced");
    // The new agent works when it can give a pod a network.
    namespace.run(&["scale", "deployment", "web", "--replicas=4"])?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    all_answered(&inside.stop()?).context("from the node")?;
    all_answered(&outside.stop()?).context("from outside, by the NodePort")?;
    for held in held {
        held.stop().context("a connection that stayed open")?;
    }
    web.wait_until_balanced()?;
    // The server went with the old pod, and is found as the new one's.
    until(SOON, "names to be resolved again", || resolves(&namespace))?;
    drop(namespace);

    installed.remove()?;
    let mut left = Vec::new();
    until(SOON, "the node to be as it was", || {
        left = NodeState::now(&folders)?.changed_since(&before);
        Ok(left.is_empty())
    })
    .with_context(|| format!("{left:#?}"))?;
    ensure!(!answers(api)?, "a program still translates connections");
    until(SOON, "cluster DNS to have no servers here", || {
        Ok(kubectl(&[&DNS_SLICES[..], &["name"]].concat())?.is_empty())
    })?;
    // The agent of the machine has the network again.
    drop(without);
    let namespace = Namespace::create("afterwards")?;
    Web::deploy(&namespace)?;
    Ok(())
}

/// The cluster, started anew without a network; with one again when dropped.
pub(crate) struct WithoutNetwork;

impl WithoutNetwork {
    pub(crate) fn start() -> Result<Self> {
        run(&mut xtask(&["down"]))?;
        let started = Self;
        run(&mut xtask(&["up", "--no-build", "--roles", "pods"]))?;
        Ok(started)
    }
}

impl Drop for WithoutNetwork {
    fn drop(&mut self) {
        for arguments in [&["down"][..], &["up", "--no-build"]] {
            if let Err(error) = run(&mut xtask(arguments)) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// What a manifest says; removed when dropped, also by a test that fails: it would come back with the next cluster, beside
/// the machine's own agent.
struct Installed {
    manifest: String,
    there: bool,
}

impl Installed {
    fn apply(manifest: String) -> Result<Self> {
        kubectl_with_input(&["apply", "-f", "-"], &manifest)?;
        Ok(Self {
            manifest,
            there: true,
        })
    }

    fn remove(mut self) -> Result<()> {
        self.there = false;
        self.delete()
    }

    fn delete(&self) -> Result<()> {
        let delete = ["delete", "--ignore-not-found", "--wait", "-f", "-"];
        kubectl_with_input(&delete, &self.manifest).map(drop)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if self.there
            && let Err(error) = self.delete()
        {
            eprintln!("{error:#}");
        }
    }
}

pub(crate) fn manifest(cluster: &Cluster) -> Result<String> {
    let of_node = |name| cluster.variable(name).map(str::to_owned);
    let server = format!("https://{}", SocketAddr::new(cluster.node_ip()?, 6443));
    let settings = [
        ("kubeApiserver", server),
        ("image.pullPolicy", "Never".to_owned()),
        ("dns", "on".to_owned()),
        // The machine's root need not be a shared mount.
        ("rootPropagation", "None".to_owned()),
        ("devices", of_node("WINDLASS_UPLINKS")?),
        ("paths.cgroup2", of_node("WINDLASS_CGROUP2")?),
        ("paths.cniConf", of_node("WINDLASS_CNI_CONF")?),
        ("paths.cniBin", of_node("WINDLASS_CNI_BIN")?),
        (
            "paths.state",
            shown(&cluster::repository().join(".windlass/data/daemonset")),
        ),
    ];
    let mut render = xtask(&["manifest"]);
    for (key, value) in settings {
        render.arg("--set").arg(format!("{key}={value}"));
    }
    run(&mut render)
}

fn rolled_out() -> Result<()> {
    let status = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        DAEMON_SET,
        "--timeout=120s",
    ];
    if let Err(error) = kubectl(&status) {
        let pods = kubectl(&["-n", "kube-system", "describe", "pods"])?;
        let logs = [
            "-n",
            "kube-system",
            "logs",
            DAEMON_SET,
            "--all-containers",
            "--tail=30",
        ];
        bail!("{error:#}\n{pods}\n{:?}", kubectl(&logs));
    }
    Ok(())
}

/// The name of the agent's one pod.
fn agent_pod() -> Result<String> {
    let of_agent = "app.kubernetes.io/name=windlass-node-agent";
    kubectl(&[
        "-n",
        "kube-system",
        "get",
        "pods",
        "-l",
        of_agent,
        "-o",
        "name",
    ])
}

/// A Service whose pods send back what they get: its address, and that of its NodePort.
fn echo(namespace: &Namespace, node: IpAddr) -> Result<(SocketAddr, SocketAddr)> {
    let expose = "expose deployment web --name=echo --port=9000 --target-port=9000 --type=NodePort";
    namespace.run(&expose.split(' ').collect::<Vec<_>>())?;
    let service = namespace.field(&["service", "echo"], "{.spec.clusterIP}")?;
    let port = namespace.field(&["service", "echo"], "{.spec.ports[0].nodePort}")?;
    let service = SocketAddr::new(service.parse()?, 9000);
    until(SOON, "somebody to send back what he gets", || {
        Ok(echoes(service).is_ok())
    })?;
    Ok((service, SocketAddr::new(node, port.parse()?)))
}

fn api_service() -> Result<IpAddr> {
    let address = kubectl(&[
        "get",
        "service",
        "kubernetes",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    address.parse().with_context(|| format!("`{address}`"))
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether it is the API server that answers there: what is no Service's may be answered by anybody, such as a network
/// whose gateway takes every connection.
fn answers(address: SocketAddr) -> Result<bool> {
    let server = format!("--server=https://{address}");
    let ask = [
        server.as_str(),
        "get",
        "--raw",
        "/readyz",
        "--request-timeout=3s",
    ];
    Ok(try_kubectl(&ask, "")?.success)
}

/// Whether what is said to an address comes back.
fn echoes(address: SocketAddr) -> std::io::Result<()> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut heard = [0; 4];
    stream.write_all(b"echo")?;
    stream.read_exact(&mut heard)
}

/// Whether the pod `client` resolves the name of the Service `web` beside it, by its search list.
fn resolves(namespace: &Namespace) -> Result<bool> {
    let fetch = "timeout 5 wget -q -O - http://web/";
    Ok(namespace
        .try_run(&["exec", "client", "--", "sh", "-c", fetch])?
        .success)
}

fn image() -> Result<PathBuf> {
    let built = std::env::current_exe()?;
    let target = built.ancestors().nth(3).context("the target folder")?;
    Ok(target.join("images/node-agent.tar"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
