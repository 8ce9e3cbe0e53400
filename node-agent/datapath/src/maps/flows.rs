//! The flow log: a ring buffer that the programs fill while somebody listens.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};
use windlass_ebpf_types::{FlowConfig, FlowEvent};

use super::take;
use crate::{
    error::{Error, Result},
    raw::Raw,
    sys,
};

pub(crate) struct FlowMaps {
    config: Array<MapData, Raw<FlowConfig>>,
    ring: Option<FlowRing>,
}

impl FlowMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            config: take(ebpf, "FLOW_CONFIG")?,
            ring: Some(FlowRing(take(ebpf, "FLOW_EVENTS")?)),
        })
    }

    pub(crate) fn set(&mut self, config: FlowConfig) -> Result<()> {
        self.config
            .set(0, Raw(config), 0)
            .map_err(|error| Error::map("write to", "FLOW_CONFIG", error))
    }

    pub(crate) fn ring(&mut self) -> Option<FlowRing> {
        self.ring.take()
    }
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
