//! ServiceCIDRs (KEP-1880): each says whether it can be used, and one that is deleted stays while Services
//! have addresses only from it.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::ResourceExt;
use windlass_informers::{Informer, Key};

use crate::runtime::{
    Context, Controller, Outcome, Queue, Result, patch, patch_status, run_workers,
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

struct ServiceCidrs {
    context: Context,
    ranges: Arc<Informer<ServiceCIDR>>,
    services: Arc<Informer<Service>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (ranges, services) = context.synced::<(ServiceCIDR, Service)>().await;
    let (own, view) = (Arc::clone(&queue), Arc::clone(&ranges));
    let _own = ranges.on_change(move |_| enqueue_all(&own, &view));
    let (of_services, view) = (Arc::clone(&queue), Arc::clone(&ranges));
    let _of_services = services.on_change(move |change| {
        // Only a Service that goes can set a range free.
        if matches!(change, windlass_informers::Change::Deleted(_)) {
            enqueue_all(&of_services, &view);
        }
    });
    let controller = Arc::new(ServiceCidrs {
        context: context.clone(),
        ranges,
        services,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn enqueue_all(queue: &Queue<Key>, view: &Informer<ServiceCIDR>) {
    for range in view.list() {
        queue.add(Key::of(range.as_ref()));
    }
}

fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs
        .into_iter()
        .flatten()
        .filter_map(|cidr| cidr.parse().ok())
        .collect()
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let ips = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ips.as_ref());
    ips.into_iter().flatten().filter_map(|ip| ip.parse().ok())
}

impl Controller for ServiceCidrs {
    type Key = Key;
    const NAME: &'static str = "servicecidr";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(range) = self.ranges.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let leaving = range.metadata.deletion_timestamp.is_some();
        let needed = leaving && self.is_needed(&range);
        let ours = range.finalizers().iter().any(|name| name == FINALIZER);
        if ours != (needed || !leaving) {
            let mut updated = range.as_ref().clone();
            if ours {
                updated.finalizers_mut().retain(|name| name != FINALIZER);
            } else {
                updated.finalizers_mut().push(FINALIZER.to_owned());
            }
            // The condition follows when the view shows the finalizer.
            patch(&self.context.cluster_api(), range.as_ref(), &updated).await?;
            return Ok(Outcome::Done);
        }
        if leaving {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them \
                 or create a new ServiceCIDR";
            self.set_ready(&range, "False", "Terminating", message)
                .await?;
        } else {
            self.set_ready(&range, "True", "", "Kubernetes Service CIDR is ready")
                .await?;
        }
        Ok(Outcome::Done)
    }
}

impl ServiceCidrs {
    /// Whether some Service has an address that no other range covers.
    fn is_needed(&self, range: &ServiceCIDR) -> bool {
        let mine = networks(range);
        let others: Vec<IpNet> = self
            .ranges
            .list()
            .iter()
            .filter(|other| {
                other.metadata.name != range.metadata.name
                    && other.metadata.deletion_timestamp.is_none()
            })
            .flat_map(|other| networks(other))
            .collect();
        let covers = |all: &[IpNet], ip: &IpAddr| all.iter().any(|network| network.contains(ip));
        self.services
            .list()
            .iter()
            .any(|service| addresses(service).any(|ip| covers(&mine, &ip) && !covers(&others, &ip)))
    }

    async fn set_ready(
        &self,
        range: &ServiceCIDR,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let mut updated = range.clone();
        let conditions = updated
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        let known = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        if known.is_some_and(|known| known.status == status) {
            return Ok(());
        }
        conditions.retain(|condition| condition.type_ != "Ready");
        conditions.push(Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(Timestamp::now()),
            observed_generation: None,
        });
        patch_status(&self.context.cluster_api(), range, &updated)
            .await
            .map(drop)
    }
}
