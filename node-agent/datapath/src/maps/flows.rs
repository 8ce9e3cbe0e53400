//! The flow log: a ring buffer that the programs fill while somebody listens, and what they count of policies' drops
//! whether anybody listens or not.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, RingBuf},
};
use windlass_ebpf_types::{FlowConfig, FlowEvent, Reason};

use super::take;
use crate::{
    error::{Error, Result},
    raw::Raw,
    sys,
};

const EVENTS: &str = "FLOW_EVENTS";

/// What one decider dropped for one reason since the programs were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyDrops {
    /// `PolicyDecision::rule`
    pub rule: u32,
    pub reason: Reason,
    pub packets: u64,
}

pub(crate) struct FlowMaps {
    config: Array<MapData, Raw<FlowConfig>>,
    drops: HashMap<MapData, u64, u64>,
    /// Its memory, twice its size, is mapped only while somebody reads.
    ring: OwnedFd,
}

impl FlowMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            config: take(ebpf, "FLOW_CONFIG")?,
            drops: take(ebpf, "POLICY_DROPS")?,
            ring: ring(ebpf)?,
        })
    }

    pub(crate) fn set(&mut self, config: FlowConfig) -> Result<()> {
        self.config
            .set(0, Raw(config), 0)
            .map_err(|error| Error::map("write to", "FLOW_CONFIG", error))
    }

    pub(crate) fn drops(&self) -> Result<Vec<PolicyDrops>> {
        let mut all = Vec::new();
        for element in self.drops.iter() {
            let (key, packets) =
                element.map_err(|error| Error::map("read", "POLICY_DROPS", error))?;
            let mut reasons = Reason::ALL.into_iter();
            if let Some(reason) = reasons.find(|it| *it as u64 == key & u64::from(u32::MAX)) {
                all.push(PolicyDrops {
                    rule: (key >> 32) as u32,
                    reason,
                    packets,
                });
            }
        }
        Ok(all)
    }

    pub(crate) fn ring(&self) -> Result<FlowRing> {
        let descriptor = self.ring.try_clone().map_err(MapError::from);
        descriptor
            .and_then(MapData::from_fd)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map(FlowRing)
            .map_err(|error| Error::map("map", EVENTS, error))
    }
}

/// The ring's descriptor, without its memory.
fn ring(ebpf: &mut Ebpf) -> Result<OwnedFd> {
    let Some(Map::RingBuf(map)) = ebpf.take_map(EVENTS) else {
        return Err(Error::Missing {
            kind: "map",
            name: EVENTS,
        });
    };
    let descriptor = map.fd().as_fd().try_clone_to_owned();
    descriptor.map_err(|error| Error::map("open", EVENTS, error.into()))
}

/// The reading end; its descriptor becomes readable when there is something to take.
pub struct FlowRing(RingBuf<MapData>);

impl FlowRing {
    /// The present in the time of events, in nanoseconds.
    pub fn now() -> i64 {
        sys::monotonic_nanoseconds()
    }

    /// The next event; what is not one (there is no such thing) is passed over.
    pub fn take(&mut self) -> Option<FlowEvent> {
        loop {
            let item = self.0.next()?;
            if let Some(event) = FlowEvent::from_bytes(&item) {
                return Some(event);
            }
        }
    }
}

impl AsRawFd for FlowRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for FlowRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
