//! Gives pods their interfaces: the verbs of CNI over addresses, links and the datapath.
//!
//! Order matters. An address is leased, in a file, before anything is made with it. The datapath's programs
//! are on the host end before the pod's end comes up, so that no packet of a pod passes unseen. Removing
//! goes the other way: programs, link, lease.

mod adoption;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, BoxFuture};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::adoption::is_adopted;
pub use self::adoption::{Adoption, RunningPod};
use crate::interface::{Bandwidth, LinkError, Namespace, PREFIX, PodLink, host_interface};
use crate::ipam::{AttachmentKey, Claim, Ipam, IpamError, Lease, PodName, PortMapping, QUARANTINE};

/// Container ids that begin so are the agent's own: the runtime does not know them.
pub const OWN: &str = "windlass-";
const TEND_INTERVAL: Duration = Duration::from_secs(60);

/// A pod's interface as the rest of the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    pub key: AttachmentKey,
    pub pod: PodName,
    /// Index of the host end.
    pub index: u32,
    pub link: PodLink,
    /// The pod's network namespace.
    pub netns: PathBuf,
    pub bandwidth: Bandwidth,
    pub ports: Vec<PortMapping>,
}

/// The datapath's part: programs on the host end of a pod's interface.
pub trait PodInterfaces: Send + Sync + 'static {
    /// Attaches to a host end; called again for the same one after a restart or a repeated ADD.
    fn attach<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>>;

    /// Returns when the pod's policies are in force. Asked once an interface was published; its
    /// pod's end comes up only then, so that no packet passes before.
    fn admit<'a>(&'a self, _interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(future::ready(Ok(())))
    }

    /// Forgets a host end, which is about to be removed or is gone already.
    fn detach(&self, index: u32, addresses: &[IpAddr]) -> BoxFuture<'_, anyhow::Result<()>>;
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("attaching the datapath to {interface} failed: {source:#}")]
    Datapath {
        interface: String,
        source: anyhow::Error,
    },
    /// The pod, or the policies for it, have not reached this node yet.
    #[error("{namespace}/{name} cannot be let into the network: {source:#}")]
    NotAdmitted {
        namespace: String,
        name: String,
        source: anyhow::Error,
    },
    #[error("the attachment of {container_id} is not as it was made: {difference}")]
    Differs {
        container_id: String,
        difference: String,
    },
    #[error("{container_id} has no interface {interface} here")]
    Unknown {
        container_id: String,
        interface: String,
    },
}

#[derive(Clone, Debug)]
pub struct AttachmentsConfig {
    /// Holds the leases.
    pub state_dir: PathBuf,
    /// Addresses of the node, at most one of each family: the host's source towards its pods.
    pub node_addresses: Vec<IpAddr>,
    /// Pods get the smallest MTU of these.
    pub uplinks: Vec<String>,
}

pub struct Attachments {
    config: AttachmentsConfig,
    host: Namespace,
    ipam: Mutex<Ipam>,
    datapath: Arc<dyn PodInterfaces>,
    /// One operation at a time for an attachment; different ones run side by side.
    locks: Mutex<HashMap<AttachmentKey, Arc<tokio::sync::Mutex<()>>>>,
    interfaces: watch::Sender<Arc<BTreeMap<AttachmentKey, PodInterface>>>,
}

impl Attachments {
    /// Reads the leases and adopts the interfaces that exist; leases whose interface is gone are released.
    /// `host` is the node's network namespace.
    pub async fn open(
        config: AttachmentsConfig,
        host: Namespace,
        datapath: Arc<dyn PodInterfaces>,
    ) -> anyhow::Result<Self> {
        let ipam = Ipam::open(config.state_dir.join("leases"), QUARANTINE)?;
        let attachments = Self {
            config,
            host,
            ipam: Mutex::new(ipam),
            datapath,
            locks: Mutex::default(),
            interfaces: watch::Sender::default(),
        };
        attachments.adopt().await?;
        Ok(attachments)
    }

    /// Sets where addresses come from; until then ADD is refused with "try again later".
    pub fn set_pod_cidrs(&self, cidrs: &[IpNet]) -> Result<(), IpamError> {
        self.ipam.lock().set_pod_cidrs(cidrs)
    }

    /// The interfaces of all local pods, and every change of them: an address is here before its pod's
    /// containers start.
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<AttachmentKey, PodInterface>>> {
        self.interfaces.subscribe()
    }

    pub async fn add(
        &self,
        key: AttachmentKey,
        netns: &Path,
        pod: PodName,
    ) -> Result<PodInterface, AttachError> {
        self.add_limited(key, netns, pod, Bandwidth::default(), Vec::new())
            .await
    }

