//! Gives pods their addresses from the node's pod CIDRs.
//!
//! The leases' files are the true copy; this is their index. An address that is freed rests before it is
//! given again: peers' connection tracking, policy elsewhere and resolvers may still take it for its last
//! holder.

mod lease;
mod pool;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use self::lease::LeaseFolder;
pub use self::lease::{AttachmentKey, Lease, PodName, PortMapping};
use self::pool::Pool;
use crate::interface::Bandwidth;

/// How long a freed address rests. Longer than a peer keeps retransmitting to a pod that went away in the
/// middle of a handshake, short enough that a /24 with 110 pods restarting does not run dry.
pub const QUARANTINE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error(
        "the node has no pod CIDR yet: it is set by the node controller once the Node is registered"
    )]
    NoPodCidr,
    #[error("all addresses of {cidr} are taken ({leased} leased, {resting} freed less than {} s ago)", QUARANTINE.as_secs())]
    Exhausted {
        cidr: IpNet,
        leased: usize,
        resting: usize,
    },
    #[error("the pod CIDR {cidr} is too small to hold pods")]
    TooSmall { cidr: IpNet },
    #[error("writing the lease failed: {0}")]
    Io(#[from] io::Error),
}

/// What an allocation is for.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: AttachmentKey,
    pub netns: PathBuf,
    pub pod: PodName,
    pub host_interface: String,
    pub bandwidth: Bandwidth,
    pub ports: Vec<PortMapping>,
}

pub struct Ipam {
    folder: LeaseFolder,
    quarantine: Duration,
    pools: Vec<(IpNet, Pool)>,
    leases: BTreeMap<AttachmentKey, Lease>,
    /// Every address of every lease, resting ones included.
    taken: HashMap<IpAddr, AttachmentKey>,
}

impl Ipam {
    /// Reads the leases in `folder`, which is created when it is not there.
    pub fn open(folder: PathBuf, quarantine: Duration) -> io::Result<Self> {
        let folder = LeaseFolder::open(folder)?;
        let mut leases = BTreeMap::new();
        let mut taken = HashMap::new();
        for lease in folder.load()? {
            for address in &lease.addresses {
                taken.insert(*address, lease.key.clone());
            }
            leases.insert(lease.key.clone(), lease);
        }
        Ok(Self {
            folder,
            quarantine,
            pools: Vec::new(),
            leases,
            taken,
        })
    }

