//! The flags.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;
use windlass_cri::Endpoint;
use windlass_network::Routing;
use windlass_pods::Thresholds;

#[derive(Parser)]
#[command(
    name = "windlass-node-agent",
    version,
    about = "The Windlass node agent"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve this node until told to stop, which leaves its pods and connections as they are.
    Run(Box<RunOptions>),
    /// Remove every BPF program, pin, interface and cgroup that agents left on this node.
    Cleanup(CleanupOptions),
    /// Answer cluster DNS; `run --dns=on` starts it and keeps it running.
    #[command(hide = true)]
    Dns(crate::dns::ServerOptions),
    /// Remove the rules that a kube-proxy left on this node, by the node's own tools.
    CleanKubeProxy(CleanKubeProxyOptions),
    /// Mount bpffs on the node if nobody has: what an init container does for the agent's.
    Prepare(PrepareOptions),
    /// Ask the running agent.
    #[command(flatten)]
    Ask(crate::ask::Question),
}

/// A part of the agent's work, chosen by `--roles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// The kubelet's: register the Node, run its pods.
    Pods,
    /// kube-proxy's and the CNI plugin's: Services, pod interfaces, cluster DNS.
    Network,
    /// kube-proxy's alone, beside another CNI plugin.
    Services,
}

/// What is written `on` without quotes is `true` by the time it comes out of YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    #[value(alias = "true")]
    On,
    #[value(alias = "false")]
    Off,
}

/// Whose address a backend on another node sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadBalancerMode {
    Snat,
    Dsr,
}

/// Whose sockets are translated when they connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SocketHooks {
    All,
    Host,
}

/// What XDP does on the uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Xdp {
    #[value(alias = "false")]
    Off,
    Drop,
    Native,
    Generic,
}

