//! A node on which another CNI plugin was first, and the agent comes to it with the rights of its ServiceAccount and no
//! more: pods that run go on, Services and policy hold for them too, new ones are ours; and it goes again.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use windlass_tests::cluster::{self, Cluster};
use windlass_tests::eventually::until;
use windlass_tests::http;
use windlass_tests::kubectl::{kubectl, kubectl_with_input, nodes_ready};
use windlass_tests::namespace::{self, Namespace};
use windlass_tests::node_state::NodeState;

use crate::daemonset::{WithoutNetwork, manifest};

const SOON: Duration = Duration::from_secs(60);
const CONFIGURATION: &str = "10-bridge.conflist";

/// As the reference plugin `bridge` with `host-local` addresses does, in a few lines: the tests need no package for it.
const PLUGIN: &str = r#"#!/bin/sh -e
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD)
    exec 9>"@STATE@"; flock 9
    number=$(($(cat "@STATE@.last" 2>/dev/null || echo 1) + 1)); echo $number > "@STATE@.last"
    if ! ip link show br-takeover >/dev/null 2>&1; then
        ip link add br-takeover type bridge
        ip address add @PREFIX@.1/24 dev br-takeover
        ip link set br-takeover up
        echo 1 > /proc/sys/net/ipv4/conf/br-takeover/forwarding
    fi
    ip link add veth-t$number type veth peer name "$CNI_IFNAME" netns "$CNI_NETNS"
    ip link set veth-t$number master br-takeover up
    nsenter --net="$CNI_NETNS" sh -e -c "ip address add @PREFIX@.$number/24 dev $CNI_IFNAME; ip link set $CNI_IFNAME up; ip link set lo up; ip route add default via @PREFIX@.1"
    echo "{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"$CNI_IFNAME\", \"sandbox\": \"$CNI_NETNS\"}], \"ips\": [{\"address\": \"@PREFIX@.$number/24\", \"gateway\": \"@PREFIX@.1\", \"interface\": 0}]}" ;;
esac
"#;

#[test]
fn pods_of_another_plugin_are_taken_over_and_left_as_they_were() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let without = WithoutNetwork::start()?;
    let place = Place::prepare(&cluster)?;
    place.install_other_plugin()?;
    nodes_ready(60)?;
    let namespace = Namespace::create("takeover")?;
    namespace.apply(&server("old"))?;
    namespace.apply(&namespace::client_pod("client"))?;
    for pod in ["old", "client"] {
        namespace.wait_ready(pod)?;
    }
    let old = address(&namespace, "old")?;
    ensure!(
        reaches(&namespace, &old)?,
        "the other plugin's pods do not reach each other"
    );
    namespace.run(&[
        "expose",
        "pod",
        "old",
        "--name=web",
        "--port=80",
        "--target-port=8080",
        "--selector=app=web",
    ])?;
    let service = namespace.field(&["service", "web"], "{.spec.clusterIP}")?;
    ensure!(
        !reaches(&namespace, &service)?,
        "somebody serves Services already"
    );

    let folders = [place.bin.clone(), place.agent_state()];
    let before = NodeState::now(&folders)?;
    let agent = place.start_agent(&manifest(&cluster)?)?;
    until(SOON, "Services to hold for a pod that was there", || {
        reaches(&namespace, &service)
    })
    .with_context(|| agent.log())?;
    ensure!(reaches(&namespace, &old)?, "the pods are cut off");
    namespace.apply(&server("new"))?;
    namespace.wait_ready("new").with_context(|| agent.log())?;
    let new = address(&namespace, "new")?;
    ensure!(new != old, "an address was given twice");
    ensure!(
        reaches(&namespace, &new)?,
        "an old pod does not reach a new one"
    );
    let deny = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
    });
    namespace.apply(&deny.to_string())?;
    for target in [&old, &new, &service] {
        until(SOON, "the policy to hold", || {
            Ok(!reaches(&namespace, target)?)
        })
        .with_context(|| target.clone())?;
    }
    // By the bridge's address, as the probes of a kubelet go.
    for pod in [&old, &new] {
        TcpStream::connect_timeout(&pod.parse()?, SOON)
            .with_context(|| format!("the node does not reach its pod at {pod}"))?;
    }
    namespace.run(&["delete", "networkpolicy", "deny"])?;
    until(SOON, "the policy to be gone", || reaches(&namespace, &old))?;
    namespace.run(&["delete", "pod", "new"])?;

    let log = agent.log();
    for refused in ["forbidden", "Forbidden", " 403"] {
        ensure!(!log.contains(refused), "the agent lacks a right:\n{log}");
    }
    agent.leave()?;
    let left = NodeState::now(&folders)?.added_since(&before);
    ensure!(left.is_empty(), "the agent left on the node: {left:#?}");
    ensure!(
        reaches(&namespace, &old)?,
        "the pods are cut off when the agent goes"
    );
    let files = names(&place.conf)?;
    ensure!(files == [CONFIGURATION], "{files:?}");
    drop(namespace);
    place.forget();
    drop(without);
    Ok(())
}

/// Where things lie on the node.
struct Place {
    name: String,
    address: SocketAddr,
    conf: PathBuf,
    bin: PathBuf,
    state: PathBuf,
    uplinks: String,
    cgroup2: String,
    netns: PathBuf,
}

