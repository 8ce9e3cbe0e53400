//! The datapath's part in making a pod's interface: its programs on the host end.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt as _};
use windlass_datapath::Datapath;

use crate::{
    attachments::{PodInterface, PodInterfaces},
    policy::PolicyGate,
};

/// How long a pod waits for its policies: the runtime gives up and tries again after it.
const ADMISSION: Duration = Duration::from_secs(20);

/// [`PodInterfaces`] by the real datapath. System calls of a millisecond or so, done on the
/// threads that are meant to block.
pub struct DatapathInterfaces(pub Arc<Datapath>);

impl PodInterfaces for DatapathInterfaces {
    fn attach<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        let datapath = self.0.clone();
        let pod = windlass_datapath::PodInterface {
            name: interface.link.host_name.clone(),
            addresses: interface.link.addresses.clone(),
            mac: interface.link.pod_mac.0,
            netns: Some(interface.netns.clone()),
            limited: interface.bandwidth.ingress().is_some(),
        };
        blocking(move || datapath.attach_pod(&pod))
    }

    fn detach(&self, index: u32, addresses: &[IpAddr]) -> BoxFuture<'_, anyhow::Result<()>> {
        let (datapath, addresses) = (self.0.clone(), addresses.to_vec());
        blocking(move || datapath.detach_pod(index, &addresses))
    }
}

/// The same, with pods that come up only under their policies.
pub struct GuardedInterfaces {
    pub datapath: DatapathInterfaces,
    pub gate: PolicyGate,
}

impl PodInterfaces for GuardedInterfaces {
    fn attach<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        self.datapath.attach(interface)
    }

    fn admit<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        async {
            let admitted = self.gate.admit(interface, ADMISSION).await;
            anyhow::ensure!(
                admitted,
                "its policies are not known here within {ADMISSION:?}"
            );
            Ok(())
        }
        .boxed()
    }

    fn detach(&self, index: u32, addresses: &[IpAddr]) -> BoxFuture<'_, anyhow::Result<()>> {
        self.datapath.detach(index, addresses)
    }
}

fn blocking(
    work: impl FnOnce() -> windlass_datapath::Result<()> + Send + 'static,
) -> BoxFuture<'static, anyhow::Result<()>> {
    async { Ok(tokio::task::spawn_blocking(work).await??) }.boxed()
}
