//! Options of the datapath.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TcAttach {
    /// TCX links on uplinks where the kernel has them (6.6), clsact filters everywhere else.
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// What XDP does on uplinks, before the kernel makes a packet of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XdpMode {
    Off,
    /// In the driver, while somebody is denied: drops them, and clients outside a balancer's ranges.
    #[default]
    Drop,
    /// In the driver, always: it also sends on what passes through this node, between clients outside
    /// and backends of other nodes.
    Native,
    /// The same where the kernel does it in place of the driver: on any device, and slower than tc.
    Generic,
}

impl XdpMode {
    pub(crate) fn forwards(self) -> bool {
        matches!(self, Self::Native | Self::Generic)
    }
}

/// Maximum numbers of entries. Maps allocate on demand (all but the LRU ones), so a large
/// capacity costs its hash buckets only. A map that already exists keeps its capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Addresses and ports of services.
    pub services: u32,
    /// Endpoints, counted once for every service port that they serve.
    pub slots: u32,
    /// Distinct endpoint addresses and ports.
    pub backends: u32,
    /// Elements of the table of connections: two for each that is translated, one for any other.
    pub conntrack: u32,
    /// Remembered (client, service) pairs of session affinity.
    pub affinity: u32,
    /// Remembered sockets (LRU), and a quarter as many of unconnected ones.
    pub sockets: u32,
    /// Addresses of pods and nodes of the cluster, and networks in policies.
    pub policy_peers: u32,
    /// Verdicts of policies: the pairs of a class of local pods and a class of peers.
    pub policy_verdicts: u32,
    /// Pod addresses on this node.
    pub endpoints: u32,
    /// Source ranges, counted once for every service port that asks for them.
    pub source_ranges: u32,
    /// Backends of the Maglev tables of all services together, allocated at once: eight
    /// bytes each. Services that find no room choose at random.
    pub maglev: u32,
    /// Datagrams in fragments (LRU).
    pub fragments: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: 262_144,
            slots: 524_288,
            backends: 524_288,
            conntrack: 524_288,
            affinity: 65_536,
            sockets: 65_536,
            policy_peers: 262_144,
            policy_verdicts: 524_288,
            endpoints: 4_096,
            source_ranges: 65_536,
            maglev: 1_048_576,
            fragments: 8_192,
        }
    }
}

#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory for the pins; bpffs is mounted there when it is not on one.
    pub bpffs: PathBuf,
    /// First and last NodePort.
    pub node_ports: (u16, u16),
    /// First and last source port of translated sources; must not overlap the NodePorts
    /// nor the range from which the host's sockets draw.
    pub snat_ports: (u16, u16),
    /// Give pods an address of the uplink towards destinations outside the cluster.
    pub masquerade: bool,
    pub tc: TcAttach,
    pub xdp: XdpMode,
    /// Version of the maps' layouts, which the pin directory carries. Another one than the
    /// crate's own is for tests of an upgrade.
    pub layout: u32,
    /// NodePorts answer on the node's loopback too.
    pub loopback_node_ports: bool,
    /// Pods' sockets are translated when they connect, and not their packets.
    pub pod_sockets: bool,
    /// A client outside whose backend is on another node is answered by that node itself, and seen by the
    /// backend as it is.
    pub direct_answers: bool,
    /// Entries of one service's Maglev table: a prime, best a hundred times the endpoints
    /// of the largest service that the outside can reach.
    pub maglev_size: u32,
    pub capacities: Capacities,
}

impl DatapathConfig {
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            node_ports: (30_000, 32_767),
            snat_ports: (61_000, 65_535),
            masquerade: true,
            tc: TcAttach::Auto,
            xdp: XdpMode::default(),
            layout: windlass_ebpf_types::LAYOUT_VERSION,
            loopback_node_ports: true,
            pod_sockets: true,
            direct_answers: false,
            maglev_size: 1_021,
            capacities: Capacities::default(),
        }
    }

    /// How many unanswered connections one pod may have, and how many all clients outside
    /// together: what one of them opens must leave the table to the others.
    pub(crate) fn half_open_quota(&self) -> (u32, u32) {
        // Of a Service each takes two elements.
        let connections = self.capacities.conntrack / 2;
        ((connections / 16).max(64), (connections / 2).max(64))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let ranges = [
            ("node ports", self.node_ports),
            ("source ports", self.snat_ports),
        ];
        for (what, (first, last)) in ranges {
            if first == 0 || first > last {
                return Err(Error::Config(format!(
                    "{what}: {first}-{last} is not a range"
                )));
            }
        }
        if !is_prime(self.maglev_size) {
            return Err(Error::Config(format!(
                "size of a Maglev table: {} is not a prime",
                self.maglev_size
            )));
        }
        let ((a, b), (c, d)) = (self.node_ports, self.snat_ports);
        if a <= d && c <= b {
            return Err(Error::Config(format!(
                "node ports {a}-{b} overlap source ports {c}-{d}"
            )));
        }
        Ok(())
    }
}

fn is_prime(number: u32) -> bool {
    let mut divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1 && divisors.all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maglev_table_has_a_prime_number_of_entries() {
        let primes: Vec<u32> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(DatapathConfig::new("/x").maglev_size));
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let with = |node_ports, snat_ports| {
            DatapathConfig {
                node_ports,
                snat_ports,
                ..DatapathConfig::new("/x")
            }
            .validate()
        };
        assert!(with((30_000, 32_767), (61_000, 65_535)).is_ok());
        assert!(with((30_000, 32_767), (32_000, 33_000)).is_err());
        assert!(with((30_000, 29_000), (61_000, 65_535)).is_err());
        assert!(with((30_000, 32_767), (0, 65_535)).is_err());
    }
}
