//! The datapath against a real kernel: namespaces that stand for a node, its pods and
//! the outside, real sockets between them, and packets that no wire has seen.
//!
//! Every test makes its own world and removes it; nothing touches the machine's own
//! interfaces, and the socket hooks sit on a child cgroup of this process.
#![allow(
    unreachable_pub,
    reason = "a test binary has no outside to be reached from"
)]

mod across;
mod agent;
mod agent_process;
mod announce;
mod away;
mod balancing;
mod bridged;
mod bulk;
mod captures;
mod cgroup;
mod changes;
mod clients;
mod cluster;
mod direct;
mod echo;
mod ethtool;
mod flows;
mod frames;
mod full_table;
mod fuzz;
mod hops;
mod lifecycle;
mod mesh;
mod netns;
mod newer;
mod node_addresses;
mod packets;
mod past_the_stack;
mod path_mtu;
mod policy;
mod policy_across;
mod policy_cost;
mod rate;
mod service_networks;
mod services;
mod sockets;
mod source_ports;
mod stream;
mod traffic_policies;
mod upgrade;
mod way;
mod wire;
mod world;
mod xdp;

/// Fails with what is missing, not with whatever breaks first.
fn require_privileges() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the datapath tests need root: they make network namespaces and load BPF programs"
    );
    require_kernel((5, 15), "the datapath");
}

/// Fails where the kernel is older than what brought `what`.
fn require_kernel(oldest: (u32, u32), what: &str) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let mut numbers = release
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = oldest;
    assert!(
        version >= oldest,
        "{what} needs kernel {major}.{minor}, this is {}",
        release.trim()
    );
}
