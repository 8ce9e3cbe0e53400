//! Addresses for Services of type LoadBalancer where there is no cloud: from the pools that the flag
//! `--load-balancer-pool` names. Node agents answer for them; this gives them out and takes them back.
//!
//! The Services themselves are the record of what is taken; one worker decides, and what it has just
//! written counts as taken before the view shows it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus,
};
use kube::ResourceExt;
use parking_lot::Mutex;
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use crate::runtime::{Context, Controller, Outcome, Queue, Result, patch_status, run_workers};

/// A Service may ask for certain addresses of the pools, one for each family.
const WANTED: &str = "windlass.dev/load-balancer-ips";
/// The loadBalancerClass that is ours; none at all is as well.
const CLASS: &str = "windlass.dev/pool";

struct LoadBalancers {
    context: Context,
    services: Arc<Informer<Service>>,
    recorder: Recorder,
    /// By Service, what it was given since the view last showed it.
    given: Mutex<BTreeMap<String, Vec<IpAddr>>>,
}

pub(crate) async fn start(context: Context) {
    if context.config.load_balancer_pools.is_empty() {
        return;
    }
    let queue = Queue::new();
    let (services,) = context.synced::<(Service,)>().await;
    let (own, view) = (Arc::clone(&queue), Arc::clone(&services));
    let _own = services.on_change(move |change| {
        let service = change.object();
        own.add(Key::of(service.as_ref()));
        let freed = change
            .previous()
            .is_some_and(|old| !assigned(old).is_empty())
            && (matches!(change, windlass_informers::Change::Deleted(_))
                || assigned(service).is_empty());
        if freed {
            for waiting in view.list() {
                if is_ours(&waiting) && assigned(&waiting).is_empty() {
                    own.add(Key::of(waiting.as_ref()));
                }
            }
        }
    });
    let controller = Arc::new(LoadBalancers {
        recorder: context.recorder.named("service-lb-controller"),
        context: context.clone(),
        services,
        given: Mutex::default(),
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn is_ours(service: &Service) -> bool {
    service.metadata.deletion_timestamp.is_none()
        && service.spec.as_ref().is_some_and(|spec| {
            spec.type_.as_deref() == Some("LoadBalancer")
                && spec
                    .load_balancer_class
                    .as_deref()
                    .is_none_or(|class| class == CLASS)
        })
}

/// The addresses that a Service has by its status.
fn assigned(service: &Service) -> Vec<IpAddr> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

/// The families that a Service wants addresses of; `true` for IPv6.
fn families(spec: &ServiceSpec) -> Vec<bool> {
    let named: Vec<bool> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|family| family == "IPv6")
        .collect();
    if named.is_empty() { vec![false] } else { named }
}

/// The addresses that a Service asks for by name.
fn asked_for(service: &Service) -> Vec<IpAddr> {
    let field = || service.spec.as_ref()?.load_balancer_ip.as_ref();
    let text = service.annotations().get(WANTED).or_else(field);
    text.into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|ip| ip.trim().parse().ok())
        .collect()
}

/// The usable addresses of a pool, lazily: a pool of IPv6 may be large. In an IPv4 network its own and the
/// broadcast address are left out, in a pool of one or two addresses all are usable.
fn hosts(pool: &IpNet) -> impl Iterator<Item = IpAddr> {
    let (first, last) = match pool {
        IpNet::V4(net) => {
            let edge = u128::from(net.prefix_len() < 31);
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            (u128::from(first) + edge, u128::from(last) - edge)
        }
        IpNet::V6(net) => (
            u128::from(net.network()) + u128::from(net.prefix_len() < 127),
            u128::from(net.broadcast()),
        ),
    };
    let v6 = matches!(pool, IpNet::V6(_));
    (first..=last).map(move |number| {
        if v6 {
            IpAddr::V6(Ipv6Addr::from(number))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or_default()))
        }
    })
}

/// One address for each family, those that it has first.
fn choose(
    service: &Service,
    pools: &[IpNet],
    is_taken: impl Fn(&IpAddr) -> bool,
) -> std::result::Result<Vec<IpAddr>, String> {
    let spec = service.spec.clone().unwrap_or_default();
    let (has, wants) = (assigned(service), asked_for(service));
    let mut chosen = Vec::new();
    for v6 in families(&spec) {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        let in_pool = |ip: &IpAddr| pools.iter().any(|pool| pool.contains(ip));
        if let Some(wanted) = wants.iter().find(of_family) {
            if !in_pool(wanted) {
                return Err(format!("{wanted} is in none of the pools"));
            }
            if is_taken(wanted) {
                return Err(format!("{wanted} belongs to another Service"));
            }
            chosen.push(*wanted);
            continue;
        }
        let kept = has
            .iter()
            .find(|ip| ip.is_ipv6() == v6 && in_pool(ip) && !is_taken(ip));
        let free = || {
            pools
                .iter()
                .flat_map(hosts)
                .find(|ip| ip.is_ipv6() == v6 && !is_taken(ip))
        };
        match kept.copied().or_else(free) {
            Some(ip) => chosen.push(ip),
            None => {
                let family = if v6 { "IPv6" } else { "IPv4" };
                return Err(format!("no {family} address is left in the pools"));
            }
        }
    }
    Ok(chosen)
}

