//! `up` and `down` themselves.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use windlass_tests::cluster::{self, Cluster, xtask};
use windlass_tests::eventually::until;
use windlass_tests::kubectl::nodes_ready;
use windlass_tests::namespace::Namespace;
use windlass_tests::web::Web;

use crate::services::netfilter;

#[test]
fn a_second_up_says_that_one_runs() -> Result<()> {
    let cluster = Cluster::shared()?;
    let agent = cluster.agent()?.pid()?;
    let output = xtask(&["up"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(said.contains("already runs"), "{said}");
    ensure!(said.contains(".windlass/kubeconfig"), "{said}");
    ensure!(cluster.agent()?.pid()? == agent, "it restarted the agent");
    Ok(())
}

#[test]
fn up_without_root_says_how_to_be_root() -> Result<()> {
    const NOBODY: u32 = 65_534;
    // Nobody may be unable to reach the repository's folder.
    let program = File::open(built_xtask()?)?;
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let mut up = Command::new(path);
    let output = up.arg("up").current_dir("/").uid(NOBODY).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{said}");
    ensure!(said.contains("needs root"), "{said}");
    ensure!(said.contains("sudo"), "{said}");
    Ok(())
}

#[test]
fn status_says_what_runs() -> Result<()> {
    let cluster = Cluster::shared()?;
    let output = xtask(&["status"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}");
    for part in [
        "supervisor",
        "containerd",
        "control-plane",
        "node-agent",
        "Ready",
    ] {
        ensure!(said.contains(part), "`{part}` is missing: {said}");
    }
    ensure!(
        said.contains(&cluster.agent()?.pid()?.to_string()),
        "{said}"
    );
    Ok(())
}

#[test]
fn the_files_for_scripts_are_as_promised() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mode = cluster::kubeconfig().metadata()?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the kubeconfig has mode {mode:o}");
    for socket in ["WINDLASS_CONTAINERD", "WINDLASS_AGENT_SOCKET"] {
        let path = cluster.variable(socket)?;
        ensure!(Path::new(path).exists(), "{socket}: {path} is not there");
    }
    let netns = Path::new("/run/netns").join(cluster.outside()?);
    ensure!(netns.exists(), "{} is not there", netns.display());
    Ok(())
}

#[test]
fn an_archive_of_docker_is_loaded() -> Result<()> {
    let cluster = Cluster::shared()?;
    let folder = std::env::temp_dir().join(format!("windlass-docker-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let name = format!("windlass.dev/docker-{}:dev", std::process::id());
    // An empty tar, and what it is known by everywhere.
    fs::write(folder.join("layer.tar"), [0; 1024])?;
    let layer = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
                        "rootfs": {"type": "layers", "diff_ids": [layer]}});
    fs::write(folder.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("archive.tar");
    let files = ["manifest.json", "config.json", "layer.tar"];
    let mut tar = Command::new("tar");
    let packed = tar
        .arg("-C")
        .arg(&folder)
        .arg("-cf")
        .arg(&archive)
        .args(files);
    ensure!(packed.status()?.success(), "tar failed");
    let output = xtask(&["load-image"]).arg(&archive).output()?;
    fs::remove_dir_all(&folder)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}{errors}");
    ensure!(said.contains(&name), "{said}");
    for node in 1..=cluster.nodes(1)?.len() {
        let socket = cluster.variable(&of_node("WINDLASS_CONTAINERD", node))?;
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", socket, "--namespace", "k8s.io"]);
        // Names what it removed, and ends well in any case.
        let removed = ctr.args(["images", "rm", &name]).output()?;
        let removed = String::from_utf8_lossy(&removed.stdout).into_owned();
        ensure!(removed.contains(&name), "{name} was not on node {node}");
    }
    Ok(())
}

/// A variable's name with the number of a further node.
fn of_node(variable: &str, number: usize) -> String {
    match number {
        1 => variable.to_owned(),
        _ => format!("{variable}_{number}"),
    }
}

#[test]
fn a_broken_archive_is_refused() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let file = std::env::temp_dir().join(format!("windlass-broken-{}.tar", std::process::id()));
    fs::write(&file, "not an archive")?;
    let output = xtask(&["load-image"]).arg(&file).output()?;
    fs::remove_file(&file)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{said}");
    ensure!(said.contains("is not an OCI or docker archive"), "{said}");
    Ok(())
}

#[test]
fn down_leaves_nothing_behind_and_up_goes_on_with_what_was_there() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("down")?;
    let web = Web::deploy(&namespace)?;
    let running = own_processes(&cluster)?;
    ensure!(running.len() > 6, "{running:?}");
    let pinned = Bpf::of_the_agent()?;
    ensure!(
        !pinned.programs.is_empty() && !pinned.maps.is_empty(),
        "{pinned:?}"
    );
    let rules = netfilter()?;

    let output = xtask(&["down"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );

    ensure!(
        rules == netfilter()?,
        "the cluster had added rules: {rules}"
    );
    let left: Vec<_> = running.iter().filter(|pid| lives(pid)).collect();
    ensure!(left.is_empty(), "processes {left:?} are left");
    until(
        Duration::from_secs(30),
        "the kernel to free programs and maps",
        || Ok(Bpf::loaded().is_disjoint(&pinned)),
    )?;
    for gone in [
        "/run/windlass",
        "/sys/fs/bpf/windlass",
        "/run/netns/wl-outside",
    ] {
        ensure!(!Path::new(gone).exists(), "{gone} is left");
    }
    let links = names_in("/sys/class/net")?;
    let own = |name: &&String| name.starts_with("wl") && name.len() == 13 || *name == "wlout0";
    ensure!(links.iter().find(own).is_none(), "{links:?}");
    // `.windlass` itself may be a mount of the user's.
    let own_folders = ["/run/windlass/".to_owned(), dot_windlass() + "/"];
    for mount in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        ensure!(
            !own_folders.iter().any(|folder| mount.contains(folder)),
            "{mount} is left"
        );
    }
    for hierarchy in names_in("/sys/fs/cgroup")? {
        for name in ["windlass", "kubepods"] {
            let cgroup = Path::new("/sys/fs/cgroup").join(&hierarchy).join(name);
            ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        }
    }

    // As on a machine that has none of what a cluster needs.
    let mut bare = Command::new(built_xtask()?);
    bare.args(["up", "--no-build"])
        .current_dir(cluster::repository());
    let output = bare.env("PATH", "/nonexistent").output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{said}");
    for part in ["containerd", "kubectl", "cargo xtask setup"] {
        ensure!(said.contains(part), "`{part}` is not named: {said}");
    }

    let output = xtask(&["up", "--no-build"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    nodes_ready(30)?;
    namespace.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    until(Duration::from_secs(60), "three pods", || {
        Ok(web.pods()?.len() == 3)
    })?;
    web.wait_until_balanced()
}

/// As when the machine ran out of memory in the worst way: nobody could tidy up, and all that was mounted still is.
#[test]
fn after_everything_was_killed_up_brings_the_pods_back() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("killed")?;
    let web = Web::deploy(&namespace)?;
    let pods = web.pods()?;
    let mut doomed = Vec::new();
    let agent_pid = Path::new(cluster.variable("WINDLASS_AGENT_PID_FILE")?);
    // Both at first, or one would start again what is killed.
    for keeper in ["supervisor.pid", "guard.pid"] {
        let pid = fs::read_to_string(agent_pid.with_file_name(keeper))?;
        doomed.push(pid.trim().parse()?);
    }
    doomed.extend(own_processes(&cluster)?);
    doomed.extend(processes_of_pods()?);
    for &pid in &doomed {
        // A container ends with its first process.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    until(Duration::from_secs(30), "everything to be dead", || {
        Ok(!doomed.iter().any(lives))
    })?;

    let output = xtask(&["up", "--no-build"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}{errors}");
    until(
        Duration::from_secs(90),
        "the same pods to run again",
        || {
            let restarted = |pod: &String| -> Result<bool> {
                let path = "{.status.containerStatuses[0].restartCount}";
                Ok(namespace.field(&["pod", pod], path)? != "0")
            };
            let mut again = true;
            for pod in &pods {
                again &= restarted(pod)?;
            }
            Ok(again && web.pods()? == pods)
        },
    )?;
    for pod in &pods {
        namespace.wait_ready(pod)?;
    }
    web.wait_until_balanced()?;
    namespace.run(&["delete", "deployment", "web", "--timeout=60s"])?;
    namespace.run(&["delete", "pods", "--all", "--timeout=60s"])?;
    Ok(())
}

/// By the cgroups that the agents make for pods.
fn processes_of_pods() -> Result<Vec<i32>> {
    let pids = names_in("/proc")?.into_iter();
    let pids = pids.filter_map(|name| name.parse().ok());
    Ok(pids
        .filter(|pid: &i32| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
            cgroups.is_ok_and(|text| text.contains("/windlass") && text.contains("/pod"))
        })
        .collect())
}

