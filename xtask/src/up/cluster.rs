//! The processes of a cluster, and the order in which they become ready.
//!
//! All are started at once; what needs another waits for the file that the other makes. Meanwhile this side
//! does what only `up` does: kubeconfigs when the CA is there, images when containerd answers.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use super::families::{self, Families};
use super::{Options, kubeconfigs};
use crate::layout::NodeLayout;
use crate::preflight::{Host, Node};
use crate::progress::Progress;
use crate::supervise::{self, Definition};
use crate::{cargo, containerd, layout, outside, process, wait};

/// On a loaded machine of two cores a start takes a few times longer than on an idle one.
pub const START_LIMIT: Duration = Duration::from_secs(120);

pub fn start(host: &Host, options: &Options, progress: &Progress) -> Result<()> {
    for binary in ["windlass-control-plane", "windlass-node-agent"] {
        let path = cargo::binary(binary);
        if !path.exists() {
            bail!(
                "{} is missing: run `cargo xtask up` without --no-build",
                path.display()
            );
        }
    }
    prepare_folders(host)?;
    for node in &host.nodes {
        containerd::prepare(host, node.layout)?;
    }
    progress.say("making the namespace that plays the outside");
    outside::create(&host.outside, host.nodes.len(), host.families.has_ipv6())?;
    progress.say("starting containerd, the control plane and the node agent");
    supervise::write(&layout::supervisor_definition(), &services(host, options))?;
    let since = Since::start()?;
    supervise::spawn(&layout::supervisor_definition())?;

    std::thread::scope(|scope| {
        let images = scope.spawn(|| load_images(host, progress));
        kubeconfigs::write_for_users(host, || since.keeps_dying("control-plane"))
            .with_context(|| end_of_log("control-plane"))?;
        // The store may hold Nodes of other families than these.
        if families::last() != host.families {
            wait_for_the_api_server(&since, progress)?;
            families::forget_nodes(&mut kubectl())?;
        }
        families::remember(host.families)?;
        kubeconfigs::write_for_agents(host)?;
        wait_until_ready(host.nodes.len(), &since, options.brings_network(), progress)?;
        forget_other_nodes(host)?;
        images
            .join()
            .map_err(|_| anyhow::anyhow!("loading the images panicked"))?
    })
}

/// From when on an `up` counts what others tell: what was before may be of another start.
pub struct Since {
    /// The oldest heartbeat that counts; an empty one takes any.
    heartbeat: String,
    /// How much of the supervisor's log is older: whoever died then may well be alive now.
    lines: usize,
}

impl Since {
    /// Where the supervisor, and its log, begin.
    fn start() -> Result<Self> {
        Ok(Self {
            heartbeat: now()?,
            lines: 0,
        })
    }

    /// In the middle of a cluster's life.
    pub fn joining() -> Self {
        Self {
            heartbeat: String::new(),
            lines: supervisor_log().lines().count(),
        }
    }

    fn keeps_dying(&self, service: &str) -> bool {
        keeps_dying(&supervisor_log(), self.lines, service)
    }
}

/// Without a network, Nodes only have to be there.
pub fn wait_until_ready(
    nodes: usize,
    since: &Since,
    with_network: bool,
    progress: &Progress,
) -> Result<()> {
    wait_for_the_api_server(since, progress)?;
    progress.say(if with_network {
        "waiting for the Node to be Ready"
    } else {
        "waiting for the Node"
    });
    let agents = || layout::nodes(nodes).map(NodeLayout::agent_service);
    let dying = || agents().find(|agent| since.keeps_dying(agent));
    let mut ready = false;
    wait::until(START_LIMIT, || {
        ready = ready_nodes(&since.heartbeat, with_network) >= nodes;
        ready || dying().is_some()
    });
    if !ready {
        let agent = dying().unwrap_or_else(|| "node-agent".to_owned());
        bail!("not every Node is Ready\n{}", end_of_log(&agent));
    }
    Ok(())
}

fn wait_for_the_api_server(since: &Since, progress: &Progress) -> Result<()> {
    progress.say("waiting for the API server");
    let mut ready = false;
    wait::until(START_LIMIT, || {
        ready = process::succeeds(kubectl().args(["get", "--raw", "/readyz"]));
        ready || since.keeps_dying("control-plane")
    });
    if !ready {
        bail!(
            "the API server is not ready\n{}",
            end_of_log("control-plane")
        );
    }
    Ok(())
}

/// Nodes of an earlier cluster that had more of them: they do not exist any more.
fn forget_other_nodes(host: &Host) -> Result<()> {
    let Some(first) = host.nodes.first() else {
        return Ok(());
    };
    let others: Vec<String> = layout::all_nodes()
        .skip(host.nodes.len())
        .map(|node| node.named(&first.name))
        .collect();
    let known = process::output(kubectl().args(["get", "nodes", "-o", "name"]))?;
    let gone: Vec<&String> = others
        .iter()
        .filter(|other| known.lines().any(|line| line == format!("node/{other}")))
        .collect();
    if !gone.is_empty() {
        process::output(kubectl().args(["delete", "node"]).args(gone))?;
    }
    Ok(())
}

