//! The Services of a measurement: many that nobody asks, and one that is asked.
//!
//! Pure data, the same for every way: each writes it down in its own terms.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

pub const PORT: u16 = 80;
pub const TARGET_PORT: u16 = 8080;
pub const CLUSTER_CIDR: &str = "10.244.0.0/16";
pub const SERVICE_CIDR: &str = "10.96.0.0/12";

/// The backends of the Service that is asked: addresses of the server's namespace.
pub const SERVER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 0, 11), Ipv4Addr::new(10, 244, 0, 12)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub address: Ipv4Addr,
    pub backends: Vec<SocketAddrV4>,
}

impl Service {
    /// As Kubernetes' proxies name a port: `namespace/service:port`.
    pub fn port_name(&self) -> String {
        format!("bench/{}:http", self.name)
    }

    pub fn target(&self) -> SocketAddr {
        (self.address, PORT).into()
    }

    /// With the first so many of its endpoints.
    pub fn with_backends(&self, count: usize) -> Self {
        let mut service = self.clone();
        service.backends.truncate(count);
        service
    }
}

#[derive(Clone, Debug)]
pub struct Table {
    pub services: Vec<Service>,
    /// The one that is asked. It stands in the middle: rules that are looked at one after another are written
    /// in no particular order, so half of them come before an ordinary Service's.
    pub asked: usize,
}

impl Table {
    pub fn new(size: usize, endpoints: usize) -> Self {
        let asked = size / 2;
        let services = (0..size).map(|index| Service {
            name: format!("service-{index}"),
            address: offset(Ipv4Addr::new(10, 96, 0, 16), index),
            backends: if index == asked {
                SERVER.map(|ip| SocketAddrV4::new(ip, TARGET_PORT)).into()
            } else {
                let first = index * endpoints;
                (first..first + endpoints)
                    .map(|at| {
                        SocketAddrV4::new(offset(Ipv4Addr::new(10, 128, 0, 1), at), TARGET_PORT)
                    })
                    .collect()
            },
        });
        Self {
            services: services.collect(),
            asked,
        }
    }

    pub fn asked(&self) -> &Service {
        &self.services[self.asked]
    }

    /// With one endpoint of the asked Service, or both.
    pub fn with_backends(&self, count: usize) -> Self {
        let mut table = self.clone();
        table.services[self.asked] = self.asked().with_backends(count);
        table
    }
}

fn offset(base: Ipv4Addr, by: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + by as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_service_and_every_backend_has_an_address_of_its_own() {
        let table = Table::new(30_000, 2);
        let services: HashSet<_> = table
            .services
            .iter()
            .map(|service| service.address)
            .collect();
        let backends: HashSet<_> = table.services.iter().flat_map(|s| &s.backends).collect();
        assert_eq!((services.len(), backends.len()), (30_000, 60_000));
        assert_eq!(table.asked().backends[0].ip(), &SERVER[0]);
        assert_eq!(Table::new(1, 2).asked, 0);
        assert_eq!(table.with_backends(1).asked().backends.len(), 1);
    }
}