    /// The same for a pod whose bandwidth is limited, or with ports on the node.
    pub async fn add_limited(
        &self,
        key: AttachmentKey,
        netns: &Path,
        pod: PodName,
        bandwidth: Bandwidth,
        ports: Vec<PortMapping>,
    ) -> Result<PodInterface, AttachError> {
        check_key(&key)?;
        let lock = self.lock(&key);
        let _held = lock.lock().await;
        let namespace = Namespace::open(netns).await?;
        let mtu = self.mtu().await?;
        let claim = Claim {
            key: key.clone(),
            netns: netns.to_owned(),
            pod,
            host_interface: host_interface(&key),
            bandwidth,
            ports,
        };
        let lease = self.ipam.lock().allocate(claim)?;
        let made = self.make(&lease, &namespace, mtu).await;
        if made.is_err() {
            // Nothing of it stays: the runtime tears the sandbox down, and may not even call DEL.
            if let Err(error) = self.unmake(&key).await {
                tracing::warn!(%error, container = key.container_id, "cleaning up after a failed attachment");
            }
        }
        made
    }

    /// Makes the interface of a lease, or finds it made.
    async fn make(
        &self,
        lease: &Lease,
        namespace: &Namespace,
        mtu: u32,
    ) -> Result<PodInterface, AttachError> {
        let link = PodLink::new(&lease.key, lease.addresses.clone(), mtu);
        let interface = |index, link| PodInterface {
            key: lease.key.clone(),
            pod: lease.pod.clone(),
            index,
            link,
            netns: lease.netns.clone(),
            bandwidth: lease.bandwidth,
            ports: lease.ports.clone(),
        };
        if let Ok(index) = link.verify(&self.host, namespace).await? {
            let interface = interface(index, link);
            self.attach_datapath(&interface).await?;
            self.publish(interface.clone());
            self.admit(&interface).await?;
            return Ok(interface);
        }
        if let Some(half_made) = self.host.link(&link.host_name).await? {
            self.host.remove(half_made.index).await?;
        }
        let index = link
            .create(&self.host, namespace, &self.config.node_addresses)
            .await?;
        if let Some(limit) = lease.bandwidth.ingress() {
            self.host.limit(index, limit).await?;
        }
        let interface = interface(index, link);
        self.attach_datapath(&interface).await?;
        self.publish(interface.clone());
        self.admit(&interface).await?;
        if let Some(limit) = lease.bandwidth.egress()
            && let Some(pod_end) = namespace.link(&interface.link.pod_name).await?
        {
            namespace.limit(pod_end.index, limit).await?;
        }
        interface.link.bring_up(namespace).await?;
        tracing::debug!(
            namespace = lease.pod.namespace,
            name = lease.pod.name,
            container = lease.key.container_id,
            interface = interface.link.host_name,
            addresses = ?lease.addresses,
            "pod interface made"
        );
        Ok(interface)
    }

    /// Removes an interface; one that is not there is removed.
    pub async fn del(&self, key: &AttachmentKey) -> Result<(), AttachError> {
        check_key(key)?;
        let lock = self.lock(key);
        let held = lock.lock().await;
        let result = self.unmake(key).await;
        drop(held);
        self.forget_lock(key, &lock);
        result
    }

    async fn unmake(&self, key: &AttachmentKey) -> Result<(), AttachError> {
        let lease = self.ipam.lock().get(key).cloned();
        let name = match &lease {
            Some(lease) => lease.host_interface.clone(),
            None => host_interface(key),
        };
        let addresses = lease.map(|lease| lease.addresses);
        let published = self
            .interfaces
            .borrow()
            .get(key)
            .map(|interface| interface.index);
        let link = self.host.link(&name).await?;
        if let Some(index) = link.as_ref().map(|link| link.index).or(published) {
            let addresses = addresses.unwrap_or_default();
            self.datapath
                .detach(index, &addresses)
                .await
                .map_err(|source| AttachError::Datapath {
                    interface: name.clone(),
                    source,
                })?;
        }
        // What another plugin has made goes with the pod's namespace.
        if let Some(link) = link.filter(|_| !is_adopted(key)) {
            self.host.remove(link.index).await?;
        }
        self.withdraw(key);
        self.ipam.lock().release(key)?;
        Ok(())
    }