#[derive(Args)]
pub(crate) struct RunOptions {
    /// How to reach the API server, and as whom. Without it, the agent is a pod of the cluster
    /// and uses its ServiceAccount.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The API server's URL, in place of what the kubeconfig or the pod's environment says. The
    /// latter is the `kubernetes` Service, which nobody may serve yet when the agent starts: without this flag, a
    /// pod asks where the node's own kubelet does, if that is known.
    #[arg(long, env = "WINDLASS_KUBE_APISERVER", default_value = "")]
    pub(crate) kube_apiserver: String,
    /// This node's name.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// This node's addresses: one, or one of each family. Without it, those of the Node object,
    /// which then is a kubelet's.
    #[arg(long, value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
    /// The container runtime's socket.
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) runtime_endpoint: Endpoint,
    /// The agent's own socket, for the CNI plugin.
    #[arg(long, default_value = "/run/windlass/agent.sock")]
    pub(crate) socket: PathBuf,
    /// Logs and leases.
    #[arg(long, default_value = "/var/lib/windlass")]
    pub(crate) state_dir: PathBuf,
    /// The kubelet's folder, with pods' folders and plugins'; the one of `--state-dir` by default. Manifests of CSI
    /// drivers name /var/lib/kubelet unless they are told another: where no kubelet runs, that can be given here.
    #[arg(long)]
    pub(crate) root_dir: Option<PathBuf>,
    /// Where BPF programs and maps are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/windlass")]
    pub(crate) bpffs: PathBuf,
    /// The cgroup2 folder whose processes get the socket hooks.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub(crate) cgroup2: PathBuf,
    /// Where cgroup hierarchies are mounted.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub(crate) cgroup_mount: PathBuf,
    /// The parent of all pods' cgroups. What is in it and belongs to no pod of this node is
    /// removed: several nodes on one machine, or a kubelet, each need their own.
    #[arg(long, default_value = "/windlass")]
    pub(crate) cgroup_root: String,
    /// Interfaces towards the rest of the world. Without it, those of the default routes and of
    /// the node's addresses.
    #[arg(long, env = "WINDLASS_DEVICES", value_delimiter = ',')]
    pub(crate) devices: Vec<String>,
    /// Where the API server asks for logs and exec.
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// Where the container runtime looks for CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Where the container runtime mounts the network namespaces of sandboxes: pods that another CNI plugin has made
    /// are found by them.
    #[arg(long, default_value = "/run/netns")]
    pub(crate) netns_dir: PathBuf,
    /// Whether the configurations of other CNI plugins are put aside for as long as Windlass is on the node.
    #[arg(long, env = "WINDLASS_CNI_EXCLUSIVE", value_enum, default_value = "on")]
    pub(crate) cni_exclusive: Switch,
    /// What this agent does.
    #[arg(
        long,
        env = "WINDLASS_ROLES",
        value_enum,
        value_delimiter = ',',
        default_value = "pods,network"
    )]
    pub(crate) roles: Vec<Role>,
    /// The addresses of all pods of the cluster. Without it, what kubeadm was told; beside it, in any case, what the
    /// Nodes were given.
    #[arg(
        long,
        env = "WINDLASS_CLUSTER_CIDR",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) cluster_cidr: Networks,
    /// How packets to pods of other nodes travel: `direct`, by the other node's address, which must be a
    /// neighbour's; or `vxlan`, inside packets between the nodes.
    #[arg(long, env = "WINDLASS_ROUTING", default_value = "direct")]
    pub(crate) routing: Routing,
    /// UDP port of packets between nodes, with `--routing=vxlan`.
    #[arg(long, env = "WINDLASS_VXLAN_PORT", default_value_t = 8472)]
    pub(crate) vxlan_port: u16,
    /// First and last NodePort.
    #[arg(long, env = "WINDLASS_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    pub(crate) service_node_port_range: (u16, u16),
    /// Where pods ask for names.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.10")]
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The end of all names of the cluster.
    #[arg(long, env = "WINDLASS_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Whether this agent answers cluster DNS.
    #[arg(long, env = "WINDLASS_DNS", value_enum, default_value = "on")]
    pub(crate) dns: Switch,
    /// The port of cluster DNS, in a network namespace of its own.
    #[arg(long, default_value_t = 53)]
    pub(crate) dns_port: u16,
    /// The node's resolver configuration, for names outside the cluster.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
    /// The most pods on this node.
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// A container's log file is put aside at this size, in bytes.
    #[arg(long, default_value_t = 10 << 20)]
    pub(crate) container_log_max_size: u64,
    /// Files kept of a container's log.
    #[arg(long, default_value_t = 5)]
    pub(crate) container_log_max_files: usize,
    /// Sysctls that pods may set beside the safe ones; a trailing `*` stands for anything.
    #[arg(long, value_delimiter = ',')]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// A folder with manifests of pods that run on this node whether or not the API server does.
    #[arg(long)]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// Of what the node must have how much left; below it pods are evicted.
    #[arg(
        long,
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"
    )]
    pub(crate) eviction_hard: Thresholds,
    /// Unused images are removed when their file system is this full, in percent.
    #[arg(long, default_value_t = 85)]
    pub(crate) image_gc_high_threshold: u8,
    /// ... until it is this full.
    #[arg(long, default_value_t = 80)]
    pub(crate) image_gc_low_threshold: u8,
    /// Labels that the Node gets at its registration, as `key=value`.
    #[arg(long, value_delimiter = ',', value_parser = label)]
    pub(crate) node_labels: Vec<(String, String)>,
    /// Taints that the Node gets at its registration, as `key=value:Effect`.
    #[arg(long, value_delimiter = ',', value_parser = taint)]
    pub(crate) register_with_taints: Vec<Taint>,
    /// The addresses of this node on which NodePorts answer: CIDRs, or `primary` for those of the Node; all of them by
    /// default.
    #[arg(
        long,
        env = "WINDLASS_NODEPORT_ADDRESSES",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) nodeport_addresses: NodePortAddresses,
    /// Networks from which the uplinks take nothing.
    #[arg(
        long,
        env = "WINDLASS_DENY_CIDRS",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) deny_cidrs: Networks,
    /// Whose sockets are translated when they connect to a Service: everybody's, or the host's alone. Pods' packets are
    /// translated when they leave the pod then, and what stands inside of it (a service mesh's proxy, a virtual
    /// machine's host) sees what was dialled.
    #[arg(long, env = "WINDLASS_SOCKET_HOOKS", value_enum, default_value = "all")]
    pub(crate) socket_hooks: SocketHooks,
    /// What XDP does on the uplinks: nothing; `drop` whom `--deny-cidrs` names, in the driver and only while
    /// there is somebody; or in the driver (`native`), or where the kernel does its work (`generic`, on any
    /// device, but slower than without), also send on what passes between clients outside and backends of
    /// other nodes. Where a driver cannot, tc does all of it.
    #[arg(long, env = "WINDLASS_XDP", value_enum, default_value = "drop")]
    pub(crate) xdp: Xdp,
    /// How clients outside reach a backend on another node: `snat`, in this node's name and back through
    /// it; or `dsr`, in their own, and answered by the backend's node itself (TCP and UDP).
    #[arg(
        long,
        env = "WINDLASS_LOAD_BALANCER_MODE",
        value_enum,
        default_value = "snat"
    )]
    pub(crate) load_balancer_mode: LoadBalancerMode,
    /// Networks of LoadBalancers' addresses for which the nodes answer by ARP and neighbour
    /// discovery, on their `--devices`: what the control plane's flag of this name gives out.
    #[arg(
        long,
        env = "WINDLASS_LOAD_BALANCER_POOL",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) load_balancer_pool: Networks,
    /// Entries of a Service's Maglev table: a prime, best a hundred times the endpoints of the
    /// largest Service that is dialled from outside.
    #[arg(long, default_value_t = 1_021)]
    pub(crate) maglev_table_size: u32,
    /// Ports that clients outside can dial for which there is room for such a table, eight octets an entry, all
    /// taken at once. Further ones are spread at random, so that nodes do not choose alike. Tables that an
    /// earlier run left keep their room.
    #[arg(long, default_value_t = 1_027)]
    pub(crate) maglev_tables: u32,
    /// Where to tell `/healthz` and `/livez` as kube-proxy does.
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub(crate) proxy_healthz_address: SocketAddr,
    /// Where to tell `/metrics` as kube-proxy does.
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub(crate) proxy_metrics_address: SocketAddr,
    /// Where to tell `/healthz`, `/readyz` and `/metrics` without TLS; nowhere by default.
    #[arg(long)]
    pub(crate) health_address: Option<SocketAddr>,
    /// Connections and drops that each CPU tells of in a second, while somebody listens.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) flow_events_per_second: u32,
    /// Once every Service is served, remove the rules that a kube-proxy left on this node.
    #[arg(
        long,
        env = "WINDLASS_CLEAN_KUBE_PROXY",
        value_enum,
        default_value = "off"
    )]
    pub(crate) clean_kube_proxy: Switch,
    /// Where the node's root is mounted: its own tools are run in it.
    #[arg(long, default_value = "/")]
    pub(crate) host_root: PathBuf,
    /// The DaemonSet that this agent is a pod of. When the agent is told to stop and there is no
    /// such DaemonSet any more, it takes everything of Windlass off the node.
    #[arg(long, value_parser = namespaced)]
    pub(crate) daemon_set: Option<(String, String)>,
    /// The name of the DaemonSet's pod that this agent is.
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: Option<String>,
    /// Its uid.
    #[arg(long, env = "POD_UID")]
    pub(crate) pod_uid: Option<String>,
    /// A file for the process id; it also keeps a second agent from starting.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
}