/// How many agents that run now say so: after a `down`, the store still holds what the last ones said.
fn ready_nodes(since: &str, with_network: bool) -> usize {
    const HEARTBEATS: &str = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{"\n"}{end}"#;
    let Ok(answer) = process::output(kubectl().args(["get", "nodes", "-o", HEARTBEATS])) else {
        return 0;
    };
    // Times in UTC of one format sort like their texts.
    answer
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(status, time)| (!with_network || *status == "True") && *time >= since)
        .count()
}

/// The time of day as the API writes it.
fn now() -> Result<String> {
    let time = process::output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    Ok(time.trim().to_owned())
}

fn load_images(host: &Host, progress: &Progress) -> Result<()> {
    std::thread::scope(|scope| {
        let loads: Vec<_> = host
            .nodes
            .iter()
            .map(|node| scope.spawn(|| load_images_of(node.layout, host.snapshotter)))
            .collect();
        for load in loads {
            load.join()
                .map_err(|_| anyhow::anyhow!("loading the images panicked"))??;
        }
        progress.say("the images are loaded");
        Ok(())
    })
}

fn load_images_of(node: NodeLayout, snapshotter: &str) -> Result<()> {
    if !wait::until(START_LIMIT, || containerd::answers(node)) {
        let service = node.containerd_service();
        bail!("{service} does not answer\n{}", end_of_log(&service));
    }
    super::import_images(node, snapshotter)
}

fn prepare_folders(host: &Host) -> Result<()> {
    // The store holds every Secret of the cluster.
    for folder in [layout::data(), host.families.store()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("creating {}", folder.display()))?;
    }
    let pids = layout::pid_file("any");
    let pids = pids.parent().context("the folder of pid files")?;
    for folder in [layout::run(), pids, &layout::logs()] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    // The runtime mounts sandboxes' namespaces below; a node agent that is itself a pod has to see them.
    share_mounts(layout::run())?;
    for service in ["control-plane", "supervisor"] {
        keep_last_log(service);
    }
    for node in &host.nodes {
        let node = node.layout;
        keep_last_log(&node.containerd_service());
        keep_last_log(&node.agent_service());
        // From an earlier cluster: the services wait for these.
        fs::remove_file(node.kubeconfig()).ok();
        fs::remove_file(node.containerd_socket()).ok();
        let data = node.agent_data();
        fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        share_mounts(&data)?;
    }
    Ok(())
}

fn keep_last_log(service: &str) {
    let log = layout::log(service);
    fs::rename(&log, log.with_extension("log.previous")).ok();
}

/// `/` is a private mount on many machines. Only below a shared one do volumes that the agent mounts reach a
/// running container, and mounts of a container reach the node (mountPropagation).
fn share_mounts(folder: &Path) -> Result<()> {
    let nothing = None::<&str>;
    // After a cluster whose processes were all killed, one more mount would hide what it has mounted below, and nothing
    // could be done with its pods.
    let bound = match outside::is_mount_point(folder) {
        true => Ok(()),
        false => mount(Some(folder), folder, nothing, MsFlags::MS_BIND, nothing),
    };
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    bound
        .and_then(|()| mount(nothing, folder, nothing, shared, nothing))
        .with_context(|| format!("making {} a shared mount", folder.display()))
}

/// In the order in which they are started; they are stopped in the opposite one.
fn services(host: &Host, options: &Options) -> Vec<Definition> {
    let service = |name: &str, command: Vec<String>| Definition {
        name: name.to_owned(),
        command,
        log: layout::log(name),
        pid_file: layout::pid_file(name),
        after: vec![],
        before_stop: vec![],
        stop_limit: Duration::from_secs(20),
    };
    let containerds = host.nodes.iter().map(|node| {
        let node = node.layout;
        let command = words(&["containerd", "--config", &shown(node.containerd_config())]);
        Definition {
            before_stop: words(&[
                &shown(cargo::own_binary()),
                "remove-pods",
                &node.number().to_string(),
            ]),
            ..service(&node.containerd_service(), node.command(command))
        }
    });
    let agents = host.nodes.iter().map(|node| {
        let place = node.layout;
        let command = place.command(node_agent(host, node, options));
        Definition {
            after: vec![place.kubeconfig(), place.containerd_socket()],
            ..service(&place.agent_service(), command)
        }
    });
    let control_plane = service("control-plane", control_plane(host, options));
    containerds.chain([control_plane]).chain(agents).collect()
}