    /// Compares an attachment with what ADD made and answered.
    pub async fn check(
        &self,
        key: &AttachmentKey,
        netns: &Path,
        answered: &[IpAddr],
    ) -> Result<(), AttachError> {
        check_key(key)?;
        let lease = self
            .ipam
            .lock()
            .get(key)
            .cloned()
            .ok_or_else(|| AttachError::Unknown {
                container_id: key.container_id.clone(),
                interface: key.interface.clone(),
            })?;
        let differs = |difference| AttachError::Differs {
            container_id: key.container_id.clone(),
            difference,
        };
        if let Some(address) = answered
            .iter()
            .find(|address| !lease.addresses.contains(address))
        {
            return Err(differs(format!("{address} is not leased to it")));
        }
        let namespace = Namespace::open(netns).await?;
        let link = PodLink::new(key, lease.addresses, 0);
        link.verify(&self.host, &namespace)
            .await?
            .map(drop)
            .map_err(differs)
    }

    /// Whether ADD can succeed.
    pub fn status(&self) -> Result<(), IpamError> {
        if self.ipam.lock().pod_cidrs().next().is_none() {
            return Err(IpamError::NoPodCidr);
        }
        Ok(())
    }

    /// Removes every attachment that is not in `valid`, nor the agent's own; returns how many.
    pub async fn gc(&self, valid: &[AttachmentKey]) -> Result<u32, AttachError> {
        let stale: Vec<AttachmentKey> = {
            let ipam = self.ipam.lock();
            let active = ipam.active().map(|lease| &lease.key);
            let unknown_to_runtime =
                |key: &AttachmentKey| key.container_id.starts_with(OWN) || is_adopted(key);
            let stale = active.filter(|key| !valid.contains(key) && !unknown_to_runtime(key));
            stale.cloned().collect()
        };
        let mut removed = 0;
        for key in stale {
            self.del(&key).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Releases leases whose interface has gone: with its namespace, which the runtime may remove without
    /// a DEL when it was killed in between. Returns how many.
    pub async fn release_lost(&self) -> Result<u32, AttachError> {
        let mut lost = 0;
        let leases: Vec<Lease> = self.ipam.lock().active().cloned().collect();
        for lease in leases {
            let lock = self.lock(&lease.key);
            // An ADD or DEL is at work on it.
            let Ok(held) = lock.try_lock() else { continue };
            if self.host.link(&lease.host_interface).await?.is_none() {
                self.unmake(&lease.key).await?;
                drop(held);
                self.forget_lock(&lease.key, &lock);
                tracing::info!(
                    container = lease.key.container_id,
                    addresses = ?lease.addresses,
                    "released the addresses of an interface that is gone"
                );
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// Looks for lost interfaces from time to time, as long as it is polled.
    pub async fn tend(&self) {
        let mut timer = tokio::time::interval(TEND_INTERVAL);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            if let Err(error) = self.release_lost().await {
                tracing::warn!(%error, "looking for lost pod interfaces failed, trying again later");
            }
        }
    }

    async fn adopt(&self) -> anyhow::Result<()> {
        self.release_lost().await?;
        let mtu = self.mtu().await?;
        let leases: Vec<Lease> = self.ipam.lock().active().cloned().collect();
        for lease in leases {
            let Some(link) = self.host.link(&lease.host_interface).await? else {
                continue;
            };
            if is_adopted(&lease.key) {
                match self.adopted_interface(&lease, &link).await {
                    Ok(Some(interface)) => {
                        self.attach_datapath(&interface).await?;
                        self.publish(interface);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let interface = &link.name;
                        tracing::warn!(%error, interface, "an adopted pod is not found again");
                    }
                }
                continue;
            }
            let interface = PodInterface {
                key: lease.key.clone(),
                pod: lease.pod.clone(),
                index: link.index,
                link: PodLink::new(&lease.key, lease.addresses.clone(), mtu),
                netns: lease.netns.clone(),
                bandwidth: lease.bandwidth,
                ports: lease.ports.clone(),
            };
            if link.mtu != mtu
                && let Err(error) = self.fit(&interface).await
            {
                tracing::warn!(%error, interface = interface.link.host_name, "a pod keeps its old MTU");
            }
            self.attach_datapath(&interface).await?;
            self.publish(interface);
        }
        self.reserve_unknown().await
    }

    /// Gives both ends the MTU of today: the way to other nodes has become another.
    async fn fit(&self, interface: &PodInterface) -> Result<(), LinkError> {
        let mtu = interface.link.mtu;
        self.host.set_mtu(interface.index, mtu).await?;
        let pod = Namespace::open(&interface.netns).await?;
        match pod.link(&interface.link.pod_name).await? {
            Some(end) => pod.set_mtu(end.index, mtu).await,
            None => Ok(()),
        }
    }

    /// A pod's interface without a lease, as after the loss of the state folder: nothing tells whose it is,
    /// and a pod may live behind it. It is left alone, and its addresses are not given to others.
    async fn reserve_unknown(&self) -> anyhow::Result<()> {
        let known: Vec<u32> = self
            .interfaces
            .borrow()
            .values()
            .map(|known| known.index)
            .collect();
        let links = self.host.links().await?.into_iter();
        let mut unknown = links
            .filter(|link| is_pod_interface(&link.name) && !known.contains(&link.index))
            .peekable();
        if unknown.peek().is_none() {
            return Ok(());
        }
        let routes = self.host.host_routes().await?;
        for link in unknown {
            let routed = routes.iter().filter(|(index, _)| *index == link.index);
            let addresses: Vec<IpAddr> = routed.map(|(_, address)| *address).collect();
            tracing::warn!(
                interface = link.name,
                ?addresses,
                "a pod interface has no lease"
            );
            self.ipam.lock().reserve(&link.name, &addresses);
        }
        Ok(())
    }

    async fn attach_datapath(&self, interface: &PodInterface) -> Result<(), AttachError> {
        self.datapath
            .attach(interface)
            .await
            .map_err(|source| AttachError::Datapath {
                interface: interface.link.host_name.clone(),
                source,
            })
    }

    async fn admit(&self, interface: &PodInterface) -> Result<(), AttachError> {
        let admitted = self.datapath.admit(interface).await;
        admitted.map_err(|source| AttachError::NotAdmitted {
            namespace: interface.pod.namespace.clone(),
            name: interface.pod.name.clone(),
            source,
        })
    }

    async fn mtu(&self) -> Result<u32, LinkError> {
        let mut smallest = None;
        for uplink in &self.config.uplinks {
            if let Some(link) = self.host.link(uplink).await? {
                smallest = Some(smallest.map_or(link.mtu, |mtu: u32| mtu.min(link.mtu)));
            }
        }
        Ok(smallest.unwrap_or(1_500))
    }

    fn publish(&self, interface: PodInterface) {
        self.interfaces.send_if_modified(|interfaces| {
            if interfaces.get(&interface.key) == Some(&interface) {
                return false;
            }
            Arc::make_mut(interfaces).insert(interface.key.clone(), interface);
            true
        });
    }

    fn withdraw(&self, key: &AttachmentKey) {
        self.interfaces.send_if_modified(|interfaces| {
            interfaces.contains_key(key) && Arc::make_mut(interfaces).remove(key).is_some()
        });
    }

    fn forget_lock(&self, key: &AttachmentKey, lock: &Arc<tokio::sync::Mutex<()>>) {
        let mut locks = self.locks.lock();
        // The caller's and the map's: nobody waits for it.
        if Arc::strong_count(lock) == 2 {
            locks.remove(key);
        }
    }

    fn lock(&self, key: &AttachmentKey) -> Arc<tokio::sync::Mutex<()>> {
        self.locks.lock().entry(key.clone()).or_default().clone()
    }
}

/// `wl` and eleven hexadecimal digits; `wlan0` is not ours.
fn is_pod_interface(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// CNI's own rule for container ids; the interface is a name that the kernel would take.
fn check_key(key: &AttachmentKey) -> Result<(), AttachError> {
    let id = &key.container_id;
    let starts_well = id.starts_with(|first: char| first.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !starts_well || id.len() > 200 || !id.chars().all(plain) {
        return Err(AttachError::Invalid(format!(
            "{id:?} is not a container id"
        )));
    }
    let name = &key.interface;
    let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(refused) {
        return Err(AttachError::Invalid(format!(
            "{name:?} is not an interface name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str, interface: &str) -> AttachmentKey {
        AttachmentKey {
            container_id: container_id.into(),
            interface: interface.into(),
        }
    }

    #[test]
    fn only_what_cni_allows_is_a_key() {
        assert!(check_key(&key("0a1b2c", "eth0")).is_ok());
        for (id, name) in [
            ("", "eth0"),
            ("../x", "eth0"),
            ("a/b", "eth0"),
            ("-a", "eth0"),
            ("a", ""),
            ("a", "a/b"),
            ("a", "sixteen-letters-"),
            ("a", ".."),
        ] {
            assert!(check_key(&key(id, name)).is_err(), "{id:?} {name:?}");
        }
    }

    #[test]
    fn other_peoples_interfaces_are_not_taken_for_pods() {
        assert!(is_pod_interface(&host_interface(&key("a", "eth0"))));
        for name in [
            "wlan0",
            "wlout0",
            "wlp0s20f3",
            "wl",
            "eth0",
            "wl0123456789z",
        ] {
            assert!(!is_pod_interface(name), "{name}");
        }
    }
}
