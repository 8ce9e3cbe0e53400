//! Counters, summed over the CPUs.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use windlass_ebpf_types::{Counter, Direction, Reason, metric_index};

use super::{is_missing, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricSample {
    pub reason: Reason,
    pub direction: Direction,
    pub packets: u64,
    pub bytes: u64,
}

pub(crate) struct MetricMaps {
    counters: PerCpuArray<MapData, Raw<Counter>>,
}

impl MetricMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            counters: take(ebpf, "METRICS")?,
        })
    }

    pub(crate) fn read(&self) -> Result<Vec<MetricSample>> {
        let mut samples = Vec::new();
        for reason in Reason::ALL {
            for direction in Direction::ALL {
                let values = match self.counters.get(&metric_index(reason, direction), 0) {
                    Ok(values) => values,
                    // Pinned by a build that knew fewer reasons.
                    Err(error) if is_missing(&error) => continue,
                    Err(error) => return Err(Error::map("read", "METRICS", error)),
                };
                let (mut packets, mut bytes) = (0, 0);
                for value in values.iter() {
                    packets += value.0.packets;
                    bytes += value.0.bytes;
                }
                if packets > 0 {
                    samples.push(MetricSample {
                        reason,
                        direction,
                        packets,
                        bytes,
                    });
                }
            }
        }
        Ok(samples)
    }
}
