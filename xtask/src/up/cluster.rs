//! The processes of a one-node cluster, and the order in which they become ready.
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

use crate::preflight::Host;
use crate::progress::Progress;
use crate::supervise::{self, Definition};
use crate::{cargo, containerd, layout, outside, process, wait};

/// On a loaded machine of two cores a start takes a few times longer than on an idle one.
const START_LIMIT: Duration = Duration::from_secs(120);

pub fn start(host: &Host, progress: &Progress) -> Result<()> {
    for binary in ["windlass-control-plane", "windlass-node-agent"] {
        let path = cargo::binary(binary);
        if !path.exists() {
            bail!(
                "{} is missing: run `cargo xtask up` without --no-build",
                path.display()
            );
        }
    }
    prepare_folders()?;
    containerd::prepare(host)?;
    progress.say("making the namespace that plays the outside");
    outside::create(&host.outside)?;
    progress.say("starting containerd, the control plane and the node agent");
    supervise::write(&layout::supervisor_definition(), &services(host))?;
    let since = now()?;
    super::spawn_supervisor()?;

    std::thread::scope(|scope| {
        let images = scope.spawn(|| load_images(host, progress));
        write_kubeconfigs(host)?;
        wait_until_ready(&since, progress)?;
        images
            .join()
            .map_err(|_| anyhow::anyhow!("loading the images panicked"))?
    })
}

/// `since`: the oldest heartbeat that counts; an empty one takes any.
pub fn wait_until_ready(since: &str, progress: &Progress) -> Result<()> {
    progress.say("waiting for the API server");
    let mut ready = false;
    wait::until(START_LIMIT, || {
        ready = process::succeeds(kubectl().args(["get", "--raw", "/readyz"]));
        ready || keeps_dying("control-plane")
    });
    if !ready {
        bail!(
            "the API server is not ready\n{}",
            end_of_log("control-plane")
        );
    }
    progress.say("waiting for the Node to be Ready");
    if !wait::until(START_LIMIT, || {
        node_is_ready(since) || keeps_dying("node-agent")
    }) || !node_is_ready(since)
    {
        bail!("the Node is not Ready\n{}", end_of_log("node-agent"));
    }
    Ok(())
}

/// Whether an agent that runs now says so: after a `down`, the store still holds what the last one said.
fn node_is_ready(since: &str) -> bool {
    const HEARTBEATS: &str = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{"\n"}{end}"#;
    let Ok(answer) = process::output(kubectl().args(["get", "nodes", "-o", HEARTBEATS])) else {
        return false;
    };
    // Times in UTC of one format sort like their texts.
    answer
        .lines()
        .any(|line| line.strip_prefix("True ").is_some_and(|time| time >= since))
}

/// The time of day as the API writes it.
fn now() -> Result<String> {
    let time = process::output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    Ok(time.trim().to_owned())
}

fn load_images(host: &Host, progress: &Progress) -> Result<()> {
    if !wait::until(START_LIMIT, containerd::answers) {
        bail!("containerd does not answer\n{}", end_of_log("containerd"));
    }
    super::import_images(host.snapshotter)?;
    progress.say("the images are loaded");
    Ok(())
}

fn prepare_folders() -> Result<()> {
    // The store holds every Secret of the cluster.
    for folder in [layout::data(), layout::control_plane_data()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("creating {}", folder.display()))?;
    }
    let pids = layout::pid_file("any");
    let pids = pids.parent().context("the folder of pid files")?;
    for folder in [layout::run(), pids, &layout::agent_data(), &layout::logs()] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for service in ["containerd", "control-plane", "node-agent", "supervisor"] {
        let log = layout::log(service);
        fs::rename(&log, log.with_extension("log.previous")).ok();
    }
    // From an earlier cluster: the services wait for these.
    fs::remove_file(layout::node_kubeconfig()).ok();
    fs::remove_file(layout::containerd_socket()).ok();
    share_mounts(&layout::agent_data())
}

/// `/` is a private mount on many machines. Only below a shared one do volumes that the agent mounts reach a
/// running container, and mounts of a container reach the node (mountPropagation).
fn share_mounts(folder: &Path) -> Result<()> {
    let nothing = None::<&str>;
    mount(Some(folder), folder, nothing, MsFlags::MS_BIND, nothing)
        .and_then(|()| {
            mount(
                nothing,
                folder,
                nothing,
                MsFlags::MS_SHARED | MsFlags::MS_REC,
                nothing,
            )
        })
        .with_context(|| format!("making {} a shared mount", folder.display()))
}

