//! The connection table as user space sees it: listing, and collecting what is over.

use std::collections::HashMap;

use aya::Ebpf;
use windlass_ebpf_types::{Connection, MemberKey, Tuple, connection, protocol, timeout_seconds};

use super::{ServiceMaps, Table};
use crate::{error::Result, raw::Raw, sys};

/// What a collection found, in entries (two to a connection).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Left in the table.
    pub live: usize,
    /// Deleted because their time was over.
    pub expired: usize,
    /// Deleted because their backend is gone.
    pub backend_gone: usize,
}

pub(crate) struct ConntrackMaps {
    connections: Table<Raw<Tuple>, Raw<Connection>>,
}

impl ConntrackMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            connections: Table::take(ebpf, "CONNTRACK")?,
        })
    }

    pub(crate) fn entries(&self) -> Result<Vec<(Tuple, Connection)>> {
        Ok(self
            .connections
            .entries()?
            .into_iter()
            .map(|(k, v)| (k.0, v.0))
            .collect())
    }

    pub(crate) fn collect(&mut self, services: &ServiceMaps) -> Result<CollectReport> {
        let now = sys::monotonic_seconds();
        let entries: HashMap<Tuple, Connection> = self.entries()?.into_iter().collect();
        let backends = services.backend_ids()?;
        let mut report = CollectReport::default();
        for (key, entry) in &entries {
            let partner = entry.to.reversed();
            let verdict = match judge(key, entry, entries.get(&partner), now) {
                Verdict::Live if entry.service != 0 => {
                    let gone = if key.protocol == protocol::UDP {
                        let key = MemberKey {
                            service: entry.service,
                            backend: entry.backend,
                        };
                        !services.is_member(key)?
                    } else {
                        !backends.contains(&entry.backend)
                    };
                    if gone {
                        Verdict::BackendGone
                    } else {
                        Verdict::Live
                    }
                }
                verdict => verdict,
            };
            match verdict {
                Verdict::Live => report.live += 1,
                Verdict::BackendGone => {
                    report.backend_gone += 1;
                    self.connections.remove(&Raw(*key))?;
                }
                Verdict::Expired => {
                    // A packet may have come since the listing: that one wins.
                    let current = self.connections.get(&Raw(*key))?;
                    if current.is_some_and(|current| current.0.last_seen == entry.last_seen) {
                        report.expired += 1;
                        self.connections.remove(&Raw(*key))?;
                    }
                }
            }
        }
        Ok(report)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Live,
    Expired,
    BackendGone,
}

/// Both directions live and die together, by the later of their last packets.
fn judge(key: &Tuple, entry: &Connection, partner: Option<&Connection>, now: u32) -> Verdict {
    let (flags, last_seen) = match partner {
        Some(partner) => (
            entry.flags | partner.flags,
            entry.last_seen.max(partner.last_seen),
        ),
        // Half a pair translates only one way: it is of no use once nobody is making it.
        None => (entry.flags | connection::RESET, entry.last_seen),
    };
    // The kernel's coarse clock may be a tick ahead of ours.
    if now.saturating_sub(last_seen) > timeout_seconds(key.protocol, flags) {
        Verdict::Expired
    } else {
        Verdict::Live
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_ebpf_types::Addr;

    fn connection_of(protocol: u8, flags: u32, last_seen: u32) -> (Tuple, Connection) {
        let key = Tuple {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 96, 0, 1]),
            sport: 1,
            dport: 2,
            protocol,
            pad: [0; 3],
        };
        let entry = Connection {
            to: key,
            flags,
            last_seen,
            service: 1,
            backend: 1,
            ifindex: 0,
            created: 0,
        };
        (key, entry)
    }

    #[test]
    fn a_pair_lives_by_its_later_packet() {
        let (key, old) = connection_of(protocol::UDP, connection::ORIGINAL, 100);
        let (_, young) = connection_of(protocol::UDP, connection::REPLIED, 1_000);
        assert_eq!(judge(&key, &old, Some(&young), 1_100), Verdict::Live);
        assert_eq!(judge(&key, &young, Some(&old), 1_100), Verdict::Live);
        assert_eq!(judge(&key, &old, Some(&young), 1_121), Verdict::Expired);
        assert_eq!(judge(&key, &young, Some(&old), 1_121), Verdict::Expired);
    }

    #[test]
    fn half_a_pair_goes_after_the_closing_time() {
        let (key, entry) = connection_of(
            protocol::TCP,
            connection::REPLIED | connection::CONFIRMED,
            100,
        );
        assert_eq!(judge(&key, &entry, None, 110), Verdict::Live);
        assert_eq!(judge(&key, &entry, None, 111), Verdict::Expired);
    }

    #[test]
    fn a_clock_behind_the_kernels_expires_nothing() {
        let (key, entry) = connection_of(protocol::TCP, connection::RESET, 100);
        assert_eq!(judge(&key, &entry, Some(&entry), 99), Verdict::Live);
    }
}
