//! `cargo xtask up`: from a clone to a Node that is Ready.

mod cluster;
pub mod families;
mod kubeconfigs;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::families::Families;
use crate::progress::Progress;
use crate::setup::{self, Need};
use crate::{cargo, containerd, image, layout, preflight, process, summary, supervise, wait};

pub fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    preflight::require_root("up")?;
    let progress = Progress::start();
    let _lock = command_lock("up")?;
    if already_running(&options, &progress)? {
        return Ok(());
    }
    if options.build {
        let needs = [Need::Build, Need::Cluster];
        let missing = setup::unsatisfied(&needs);
        if !missing.is_empty() {
            progress.say(format!("installing {}", missing.join(", ")));
            setup::run(&needs)?;
        }
        build_everything(&progress)?;
    }
    start(&options, &progress)
}

/// What the user asks for.
pub struct Options {
    build: bool,
    /// Unless given, one.
    nodes: Option<usize>,
    routing: String,
    /// Networks whose addresses Services of type LoadBalancer get, and who answers their clients; as the
    /// control plane's and the agent's flags of these names say.
    load_balancer_pool: Option<String>,
    load_balancer_mode: String,
    /// What the agent on the machine does. With `pods` alone, the network is somebody else's: of the DaemonSet
    /// in `deploy/`, for one.
    roles: String,
    /// Unless given, IPv4.
    families: Option<Families>,
}

impl Options {
    const USAGE: &str = "usage: cargo xtask up [--nodes N] [--routing direct|vxlan] [--ip-families ipv4|ipv4,ipv6|ipv6] \
                         [--load-balancer-pool NETWORKS] [--load-balancer-mode snat|dsr] [--roles pods] \
                         [--no-build], N from 1 to 9";

    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            build: true,
            nodes: None,
            routing: "direct".to_owned(),
            load_balancer_pool: None,
            load_balancer_mode: "snat".to_owned(),
            roles: "pods,network".to_owned(),
            families: None,
        };
        let words = arguments.iter().flat_map(|word| word.split('='));
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            match word {
                "--no-build" => options.build = false,
                "--nodes" => {
                    let count = words.next().and_then(|count| count.parse().ok());
                    options.nodes = count.filter(|count| (1..=layout::MOST_NODES).contains(count));
                    options.nodes.context(Self::USAGE)?;
                }
                "--routing" => {
                    let known = words
                        .next()
                        .filter(|word| ["direct", "vxlan"].contains(word));
                    options.routing = known.context(Self::USAGE)?.to_owned();
                }
                "--load-balancer-pool" => {
                    // What it means the control plane knows, and says where it is wrong.
                    let networks = words.next().filter(|word| !word.starts_with('-'));
                    options.load_balancer_pool = Some(networks.context(Self::USAGE)?.to_owned());
                }
                "--load-balancer-mode" => {
                    let known = words.next().filter(|word| ["snat", "dsr"].contains(word));
                    options.load_balancer_mode = known.context(Self::USAGE)?.to_owned();
                }
                "--roles" => {
                    let known = words
                        .next()
                        .filter(|word| ["pods", "pods,network"].contains(word));
                    options.roles = known.context(Self::USAGE)?.to_owned();
                }
                "--ip-families" => {
                    let known = words.next().and_then(Families::named);
                    options.families = Some(known.context(Self::USAGE)?);
                }
                _ => bail!(Self::USAGE),
            }
        }
        Ok(options)
    }

    /// Whether Nodes can become ready by what `up` starts.
    fn brings_network(&self) -> bool {
        self.roles != "pods"
    }
}

/// Starts what is built; the clock of the promise "Node Ready within 3 s" runs from here.
pub fn start(options: &Options, progress: &Progress) -> Result<()> {
    let since_start = Progress::start();
    progress.say("checking this machine");
    let families = options.families.unwrap_or(Families::Ipv4);
    let host = preflight::host(options.nodes.unwrap_or(1), families)?;
    let names: Vec<&str> = host.nodes.iter().map(|node| node.name.as_str()).collect();
    let names = names.join(", ");
    progress.say(format!(
        "node {names} at {}, uplink {}, snapshotter {}",
        host.address,
        host.uplink.as_deref().unwrap_or("none"),
        host.snapshotter
    ));
    if let Err(error) = cluster::start(&host, options, progress) {
        // What has started may yet become ready, and can be looked at; `up` once more waits for it.
        summary::write_environment(&host).ok();
        return Err(error.context(format!(
            "the cluster did not start (logs: {}; `cargo xtask down` removes what has started)",
            layout::logs().display()
        )));
    }
    summary::write_environment(&host)?;
    progress.say(format!(
        "up: Node {names} is {}, {:.1} s after the start of the cluster",
        if options.brings_network() {
            "Ready"
        } else {
            "waiting for a network"
        },
        since_start.elapsed().as_secs_f64()
    ));
    summary::print();
    Ok(())
}