impl Controller for LoadBalancers {
    type Key = Key;
    const NAME: &'static str = "service-lb";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let name = key.to_string();
        let Some(service) = self.services.by_key(key) else {
            self.given.lock().remove(&name);
            return Ok(Outcome::Done);
        };
        let pools = &self.context.config.load_balancer_pools;
        let has = assigned(&service);
        // What somebody else gave it is not ours to change.
        let foreign = has
            .iter()
            .any(|ip| !pools.iter().any(|pool| pool.contains(ip)));
        if foreign {
            return Ok(Outcome::Done);
        }
        if !is_ours(&service) {
            self.given.lock().remove(&name);
            let no_balancer = service
                .spec
                .as_ref()
                .is_some_and(|spec| spec.type_.as_deref() != Some("LoadBalancer"));
            if no_balancer && !has.is_empty() {
                self.write(&service, &[]).await?;
            }
            return Ok(Outcome::Done);
        }
        let taken: Vec<IpAddr> = {
            let given = self.given.lock();
            let by_view = self
                .services
                .list()
                .into_iter()
                .filter(|other| Key::of(other.as_ref()) != *key)
                .flat_map(|other| assigned(&other));
            let just_now = given
                .iter()
                .filter(|(other, _)| **other != name)
                .flat_map(|(_, ips)| ips.clone());
            by_view.chain(just_now).collect()
        };
        match choose(&service, pools, |ip| taken.contains(ip)) {
            Ok(chosen) if chosen == has => {
                self.given.lock().remove(&name);
            }
            Ok(chosen) => {
                self.given.lock().insert(name, chosen.clone());
                self.write(&service, &chosen).await?;
                let list: Vec<_> = chosen.iter().map(ToString::to_string).collect();
                let message = format!("Assigned {}", list.join(", "));
                self.recorder
                    .record(service.as_ref(), EventType::Normal, "IPAllocated", message);
            }
            Err(why) => {
                self.recorder.record(
                    service.as_ref(),
                    EventType::Warning,
                    "AllocationFailed",
                    why,
                );
            }
        }
        Ok(Outcome::Done)
    }
}

impl LoadBalancers {
    async fn write(&self, service: &Service, addresses: &[IpAddr]) -> Result<()> {
        let ingress: Vec<_> = addresses
            .iter()
            .map(|ip| LoadBalancerIngress {
                ip: Some(ip.to_string()),
                ip_mode: Some("VIP".to_owned()),
                ..Default::default()
            })
            .collect();
        let updated = Service {
            status: Some(ServiceStatus {
                load_balancer: Some(LoadBalancerStatus {
                    ingress: (!ingress.is_empty()).then_some(ingress),
                }),
                ..service.status.clone().unwrap_or_default()
            }),
            ..service.clone()
        };
        let api = self.context.api(&service.namespace().unwrap_or_default());
        patch_status(&api, service, &updated).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value, ingress: &[&str]) -> Service {
        let ingress: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}}}),
        )
        .unwrap()
    }

    fn chosen(service: &Service, taken: &[&str]) -> std::result::Result<Vec<String>, String> {
        let pools = [
            "192.0.2.8/30".parse().unwrap(),
            "2001:db8::/120".parse().unwrap(),
        ];
        let taken: Vec<IpAddr> = taken.iter().map(|ip| ip.parse().unwrap()).collect();
        choose(service, &pools, |ip| taken.contains(ip))
            .map(|ips| ips.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_family_gets_the_first_free_address_and_keeps_it() {
        let plain = service(json!({}), &[]);
        assert_eq!(chosen(&plain, &[]).unwrap(), ["192.0.2.9"]);
        assert_eq!(chosen(&plain, &["192.0.2.9"]).unwrap(), ["192.0.2.10"]);
        let dual = json!({"ipFamilies": ["IPv6", "IPv4"]});
        assert_eq!(
            chosen(&service(dual, &["192.0.2.10"]), &[]).unwrap(),
            ["2001:db8::1", "192.0.2.10"]
        );
        assert_eq!(
            chosen(&plain, &["192.0.2.9", "192.0.2.10"]).unwrap_err(),
            "no IPv4 address is left in the pools"
        );
    }

    #[test]
    fn an_address_that_was_asked_for_must_be_there_to_give() {
        let asking = |ip: &str| service(json!({"loadBalancerIP": ip}), &["192.0.2.9"]);
        assert_eq!(chosen(&asking("192.0.2.10"), &[]).unwrap(), ["192.0.2.10"]);
        assert!(chosen(&asking("192.0.2.10"), &["192.0.2.10"]).is_err());
        assert!(chosen(&asking("198.51.100.1"), &[]).is_err());
    }

    #[test]
    fn small_pools_have_no_edges() {
        let count = |pool: &str| hosts(&pool.parse().unwrap()).take(1000).count();
        let counts = [
            "192.0.2.7/32",
            "192.0.2.6/31",
            "192.0.2.4/30",
            "2001:db8::1/128",
            "2001:db8::/64",
        ];
        assert_eq!(counts.map(count), [1, 2, 2, 1, 1000]);
    }
}
