//! The networks that Services' addresses come from, as the cluster's ServiceCIDRs say (KEP-1880): what leaves a node for an
//! address of theirs, leaves for nobody.

use std::{collections::BTreeSet, future};

use futures::{Stream, StreamExt as _};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _, reflector,
        watcher::{self, Event},
    },
};
use windlass_patience::{Patience, is_not_served};

/// All of them, again after every change. A cluster before 1.33 does not say: none.
pub(super) fn watch(client: Client) -> impl Stream<Item = BTreeSet<IpNet>> + Send {
    let (store, writer) = reflector::store();
    let cidrs: Api<ServiceCIDR> = Api::all(client);
    watcher::watcher(cidrs, watcher::Config::default())
        .backoff(Patience::default())
        .reflect(writer)
        .filter_map(move |event| {
            let told = match event {
                // What the store holds is complete.
                Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone) => Some(
                    store
                        .state()
                        .iter()
                        .flat_map(|cidr| networks(cidr))
                        .collect(),
                ),
                Ok(Event::Init | Event::InitApply(_)) => None,
                Err(error) if is_not_served(&error) => Some(BTreeSet::new()),
                Err(error) => {
                    tracing::warn!(%error, "watching service CIDRs failed; trying again");
                    None
                }
            };
            future::ready(told)
        })
}

fn networks(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let texts = cidr
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}