fn control_plane(host: &Host, options: &Options) -> Vec<String> {
    let mut arguments = words(&[
        &shown(cargo::binary("windlass-control-plane")),
        "serve",
        "--data-dir",
        &shown(host.families.store()),
        bind_address(host),
        "--secure-port",
        &layout::API_PORT.to_string(),
        "--advertise-address",
        &host.address.to_string(),
        "--service-cluster-ip-range",
        &host
            .families
            .networks(layout::SERVICE_CIDR, layout::SERVICE_CIDR_V6),
        "--cluster-cidr",
        &host
            .families
            .networks(layout::CLUSTER_CIDR, layout::CLUSTER_CIDR_V6),
        "--service-node-port-range",
        layout::NODE_PORTS,
    ]);
    arguments.extend(load_balancer_pool(options));
    arguments
}

/// All of the machine's, of the family by which the API server is reached.
fn bind_address(host: &Host) -> &'static str {
    match host.families {
        Families::Ipv6 => "--bind-address=::",
        Families::Ipv4 | Families::Both => "--bind-address=0.0.0.0",
    }
}

/// The same for who gives the addresses out and for who answers for them.
fn load_balancer_pool(options: &Options) -> Option<String> {
    let pool = options.load_balancer_pool.as_ref()?;
    Some(format!("--load-balancer-pool={pool}"))
}

fn node_agent(host: &Host, node: &Node, options: &Options) -> Vec<String> {
    let place = node.layout;
    let devices: Vec<&str> = if place.is_the_machine() {
        host.uplink
            .as_deref()
            .into_iter()
            .chain([layout::OUTSIDE_LINK])
            .collect()
    } else {
        vec![layout::NODE_LINK]
    };
    let v6 = node.address_v6.map(|address| address.to_string());
    let node_ips: Vec<String> = [node.address.to_string()].into_iter().chain(v6).collect();
    let mut arguments = words(&[
        &shown(cargo::binary("windlass-node-agent")),
        "run",
        "--kubeconfig",
        &shown(place.kubeconfig()),
        "--node-name",
        &node.name,
        "--node-ip",
        &node_ips.join(","),
        "--runtime-endpoint",
        &format!("unix://{}", place.containerd_socket().display()),
        "--socket",
        &shown(place.agent_socket()),
        "--state-dir",
        &shown(place.agent_data()),
        "--bpffs",
        &shown(place.bpffs()),
        "--cgroup2",
        &shown(&host.cgroup2),
        "--cgroup-root",
        &place.pod_cgroups(),
        "--cluster-cidr",
        &host
            .families
            .networks(layout::CLUSTER_CIDR, layout::CLUSTER_CIDR_V6),
        "--cluster-dns",
        match host.families {
            Families::Ipv6 => layout::CLUSTER_DNS_V6,
            Families::Ipv4 | Families::Both => layout::CLUSTER_DNS,
        },
        "--service-node-port-range",
        layout::NODE_PORTS,
        "--devices",
        &devices.join(","),
        "--kubelet-port",
        &layout::KUBELET_PORT.to_string(),
        "--cni-conf-dir",
        &shown(place.cni_conf()),
        "--cni-bin-dir",
        &shown(place.cni_bin()),
        "--routing",
        &options.routing,
        "--roles",
        &options.roles,
        // The disk is the machine's and may be nearly full with other things: neither must a pod go for that, nor an
        // image that was loaded by hand.
        "--eviction-hard",
        "memory.available<100Mi",
        "--image-gc-high-threshold",
        "100",
        "--load-balancer-mode",
        &options.load_balancer_mode,
    ]);
    arguments.extend(load_balancer_pool(options));
    arguments
}

fn kubectl() -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("--kubeconfig").arg(layout::kubeconfig());
    kubectl
}

/// So that a mistake in a flag is not waited for until the time is up.
fn keeps_dying(log: &str, since_line: usize, service: &str) -> bool {
    const DEATHS: usize = 4;
    let ended = format!("{service}: ended");
    let lines = log.lines().skip(since_line);
    lines.filter(|line| line.starts_with(&ended)).count() >= DEATHS
}

fn supervisor_log() -> String {
    fs::read_to_string(layout::log("supervisor")).unwrap_or_default()
}

/// The last lines of a service's log, where the reason for its silence usually stands.
fn end_of_log(service: &str) -> String {
    const LINES: usize = 15;
    let log = fs::read_to_string(layout::log(service)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    format!(
        "the end of {}:\n{}",
        layout::log(service).display(),
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    )
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_before_an_up_do_not_count() {
        let log = "node-agent: ended, killed by SIGKILL\n".repeat(4);
        assert!(keeps_dying(&log, 0, "node-agent"));
        assert!(!keeps_dying(&log, 0, "node-agent-2"));
        assert!(!keeps_dying(&log, 1, "node-agent"));
    }
}