impl Place {
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let variable = |name: &str| cluster.variable(name).map(str::to_owned);
        let state = cluster::repository().join(".windlass/data/takeover");
        fs::remove_dir_all(&state).ok();
        fs::create_dir_all(&state)?;
        let runtime = variable("WINDLASS_CONTAINERD")?;
        Ok(Self {
            name: cluster.nodes(1)?.remove(0).name,
            address: SocketAddr::new(cluster.node_ip()?, 6443),
            conf: variable("WINDLASS_CNI_CONF")?.into(),
            bin: variable("WINDLASS_CNI_BIN")?.into(),
            state,
            uplinks: variable("WINDLASS_UPLINKS")?,
            cgroup2: variable("WINDLASS_CGROUP2")?,
            netns: Path::new(&runtime)
                .with_extension("")
                .join("io.containerd.grpc.v1.cri/netns"),
        })
    }

    fn install_other_plugin(&self) -> Result<()> {
        let mut prefix = String::new();
        until(SOON, "the Node's pod CIDR", || {
            prefix = kubectl(&["get", "node", &self.name, "-o", "jsonpath={.spec.podCIDR}"])?;
            Ok(!prefix.is_empty())
        })?;
        let prefix = prefix.rsplit_once('.').context("a pod CIDR of IPv4")?.0;
        let plugin = PLUGIN.replace("@PREFIX@", prefix).replace(
            "@STATE@",
            &self.state.join("addresses").display().to_string(),
        );
        let file = self.bin.join("takeover-bridge");
        fs::create_dir_all(&self.bin)?;
        fs::write(&file, plugin)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        let conf = json!({"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "takeover-bridge"}]});
        fs::create_dir_all(&self.conf)?;
        for name in names(&self.conf)? {
            fs::remove_file(self.conf.join(name))?;
        }
        fs::write(self.conf.join(CONFIGURATION), conf.to_string())?;
        Ok(())
    }

    /// With the rights that the manifest gives to the DaemonSet's ServiceAccount.
    fn start_agent(&self, manifest: &str) -> Result<Agent<'_>> {
        let rights = manifest.split("---\n").filter(|document| {
            [
                "ServiceAccount",
                "ClusterRole",
                "ClusterRoleBinding",
                "Role",
                "RoleBinding",
            ]
            .iter()
            .any(|kind| document.contains(&format!("\nkind: {kind}\n")))
        });
        let rights: Vec<&str> = rights.collect();
        kubectl_with_input(&["apply", "-f", "-"], &rights.join("---\n"))?;
        let token = kubectl(&[
            "-n",
            "kube-system",
            "create",
            "token",
            "windlass-node-agent",
        ])?;
        let mut config: Value =
            serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])?)?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        config["clusters"][0]["cluster"]["server"] = format!("https://{}", self.address).into();
        let kubeconfig = self.state.join("kubeconfig");
        fs::write(&kubeconfig, config.to_string())?;
        let health = SocketAddr::from(([127, 0, 0, 1], 19_965));
        let log = self.state.join("agent.log");
        let mut command = Command::new(program()?);
        command.args(["run", "--roles=network", "--dns=off"]);
        for (flag, value) in [
            ("kubeconfig", shown(&kubeconfig)),
            ("node-name", self.name.clone()),
            ("socket", shown(self.socket())),
            ("state-dir", shown(self.agent_state())),
            ("bpffs", shown(BPFFS)),
            ("cgroup2", self.cgroup2.clone()),
            ("devices", self.uplinks.clone()),
            ("cni-conf-dir", shown(&self.conf)),
            ("cni-bin-dir", shown(&self.bin)),
            ("netns-dir", shown(&self.netns)),
            ("health-address", health.to_string()),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        let process = command
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("starting the agent")?;
        let agent = Agent {
            process,
            log,
            place: self,
        };
        until(SOON, "the agent to be ready", || {
            Ok(http::get(health, "/readyz").is_ok_and(|said| said.status == 200))
        })
        .with_context(|| agent.log())?;
        Ok(agent)
    }

    fn socket(&self) -> PathBuf {
        self.state.join("agent.sock")
    }

    fn agent_state(&self) -> PathBuf {
        self.state.join("agent")
    }

    /// The bridge goes with its last port; what is left is ours.
    fn forget(&self) {
        Command::new("ip")
            .args(["link", "del", "br-takeover"])
            .output()
            .ok();
        fs::remove_file(self.conf.join(CONFIGURATION)).ok();
        fs::remove_file(self.bin.join("takeover-bridge")).ok();
        fs::remove_dir_all(&self.state).ok();
    }
}

const BPFFS: &str = "/sys/fs/bpf/windlass";

struct Agent<'a> {
    process: Child,
    log: PathBuf,
    place: &'a Place,
}

impl Agent<'_> {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As when its DaemonSet is deleted.
    fn leave(mut self) -> Result<()> {
        self.stop()?;
        let mut cleanup = Command::new(program()?);
        cleanup.arg("cleanup").arg(format!("--bpffs={BPFFS}"));
        for (flag, value) in [
            ("socket", self.place.socket()),
            ("state-dir", self.place.agent_state()),
            ("cni-conf-dir", self.place.conf.clone()),
            ("cni-bin-dir", self.place.bin.clone()),
        ] {
            cleanup.arg(format!("--{flag}={}", shown(value)));
        }
        let output = cleanup.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "cleanup: {said}");
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.process.id())?),
            Signal::SIGTERM,
        )?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The agent beside this test.
fn program() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the target folder")?;
    Ok(folder.join("windlass-node-agent"))
}

fn server(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent",
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10},
        }]},
    })
    .to_string()
}

fn address(namespace: &Namespace, pod: &str) -> Result<String> {
    Ok(format!(
        "{}:8080",
        namespace.field(&["pod", pod], "{.status.podIP}")?
    ))
}

fn reaches(namespace: &Namespace, host: &str) -> Result<bool> {
    let script = format!("timeout 2 wget -q -O - http://{host}/");
    let said = namespace.try_run(&["exec", "client", "--", "sh", "-c", &script])?;
    Ok(said.success && !said.stdout.is_empty())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?.flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}
