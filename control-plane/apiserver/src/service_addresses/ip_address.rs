//! IPAddress objects (KEP-1880): who holds an address, written before the holder is.
//!
//! A server may die between the two writes, and users may delete what they should not. So what there should be is
//! compared with what there is at the start, from time to time, and when an IPAddress goes (upstream's repair loop).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, time};

use super::range::family_of;
use super::{Allocation, Item, items, owner_of};
use crate::cacher::{Cacher, Filter, From};
use crate::context::now;
use crate::server::ApiServer;

const GROUP: &str = "networking.k8s.io";
const PLURAL: &str = "ipaddresses";
const PATH: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const REPAIR: Duration = Duration::from_secs(300);
/// Seconds after which an address without its Service is no write that is still on its way.
const GRACE: i64 = 60;

fn object(address: IpAddr, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {MANAGED_BY.0: MANAGED_BY.1, FAMILY: family_of(address)},
        },
        "spec": {"parentRef": {
            "group": "", "resource": "services", "namespace": namespace, "name": name,
        }},
    })
}

/// The Service that an IPAddress names, as `namespace/name`.
fn holder(object: &Value) -> Option<String> {
    let parent = &object["spec"]["parentRef"];
    let text = |key: &str| parent[key].as_str().unwrap_or_default();
    (text("resource") == "services" && text("group").is_empty())
        .then(|| format!("{}/{}", text("namespace"), text("name")))
}

fn all(cacher: &Cacher) -> Result<Vec<Value>, ApiError> {
    let everything = Filter::new(&cacher.resource, None, None, None)?;
    let entries = cacher.entries(&everything);
    entries.iter().map(|entry| entry.decode()).collect()
}

impl ApiServer {
    /// Makes the objects and records of what a write has taken; answers with what somebody else has.
    pub(super) async fn claim(
        self: &Arc<Self>,
        allocation: &mut Allocation,
    ) -> Result<Option<Item>, ApiError> {
        for item in allocation.taken.clone() {
            let own = match item {
                Item::Address(address) => self.make(address, &allocation.owner).await?,
                Item::Port(port) => self.claim_port(port, &allocation.owner).await?,
            };
            if !own {
                return Ok(Some(item));
            }
            allocation.claimed = true;
        }
        Ok(None)
    }

    /// Whether the address has an object that names `owner`, from now on or from before.
    async fn make(self: &Arc<Self>, address: IpAddr, owner: &str) -> Result<bool, ApiError> {
        let (namespace, name) = owner.split_once('/').unwrap_or_default();
        let wanted = object(address, namespace, name);
        match self.call_self(Method::POST, PATH, Some(&wanted)).await {
            Ok(_) => Ok(true),
            // Left behind by a Service of this name whose end was cut short, or by a write of it.
            Err(error) if error.code == 409 => {
                let present = self.present(address).await?;
                Ok(present.is_some_and(|object| holder(&object).as_deref() == Some(owner)))
            }
            Err(error) => Err(error),
        }
    }