impl RunOptions {
    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Where the network role keeps what must survive it.
    pub(crate) fn network_state(&self) -> PathBuf {
        self.state_dir.join(NETWORK_STATE)
    }

    /// Whether the datapath is this agent's, with pods' interfaces or without.
    pub(crate) fn serves_services(&self) -> bool {
        self.has(Role::Network) || self.has(Role::Services)
    }
}

/// In `--state-dir`.
pub(crate) const NETWORK_STATE: &str = "network";

#[derive(Args)]
pub(crate) struct CleanupOptions {
    /// Where the agent has noted addresses and settings; the latter are put back, and both are forgotten.
    #[arg(long, default_value = "/var/lib/windlass")]
    pub(crate) state_dir: PathBuf,
    /// The agent's own socket; the files of cluster DNS lie beside it.
    #[arg(long, default_value = "/run/windlass/agent.sock")]
    pub(crate) socket: PathBuf,
    /// Where BPF programs and maps are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/windlass")]
    pub(crate) bpffs: PathBuf,
    /// Where the CNI configuration was written, if it is to be removed too.
    #[arg(long)]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Where the CNI plugin was installed, if it is to be removed too.
    #[arg(long)]
    pub(crate) cni_bin_dir: Option<PathBuf>,
    /// Where cgroup hierarchies are mounted.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub(crate) cgroup_mount: PathBuf,
    /// The parent of all pods' cgroups, if it is to be removed too.
    #[arg(long)]
    pub(crate) cgroup_root: Option<String>,
}

#[derive(Args)]
pub(crate) struct PrepareOptions {
    /// The node's mount namespace.
    #[arg(long, default_value = "/proc/1/ns/mnt")]
    pub(crate) mount_namespace: PathBuf,
}

#[derive(Args)]
pub(crate) struct CleanKubeProxyOptions {
    /// Where the node's root is mounted: its own tools are run in it.
    #[arg(long, default_value = "/")]
    pub(crate) host_root: PathBuf,
}

/// A list of CIDRs, which may be empty: an environment variable that is set to nothing says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks(pub(crate) Vec<IpNet>);

impl std::ops::Deref for Networks {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.0
    }
}

impl std::str::FromStr for Networks {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split(',').map(str::trim);
        let words = words.filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Which of the node's addresses NodePorts answer on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodePortAddresses {
    /// Those in these networks; all of them, if there are none.
    In(Networks),
    /// Those by which the cluster knows the node.
    Primary,
}

impl NodePortAddresses {
    /// None: they answer on all.
    pub(crate) fn networks(&self, of_node: &[IpAddr]) -> Vec<IpNet> {
        match self {
            Self::In(networks) => networks.0.clone(),
            Self::Primary => of_node.iter().copied().map(IpNet::from).collect(),
        }
    }
}

