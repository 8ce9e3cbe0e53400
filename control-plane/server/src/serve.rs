//! `serve`: starts everything in order and stops it in reverse.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use ipnet::IpNet;

use crate::kubeconfig;
use crate::pki::{Authority, Directory, Signed};

#[derive(clap::Args)]
pub struct Options {
    /// Where keys and the embedded store live.
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// The address at which nodes and pods reach this server.
    #[arg(long)]
    advertise_address: IpAddr,
    /// Where ClusterIPs come from; one range per IP family, comma-separated, the primary first.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    service_cluster_ip_range: Vec<IpNet>,
    /// Where nodes' podCIDRs come from; one range per IP family, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    cluster_cidr: Vec<IpNet>,
    /// First and last port of NodePorts.
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    /// More names or addresses for the serving certificate.
    #[arg(long, value_delimiter = ',')]
    tls_san: Vec<String>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Where to write this process's id.
    #[arg(long)]
    pid_file: Option<PathBuf>,
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parsed = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .filter(|(first, last)| first <= last && *first > 0);
    parsed.ok_or_else(|| format!("{text:?} is not a port range such as 30000-32767"))
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    fs::create_dir_all(&options.data_dir)
        .with_context(|| format!("create {}", options.data_dir.display()))?;
    let pki = Directory::new(&options.data_dir);
    let authority = pki.authority()?;
    let _serving = serving_certificate(&authority, &options)?;
    let url = format!(
        "https://{}",
        SocketAddr::new(options.advertise_address, options.secure_port)
    );
    let admin = options.data_dir.join("admin.kubeconfig");
    kubeconfig::write(
        &authority,
        &url,
        "kubernetes-admin",
        &["system:masters".to_owned()],
        &admin,
    )?;
    if let Some(pid_file) = &options.pid_file {
        fs::write(pid_file, std::process::id().to_string())
            .with_context(|| format!("write {}", pid_file.display()))?;
    }
    Ok(())
}

/// The certificate for every name by which nodes, pods and people reach this server.
fn serving_certificate(authority: &Authority, options: &Options) -> anyhow::Result<Signed> {
    let service = format!("kubernetes.default.svc.{}", options.cluster_domain);
    let mut names = vec![
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        &service,
        "localhost",
    ];
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        options.advertise_address,
    ];
    // The `kubernetes` Service has the first address of each range.
    addresses.extend(
        options
            .service_cluster_ip_range
            .iter()
            .filter_map(|range| range.hosts().next()),
    );
    for san in &options.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san),
        }
    }
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    names.extend(host.as_deref());
    authority.serving("kube-apiserver", &names, &addresses)
}