    /// Sets where new addresses come from; leases from elsewhere stay as they are.
    pub fn set_pod_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), IpamError> {
        let mut pools = Vec::new();
        for cidr in cidrs {
            let mut pool = Pool::new(*cidr).ok_or(IpamError::TooSmall { cidr: *cidr })?;
            // Go on where the last run of the agent stopped.
            let newest = self
                .leases
                .values()
                .filter_map(|lease| {
                    let address = lease
                        .addresses
                        .iter()
                        .find(|address| cidr.contains(*address))?;
                    Some((lease.allocated_at, *address))
                })
                .max();
            if let Some((_, address)) = newest {
                pool.continue_after(address);
            }
            pools.push((*cidr, pool));
        }
        self.pools = pools;
        Ok(())
    }

    pub fn pod_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.pools.iter().map(|(cidr, _)| *cidr)
    }

    /// The active lease of an attachment.
    pub fn get(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key).filter(|lease| lease.is_active())
    }

    pub fn active(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(|lease| lease.is_active())
    }

    /// One address of each pod CIDR. The same attachment is given the same addresses again.
    pub fn allocate(&mut self, claim: Claim) -> Result<Lease, IpamError> {
        if let Some(lease) = self.get(&claim.key) {
            return Ok(lease.clone());
        }
        if self.pools.is_empty() {
            return Err(IpamError::NoPodCidr);
        }
        let now = SystemTime::now();
        self.free_rested(now)?;
        let mut addresses = Vec::new();
        for (cidr, pool) in &mut self.pools {
            let taken = &self.taken;
            let Some(address) = pool.next(|address| taken.contains_key(&address)) else {
                let leased = self
                    .leases
                    .values()
                    .filter(|lease| lease.is_active())
                    .count();
                let resting = self.leases.len() - leased;
                return Err(IpamError::Exhausted {
                    cidr: *cidr,
                    leased,
                    resting,
                });
            };
            addresses.push(address);
        }
        self.lease(claim, addresses, now)
    }

    /// Notes what an attachment that is not ours has been given, from wherever that is.
    pub fn adopt(&mut self, claim: Claim, addresses: Vec<IpAddr>) -> Result<Lease, IpamError> {
        self.lease(claim, addresses, SystemTime::now())
    }

    /// Whether somebody holds the address, or did so a moment ago.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.taken.contains_key(&address)
    }

    fn lease(
        &mut self,
        claim: Claim,
        addresses: Vec<IpAddr>,
        now: SystemTime,
    ) -> Result<Lease, IpamError> {
        let lease = Lease {
            key: claim.key,
            addresses,
            netns: claim.netns,
            pod: claim.pod,
            host_interface: claim.host_interface,
            bandwidth: claim.bandwidth,
            ports: claim.ports,
            allocated_at: now,
            released_at: None,
        };
        // A resting lease of the same attachment would be overwritten, and its address forgotten too early;
        // it keeps resting under a name of its own.
        if let Some(resting) = self.leases.remove(&lease.key) {
            self.rename_resting(resting)?;
        }
        self.folder.write(&lease)?;
        for address in &lease.addresses {
            self.taken.insert(*address, lease.key.clone());
        }
        self.leases.insert(lease.key.clone(), lease.clone());
        Ok(lease)
    }

    /// Keeps addresses from being given, until the agent restarts: someone unknown holds them.
    pub fn reserve(&mut self, holder: &str, addresses: &[IpAddr]) {
        for address in addresses {
            let key = AttachmentKey {
                container_id: String::new(),
                interface: holder.to_owned(),
            };
            self.taken.entry(*address).or_insert(key);
        }
    }

    /// Ends a lease; its addresses begin to rest. An unknown attachment has none.
    pub fn release(&mut self, key: &AttachmentKey) -> Result<(), IpamError> {
        let Some(lease) = self.leases.get_mut(key).filter(|lease| lease.is_active()) else {
            return Ok(());
        };
        lease.released_at = Some(SystemTime::now());
        // On a full disk nothing can be written, but removed: pods must be able to go, or it stays full. Then the
        // address rests only as long as this agent lives.
        if let Err(error) = self.folder.write(lease) {
            tracing::warn!(%error, container = key.container_id, "a lease is removed in place of marked as ended");
            self.folder.remove(key)?;
        }
        Ok(())
    }

    fn free_rested(&mut self, now: SystemTime) -> Result<(), IpamError> {
        let quarantine = self.quarantine;
        let rested: Vec<AttachmentKey> = self
            .leases
            .values()
            .filter(|lease| lease.has_rested(quarantine, now))
            .map(|lease| lease.key.clone())
            .collect();
        for key in rested {
            self.folder.remove(&key)?;
            if let Some(lease) = self.leases.remove(&key) {
                for address in lease.addresses {
                    self.taken.remove(&address);
                }
            }
        }
        Ok(())
    }

    fn rename_resting(&mut self, mut lease: Lease) -> Result<(), IpamError> {
        let since = lease
            .released_at
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let stamp = since.unwrap_or_default().as_nanos();
        lease.key.interface = format!("{}.{stamp}", lease.key.interface);
        self.folder.write(&lease)?;
        for address in &lease.addresses {
            self.taken.insert(*address, lease.key.clone());
        }
        self.leases.insert(lease.key.clone(), lease);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(container: &str) -> Claim {
        Claim {
            key: key(container),
            netns: "/run/netns/x".into(),
            pod: PodName::default(),
            host_interface: format!("wl{container}"),
            bandwidth: Bandwidth::default(),
            ports: Vec::new(),
        }
    }

    fn key(container: &str) -> AttachmentKey {
        AttachmentKey {
            container_id: container.into(),
            interface: "eth0".into(),
        }
    }

    fn open(folder: &tempfile::TempDir, quarantine: Duration) -> Ipam {
        let mut ipam = Ipam::open(folder.path().join("leases"), quarantine).expect("open");
        ipam.set_pod_cidrs(&["10.9.0.0/29".parse().expect("a CIDR")])
            .expect("has room");
        ipam
    }

    fn address(ipam: &mut Ipam, container: &str) -> String {
        ipam.allocate(claim(container))
            .expect("an address")
            .addresses[0]
            .to_string()
    }

    #[test]
    fn the_same_attachment_is_given_the_same_address() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = open(&folder, QUARANTINE);
        let first = address(&mut ipam, "a");
        assert_ne!(address(&mut ipam, "b"), first);
        assert_eq!(address(&mut ipam, "a"), first);
    }

    #[test]
    fn a_lease_ends_where_nothing_can_be_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = open(&folder, QUARANTINE);
        let (a, b) = (address(&mut ipam, "a"), address(&mut ipam, "b"));
        let in_the_way = folder.path().join("leases/a-eth0.new");
        std::fs::create_dir(&in_the_way).expect("a folder");
        ipam.release(&key("a")).expect("it ends");
        assert!(ipam.get(&key("a")).is_none());
        assert_ne!(address(&mut ipam, "c"), a, "it rests");
        std::fs::remove_dir(&in_the_way).expect("remove");
        let ipam = open(&folder, QUARANTINE);
        let kept: Vec<_> = ipam.active().map(|lease| &lease.key.container_id).collect();
        assert_eq!(kept, ["b", "c"]);
        assert!(ipam.is_taken(b.parse().expect("an address")));
    }

    #[test]
    fn leases_survive_a_restart_and_the_next_address_is_a_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = open(&folder, QUARANTINE);
        let (a, b) = (address(&mut ipam, "a"), address(&mut ipam, "b"));
        drop(ipam);
        let mut ipam = open(&folder, QUARANTINE);
        assert_eq!(address(&mut ipam, "b"), b);
        assert_eq!(address(&mut ipam, "a"), a);
        assert_eq!(address(&mut ipam, "c"), "10.9.0.4");
        assert_eq!(ipam.active().count(), 3);
    }

    #[test]
    fn a_freed_address_rests_even_across_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = open(&folder, QUARANTINE);
        for container in ["a", "b", "c", "d", "e"] {
            address(&mut ipam, container);
        }
        ipam.release(&key("a")).expect("release");
        assert!(ipam.get(&key("a")).is_none());
        drop(ipam);
        let mut ipam = open(&folder, QUARANTINE);
        let error = ipam
            .allocate(claim("f"))
            .expect_err("all are leased or rest");
        assert!(
            matches!(
                error,
                IpamError::Exhausted {
                    leased: 4,
                    resting: 1,
                    ..
                }
            ),
            "{error}"
        );
        drop(ipam);
        let mut ipam = open(&folder, Duration::ZERO);
        assert_eq!(address(&mut ipam, "f"), "10.9.0.2");
    }

    #[test]
    fn an_attachment_that_comes_back_leaves_its_old_address_at_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = open(&folder, QUARANTINE);
        assert_eq!(address(&mut ipam, "a"), "10.9.0.2");
        ipam.release(&key("a")).expect("release");
        assert_eq!(address(&mut ipam, "a"), "10.9.0.3");
        drop(ipam);
        let mut ipam = open(&folder, QUARANTINE);
        for (container, expected) in [("b", "10.9.0.4"), ("c", "10.9.0.5"), ("d", "10.9.0.6")] {
            assert_eq!(address(&mut ipam, container), expected);
        }
        assert!(ipam.allocate(claim("e")).is_err(), "10.9.0.2 must rest");
    }

    #[test]
    fn without_a_pod_cidr_there_is_no_address() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ipam = Ipam::open(folder.path().to_owned(), QUARANTINE).expect("open");
        assert!(matches!(
            ipam.allocate(claim("a")),
            Err(IpamError::NoPodCidr)
        ));
    }

    #[test]
    fn an_unreadable_lease_is_set_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let leases = folder.path().join("leases");
        std::fs::create_dir_all(&leases).expect("create");
        std::fs::write(leases.join("bad-eth0.json"), "{").expect("write");
        std::fs::write(leases.join("half-eth0.new"), "{").expect("write");
        let mut ipam = open(&folder, QUARANTINE);
        assert_eq!(address(&mut ipam, "a"), "10.9.0.2");
        assert!(leases.join("bad-eth0.unreadable").exists());
        assert!(!leases.join("half-eth0.new").exists());
    }
}