    async fn present(self: &Arc<Self>, address: IpAddr) -> Result<Option<Value>, ApiError> {
        let path = format!("{PATH}/{address}");
        match self.call_self(Method::GET, &path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Frees what a Service held, here and in the store.
    pub(super) async fn give_back(self: &Arc<Self>, owner: &str, items: &[Item]) {
        for item in items {
            match item {
                Item::Address(address) => {
                    if let Err(error) = self.remove(*address, owner).await {
                        // The repair will find it.
                        tracing::warn!(%error, %address, owner, "an IPAddress was left behind");
                    }
                }
                Item::Port(port) => self.free_port(*port, owner).await,
            }
        }
        self.addresses.release(items);
    }

    async fn remove(self: &Arc<Self>, address: IpAddr, owner: &str) -> Result<(), ApiError> {
        let present = self.present(address).await?;
        let own = present.filter(|object| holder(object).as_deref() == Some(owner));
        match own {
            Some(object) => self.remove_exactly(&object).await,
            None => Ok(()),
        }
    }

    async fn remove_exactly(self: &Arc<Self>, object: &Value) -> Result<(), ApiError> {
        let path = format!("{PATH}/{}", meta::name(object));
        let options = json!({"preconditions": {"uid": meta::uid(object)}});
        match self.call_self(Method::DELETE, &path, Some(&options)).await {
            Err(error) if !matches!(error.code, 404 | 409) => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps Services and IPAddresses in step until the server ends.
    pub(crate) fn repair_addresses(self: &Arc<Self>) {
        let server = self.clone();
        tokio::spawn(async move {
            let shutdown = server.shutdown.clone();
            let work = async {
                loop {
                    if let Err(error) = server.repair_and_follow().await {
                        tracing::warn!(%error, "the IPAddresses could not be repaired");
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                }
            };
            shutdown.run_until_cancelled(work).await;
        });
    }

    async fn repair_and_follow(self: &Arc<Self>) -> Result<(), ApiError> {
        let (Some(services), Some(addresses)) =
            (self.cacher("", "services"), self.cacher(GROUP, PLURAL))
        else {
            return Err(ApiError::internal("services are not served"));
        };
        let everything = Filter::new(&addresses.resource, None, None, None)?;
        let from = From::Now {
            with_initial: false,
        };
        let watch = self.caches.watch(&addresses, everything, from)?;
        let mut ticks = tokio::time::interval(REPAIR);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.repair(&services, &addresses).await?,
                events = watch.next() => {
                    for (event, _) in events?.iter().filter(|(event, _)| event.after.is_none()) {
                        self.restore(&event.entry().decode()?).await?;
                    }
                }
            }
        }
    }

    /// An IPAddress is gone: its Service may still hold the address.
    async fn restore(self: &Arc<Self>, gone: &Value) -> Result<(), ApiError> {
        let (Some(owner), Ok(address)) = (holder(gone), meta::name(gone).parse::<IpAddr>()) else {
            return Ok(());
        };
        if self.holds(&owner, Item::Address(address)).await? {
            tracing::warn!(%address, owner, "a Service's IPAddress was deleted, making it again");
            self.make(address, &owner).await?;
        }
        Ok(())
    }

    /// Whether the Service has it, as the store says.
    pub(super) async fn holds(self: &Arc<Self>, owner: &str, item: Item) -> Result<bool, ApiError> {
        let (namespace, name) = owner.split_once('/').unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
        match self.call_self(Method::GET, &path, None).await {
            Ok(service) => Ok(items(&service).contains(&item)),
            Err(error) if error.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn repair(
        self: &Arc<Self>,
        services: &Cacher,
        addresses: &Cacher,
    ) -> Result<(), ApiError> {
        self.caches.wait_current().await?;
        let mut wanted: HashMap<IpAddr, String> = HashMap::new();
        for service in all(services)? {
            let owner = owner_of(&service);
            for item in items(&service) {
                if let Item::Address(address) = item {
                    wanted.insert(address, owner.clone());
                }
            }
        }
        for object in all(addresses)? {
            let Ok(address) = meta::name(&object).parse::<IpAddr>() else {
                continue;
            };
            let owner = holder(&object);
            if owner.is_some() && wanted.get(&address) == owner.as_ref() {
                wanted.remove(&address);
                continue;
            }
            let ours = object["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1;
            let made = object["metadata"]["creationTimestamp"].as_str();
            let age = now() - made.and_then(time::parse_seconds).unwrap_or(0);
            let Some(owner) = owner.filter(|_| ours && age > GRACE) else {
                continue;
            };
            if !self.holds(&owner, Item::Address(address)).await? {
                tracing::warn!(%address, owner, "removing the IPAddress of a Service that does not hold it");
                self.remove_exactly(&object).await?;
            }
        }
        for (address, owner) in wanted {
            if self.holds(&owner, Item::Address(address)).await?
                && !self.make(address, &owner).await?
            {
                tracing::warn!(%address, owner, "a Service's address is another one's by its IPAddress");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_service() {
        let made = object("fd00::1".parse().unwrap(), "n", "s");
        assert_eq!(holder(&made).as_deref(), Some("n/s"));
        assert_eq!(made["metadata"]["labels"][FAMILY], "IPv6");
        let foreign = json!({"spec": {"parentRef": {"group": "x", "resource": "services"}}});
        assert_eq!(holder(&foreign), None);
    }
}