/// The binaries and the images, in one profile.
pub fn build_everything(progress: &Progress) -> Result<()> {
    progress.say("building (the first time takes some minutes)");
    process::run(cargo::workspace("build").arg("--bins"))?;
    progress.say(format!("writing the images {}", image::FOR_UP.join(", ")));
    for name in image::FOR_UP {
        image::write(name)?;
    }
    Ok(())
}

fn already_running(options: &Options, progress: &Progress) -> Result<bool> {
    let since = cluster::Since::joining();
    if supervise::orphaned() {
        progress.say("the supervisor is gone, but not what it looked after: starting it again");
        supervise::spawn(&layout::supervisor_definition())?;
        wait::until(Duration::from_secs(5), || supervise::running().is_some());
    }
    let Some((pid, repository)) = supervise::running() else {
        return Ok(false);
    };
    if repository != layout::repository().display().to_string() {
        bail!(
            "a cluster of {repository} already runs on this machine (supervisor {pid}): run `cargo xtask down` there"
        );
    }
    progress.say(format!(
        "a cluster already runs (supervisor {pid}); `cargo xtask down` stops it"
    ));
    let nodes = running_nodes();
    if options.nodes.is_some_and(|wanted| wanted != nodes) {
        bail!("it has {nodes} nodes: run `cargo xtask down` to start it with another number");
    }
    let has = families::last();
    if options.families.is_some_and(|wanted| wanted != has) {
        let has = has.name();
        bail!("it has {has}: run `cargo xtask down` to start it with other --ip-families");
    }
    cluster::wait_until_ready(nodes, &since, options.brings_network(), progress)?;
    summary::print();
    Ok(true)
}

/// How many nodes the last `up` started.
pub fn running_nodes() -> usize {
    let services = supervise::services();
    let agents = services
        .iter()
        .filter(|name| name.starts_with("node-agent"));
    agents.count()
}

/// Waits until no other `up` or `down` works on this machine's cluster.
pub fn command_lock(command: &str) -> Result<File> {
    let path = layout::command_lock();
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        let other = fs::read_to_string(&path).unwrap_or_default();
        println!(
            "another `cargo xtask {}` is at work: waiting for it",
            other.trim()
        );
        file.lock().context("waiting for the other command")?;
    }
    file.set_len(0)?;
    write!(file, "{command} (pid {})", std::process::id())?;
    Ok(file)
}

/// Loads what `up` promises to load.
fn import_images(node: layout::NodeLayout, snapshotter: &str) -> Result<()> {
    for name in image::FOR_UP {
        let archive = layout::images().join(format!("{name}.tar"));
        if !archive.exists() {
            bail!(
                "{} is missing: run `cargo xtask up` without --no-build",
                archive.display()
            );
        }
        containerd::import(node, &archive, Some(snapshotter))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_understood_in_both_spellings() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words)
        };
        let options =
            parse("--no-build --nodes=3 --routing vxlan --ip-families=ipv4,ipv6").unwrap();
        assert_eq!((options.build, options.nodes), (false, Some(3)));
        assert_eq!(
            (options.routing.as_str(), options.families),
            ("vxlan", Some(Families::Both))
        );
        let alone = parse("--ip-families ipv6").unwrap();
        assert_eq!(alone.families, Some(Families::Ipv6));
        assert!(parse("--ip-families ipv6,ipv4").is_err());
        let options =
            parse("--load-balancer-pool 192.0.2.0/28,2001:db8::/120 --load-balancer-mode=dsr");
        let options = options.unwrap();
        assert_eq!(
            (
                options.load_balancer_pool.as_deref(),
                options.load_balancer_mode.as_str()
            ),
            (Some("192.0.2.0/28,2001:db8::/120"), "dsr")
        );
        assert!(parse("--load-balancer-mode nat").is_err());
        assert!(parse("--load-balancer-pool --no-build").is_err());
        for wrong in ["--nodes 0", "--nodes 10", "--nodes", "--routing none", "x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