fn built_xtask() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the target folder")?;
    Ok(folder.join("xtask"))
}

/// The supervisor's processes and the shims, by the files that they were started with.
fn own_processes(cluster: &Cluster) -> Result<Vec<i32>> {
    let marks = ["/run/windlass/".to_owned(), dot_windlass()];
    let mut found = Vec::new();
    for name in names_in("/proc")? {
        let Ok(pid) = name.parse() else { continue };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if marks.iter().any(|mark| line.contains(mark)) {
            found.push(pid);
        }
    }
    ensure!(found.contains(&cluster.agent()?.pid()?), "{found:?}");
    Ok(found)
}

fn dot_windlass() -> String {
    cluster::repository()
        .join(".windlass")
        .display()
        .to_string()
}

fn lives(pid: &i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

fn names_in(folder: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {folder}"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Programs and maps by the kernel's numbers, which it does not use twice until they wrap around.
#[derive(Debug, Default)]
struct Bpf {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Bpf {
    /// The maps that the agent has pinned, and the programs that use them.
    fn of_the_agent() -> Result<Self> {
        let mut found = Self::default();
        for version in fs::read_dir("/sys/fs/bpf/windlass")?.flatten() {
            for entry in fs::read_dir(version.path())?.flatten() {
                // The folders hold links, which live as long as their pins.
                if entry.file_type()?.is_file() {
                    found
                        .maps
                        .insert(aya::maps::MapInfo::from_pin(entry.path())?.id());
                }
            }
        }
        for program in aya::programs::loaded_programs().flatten() {
            let maps = program.map_ids()?.unwrap_or_default();
            if maps.iter().any(|map| found.maps.contains(map)) {
                found.programs.insert(program.id());
            }
        }
        Ok(found)
    }

    fn loaded() -> Self {
        Self {
            programs: aya::programs::loaded_programs()
                .flatten()
                .map(|one| one.id())
                .collect(),
            maps: aya::maps::loaded_maps()
                .flatten()
                .map(|one| one.id())
                .collect(),
        }
    }

    fn is_disjoint(&self, other: &Self) -> bool {
        self.programs.is_disjoint(&other.programs) && self.maps.is_disjoint(&other.maps)
    }
}