fn services(host: &Host) -> Vec<Definition> {
    let service = |name: &str, command: Vec<String>| Definition {
        name: name.to_owned(),
        command,
        log: layout::log(name),
        pid_file: layout::pid_file(name),
        after: vec![],
        before_stop: vec![],
        stop_limit: Duration::from_secs(20),
    };
    let own_binary = cargo::own_binary().display().to_string();
    vec![
        Definition {
            before_stop: vec![own_binary, "remove-pods".to_owned()],
            ..service(
                "containerd",
                words(&[
                    "containerd",
                    "--config",
                    &shown(layout::containerd_config()),
                ]),
            )
        },
        service("control-plane", control_plane(host)),
        Definition {
            after: vec![layout::node_kubeconfig(), layout::containerd_socket()],
            ..service("node-agent", node_agent(host))
        },
    ]
}

fn control_plane(host: &Host) -> Vec<String> {
    words(&[
        &shown(cargo::binary("windlass-control-plane")),
        "serve",
        "--data-dir",
        &shown(layout::control_plane_data()),
        "--bind-address=0.0.0.0",
        "--secure-port",
        &layout::API_PORT.to_string(),
        "--advertise-address",
        &host.address.to_string(),
        "--service-cluster-ip-range",
        layout::SERVICE_CIDR,
        "--cluster-cidr",
        layout::CLUSTER_CIDR,
        "--service-node-port-range",
        layout::NODE_PORTS,
    ])
}

fn node_agent(host: &Host) -> Vec<String> {
    let devices: Vec<&str> = host
        .uplink
        .as_deref()
        .into_iter()
        .chain([layout::OUTSIDE_LINK])
        .collect();
    words(&[
        &shown(cargo::binary("windlass-node-agent")),
        "run",
        "--kubeconfig",
        &shown(layout::node_kubeconfig()),
        "--node-name",
        &host.name,
        "--node-ip",
        &host.address.to_string(),
        "--runtime-endpoint",
        &format!("unix://{}", layout::containerd_socket().display()),
        "--socket",
        &shown(layout::agent_socket()),
        "--state-dir",
        &shown(layout::agent_data()),
        "--bpffs",
        layout::BPFFS,
        "--cgroup2",
        &shown(&host.cgroup2),
        "--cgroup-root",
        layout::POD_CGROUPS,
        "--cluster-cidr",
        layout::CLUSTER_CIDR,
        "--service-node-port-range",
        layout::NODE_PORTS,
        "--devices",
        &devices.join(","),
        "--kubelet-port",
        &layout::KUBELET_PORT.to_string(),
        "--cni-conf-dir",
        &shown(layout::cni_conf()),
        "--cni-bin-dir",
        &shown(layout::cni_bin()),
        "--roles=pods,network",
    ])
}

/// The CA is made by the control plane's first start; what it signs here is new with each `up`.
fn write_kubeconfigs(host: &Host) -> Result<()> {
    let made_last = layout::control_plane_data().join("admin.kubeconfig");
    wait::until(START_LIMIT, || {
        made_last.exists() || keeps_dying("control-plane")
    });
    if !made_last.exists() {
        bail!(
            "the control plane has made no CA\n{}",
            end_of_log("control-plane")
        );
    }
    let server = format!("https://{}:{}", host.address, layout::API_PORT);
    let sign = |user: &str, group: &str, file: &Path| {
        process::output(
            Command::new(cargo::binary("windlass-control-plane"))
                .arg("kubeconfig")
                .arg("--data-dir")
                .arg(layout::control_plane_data())
                .args([
                    "--server", &server, "--user", user, "--group", group, "--out",
                ])
                .arg(file),
        )
    };
    sign("kubernetes-admin", "system:masters", &layout::kubeconfig())?;
    // The agent starts as soon as its file has its name, so it gets that name when it is complete.
    let partial = layout::node_kubeconfig().with_extension("partial");
    sign(
        &format!("system:node:{}", host.name),
        "system:nodes",
        &partial,
    )?;
    fs::rename(partial, layout::node_kubeconfig())?;
    Ok(())
}

fn kubectl() -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("--kubeconfig").arg(layout::kubeconfig());
    kubectl
}

/// So that a mistake in a flag is not waited for until the time is up.
fn keeps_dying(service: &str) -> bool {
    const DEATHS: usize = 4;
    let log = fs::read_to_string(layout::log("supervisor")).unwrap_or_default();
    let ended = format!("{service}: ended");
    log.lines().filter(|line| line.starts_with(&ended)).count() >= DEATHS
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
