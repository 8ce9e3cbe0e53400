//! Pods that run when Windlass comes to a node: another CNI plugin has given them their interfaces, and they go on.
//!
//! A pair of veth is all that the datapath needs, whoever made it and whether its host end is a bridge's port or routed
//! by itself: such a pod's addresses are leased as they are, and the programs attached, so that Services and policy
//! hold for it as for any other. What is no such pair (macvlan, ipvlan, a device of the host's) stays with its plugin
//! until the pod is started again; its addresses are kept from other pods.
//!
//! No DEL will come for these: the runtime asks the plugin that is configured then, which is ours, about an interface
//! that it has not made. They end with their interface, which goes with the pod's namespace.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Attachments, PodInterface};
use crate::interface::{Bandwidth, Link, LinkError, Namespace, PodLink};
use crate::ipam::{AttachmentKey, Claim, Lease, PodName};

/// Container ids that begin so are made up here: the runtime's own is not known.
const ADOPTED: &str = "adopted-";

/// A running pod with a network of its own, as the API tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPod {
    pub name: PodName,
    pub addresses: Vec<IpAddr>,
}

/// What became of a pod that was nobody's here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Services and policy hold for it.
    Adopted,
    /// No namespace has its address: it has just ended, or its runtime keeps namespaces elsewhere.
    NotFound,
    /// Why it cannot be, so that somebody has to start it again.
    Impossible(String),
}

/// A pod's end of an interface.
struct PodEnd {
    netns: PathBuf,
    link: Link,
}

impl Attachments {
    /// Takes over those of these pods that are nobody's here, and returns them. `sandboxes`: where the container runtime
    /// mounts network namespaces.
    pub async fn adopt_running(
        &self,
        sandboxes: &Path,
        pods: &[RunningPod],
    ) -> Vec<(PodName, Adoption)> {
        let unknown: Vec<&RunningPod> = {
            let ipam = self.ipam.lock();
            let held = |pod: &RunningPod| pod.addresses.iter().any(|it| ipam.is_taken(*it));
            pods.iter()
                .filter(|pod| !pod.addresses.is_empty() && !held(pod))
                .collect()
        };
        if unknown.is_empty() {
            return Vec::new();
        }
        let ends = pod_ends(sandboxes).await;
        let mut told = Vec::new();
        for pod in unknown {
            let adoption = match pod.addresses.iter().find_map(|it| ends.get(it)) {
                Some(end) => match self.adopt_one(pod, end).await {
                    Ok(()) => Adoption::Adopted,
                    Err(reason) => Adoption::Impossible(reason),
                },
                None => Adoption::NotFound,
            };
            if adoption != Adoption::Adopted {
                let holder = format!("{}/{}", pod.name.namespace, pod.name.name);
                self.ipam.lock().reserve(&holder, &pod.addresses);
            }
            told.push((pod.name.clone(), adoption));
        }
        told
    }

    async fn adopt_one(&self, pod: &RunningPod, end: &PodEnd) -> Result<(), String> {
        let host_end = self.other_end(&end.link).await?;
        let claim = Claim {
            key: AttachmentKey {
                container_id: format!("{ADOPTED}{}", pod.name.uid),
                interface: end.link.name.clone(),
            },
            netns: end.netns.clone(),
            pod: pod.name.clone(),
            host_interface: host_end.name.clone(),
            bandwidth: Bandwidth::default(),
            ports: Vec::new(),
        };
        let lease = self.ipam.lock().adopt(claim, pod.addresses.clone());
        let lease = lease.map_err(|error| error.to_string())?;
        let interface = interface(&lease, &host_end, &end.link);
        let attached = self.attach_datapath(&interface).await;
        attached.map_err(|error| format!("{error:#}"))?;
        self.publish(interface);
        Ok(())
    }

    /// The node's end of a pair.
    async fn other_end(&self, pod_end: &Link) -> Result<Link, String> {
        let links = self.host.links().await.map_err(|error| error.to_string())?;
        let mut links = links.into_iter();
        links
            // Each names the other: a macvlan names its parent, which does not name it.
            .find(|link| pod_end.peer == Some(link.index) && link.peer == Some(pod_end.index))
            .ok_or_else(|| {
                let name = &pod_end.name;
                format!("its {name} is no pair of veth whose other end is the node's")
            })
    }

    /// As it is, for a lease that says so; nothing where it was not adopted.
    pub(super) async fn adopted_interface(
        &self,
        lease: &Lease,
        host_end: &Link,
    ) -> Result<Option<PodInterface>, LinkError> {
        if !is_adopted(&lease.key) {
            return Ok(None);
        }
        let pod = Namespace::open(&lease.netns).await?;
        let end = pod.link(&lease.key.interface).await?;
        Ok(end.map(|end| interface(lease, host_end, &end)))
    }
}

pub(super) fn is_adopted(key: &AttachmentKey) -> bool {
    key.container_id.starts_with(ADOPTED)
}

fn interface(lease: &Lease, host_end: &Link, pod_end: &Link) -> PodInterface {
    // Both were read from the kernel, where a veth always has one.
    let mac = |link: &Link| link.mac.unwrap_or_default();
    PodInterface {
        key: lease.key.clone(),
        pod: lease.pod.clone(),
        index: host_end.index,
        link: PodLink {
            host_name: host_end.name.clone(),
            pod_name: pod_end.name.clone(),
            addresses: lease.addresses.clone(),
            host_mac: mac(host_end),
            pod_mac: mac(pod_end),
            mtu: pod_end.mtu,
        },
        netns: lease.netns.clone(),
        bandwidth: lease.bandwidth,
        ports: lease.ports.clone(),
    }
}

/// Every interface of every sandbox, by its addresses. What cannot be read is no running pod's.
async fn pod_ends(sandboxes: &Path) -> HashMap<IpAddr, PodEnd> {
    let mut ends = HashMap::new();
    let entries = fs::read_dir(sandboxes).into_iter().flatten().flatten();
    for entry in entries {
        let netns = entry.path();
        let read = async {
            let namespace = Namespace::open(&netns).await?;
            for link in namespace.links().await? {
                for address in namespace.addresses(link.index).await? {
                    let (netns, link) = (netns.clone(), link.clone());
                    ends.insert(address, PodEnd { netns, link });
                }
            }
            Ok::<_, LinkError>(())
        };
        if let Err(error) = read.await {
            tracing::debug!(%error, netns = %netns.display(), "a network namespace is passed over");
        }
    }
    ends
}