impl std::str::FromStr for NodePortAddresses {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            text => text.parse().map(Self::In),
        }
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a port"));
    let (first, last) = text.split_once('-').ok_or("expected FIRST-LAST")?;
    let range = (parse(first)?, parse(last)?);
    if range.0 == 0 || range.0 > range.1 {
        return Err(format!("{text} is not a range"));
    }
    Ok(range)
}

fn namespaced(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').ok_or("expected NAMESPACE/NAME")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn taint(text: &str) -> Result<Taint, String> {
    let (rest, effect) = text.rsplit_once(':').ok_or("expected KEY[=VALUE]:EFFECT")?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(format!("{effect:?} is no effect of a taint"));
    }
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (rest, None),
    };
    Ok(Taint {
        key: key.to_owned(),
        value,
        effect: effect.to_owned(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_are_chosen_by_networks_or_by_kube_proxys_word() {
        let own: [IpAddr; 2] = [[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()];
        let chosen = |text: &str| {
            let parsed = text.parse::<NodePortAddresses>().unwrap();
            let networks = parsed.networks(&own);
            let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
            networks.join(" ")
        };
        assert_eq!(chosen(""), "");
        assert_eq!(chosen("10.0.0.0/8, ::/0"), "10.0.0.0/8 ::/0");
        assert_eq!(chosen("primary"), "192.0.2.1/32 2001:db8::1/128");
        assert!("secondary".parse::<NodePortAddresses>().is_err());
    }

    /// Whatever the manifest's ConfigMap says, and where it says nothing.
    #[test]
    fn the_manifests_settings_are_understood() {
        let manifest = include_str!("../../../deploy/node-agent.yaml");
        let command = <Cli as clap::CommandFactory>::command();
        let run = command.find_subcommand("run").expect("a command `run`");
        let mut words = vec!["windlass-node-agent".to_owned(), "run".to_owned()];
        words.push("--node-name=n".to_owned());
        for line in manifest.lines().map(str::trim) {
            let Some((name, value)) = line
                .split_once(": ")
                .filter(|(name, _)| name.starts_with("WINDLASS_"))
            else {
                continue;
            };
            let flag = run
                .get_arguments()
                .find(|flag| flag.get_env() == Some(name.as_ref()));
            let flag = flag
                .and_then(clap::Arg::get_long)
                .unwrap_or_else(|| panic!("{name} is no flag's"));
            words.push(format!("--{flag}={}", value.trim_matches('"')));
        }
        assert!(words.len() > 15, "{words:?}");
        let cli =
            Cli::try_parse_from(&words).expect("every setting has a value that its flag takes");
        let Command::Run(options) = cli.command else {
            panic!("`run` was asked for");
        };
        assert!(options.load_balancer_pool.is_empty() && options.roles == [Role::Network]);
    }

    #[test]
    fn what_yaml_makes_of_on_and_off_is_understood() {
        let words =
            "windlass-node-agent run --node-name n --dns=true --cni-exclusive=false --xdp=false";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Run(options) = cli.command else {
            panic!("not run")
        };
        assert_eq!(
            (options.dns, options.cni_exclusive),
            (Switch::On, Switch::Off)
        );
        assert_eq!(options.xdp, Xdp::Off);
    }

    #[test]
    fn the_flags_of_a_cluster_are_understood() {
        let words = "windlass-node-agent run --kubeconfig k --node-name n --node-ip 192.0.2.1 \
            --runtime-endpoint unix:///run/c.sock --devices eth0,wlout0 --roles=pods,network \
            --service-node-port-range 30000-30100 --node-labels a=b,c=d";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Run(options) = cli.command else {
            panic!("not run")
        };
        assert!(options.has(Role::Pods) && options.has(Role::Network));
        assert_eq!(options.devices, ["eth0", "wlout0"]);
        assert_eq!(options.service_node_port_range, (30_000, 30_100));
        assert_eq!(options.cluster_cidr, Networks::default());
        let both: Networks = "10.42.0.0/16, fd00::/56".parse().unwrap();
        assert_eq!(both.0.len(), 2);
        assert!("10.42.0.0".parse::<Networks>().is_err());
        assert_eq!(options.node_labels[1], ("c".to_owned(), "d".to_owned()));
    }

    #[test]
    fn taints_have_a_key_and_an_effect() {
        let parsed = taint("example.org/gpu=yes:NoSchedule").unwrap();
        assert_eq!(
            (parsed.key.as_str(), parsed.value.as_deref()),
            ("example.org/gpu", Some("yes"))
        );
        assert_eq!(taint("k:NoExecute").unwrap().value, None);
        assert!(taint("k=v").is_err() && taint("k:Never").is_err());
    }

    #[test]
    fn wrong_ranges_are_refused() {
        for text in ["", "1", "0-5", "9-1", "1-70000", "a-b"] {
            assert!(port_range(text).is_err(), "{text}");
        }
    }
}
