//! Servers of a test's or a benchmark's own on loopback.
//!
//! A port that was free a moment ago may be the source port of somebody's connection by the time a server asks for
//! it, so a server is not given a free port but an address of 127.0.0.0/8 that nobody else has: there every port is free.

mod etcd;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

pub use etcd::{EtcdServer, is_etcd_installed};

/// How many addresses a process has before they repeat.
const OF_A_PROCESS: u32 = 1 << 9;

/// The upper half of 127.0.0.0/8, in which no machine has a habit.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 128, 0, 0);
const LAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// An address of 127.0.0.0/8 that no other call has returned, in this process or another that runs: by number of the
/// process, and by count within it. (They repeat after 512 calls, and for processes whose numbers are 2^14 apart.)
pub fn address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % OF_A_PROCESS;
    let number = std::process::id().wrapping_mul(OF_A_PROCESS) | count;
    let within = LAST.to_bits() - FIRST.to_bits();
    Ipv4Addr::from_bits(FIRST.to_bits() | (number & within))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_call_has_an_address_that_can_be_listened_on() {
        let addresses: BTreeSet<_> = (0..100).map(|_| address()).collect();
        assert_eq!(addresses.len(), 100);
        let listeners = addresses.iter().map(|at| TcpListener::bind((*at, 2379)));
        let listeners: Result<Vec<_>, _> = listeners.collect();
        assert_eq!(listeners.unwrap().len(), 100);
    }
}
