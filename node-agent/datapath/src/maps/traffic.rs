//! What went through each service, summed over the CPUs.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuHashMap},
};
use windlass_ebpf_types::Traffic;

use super::{is_missing, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
};

pub(crate) struct TrafficMaps {
    traffic: PerCpuHashMap<MapData, u32, Raw<Traffic>>,
}

impl TrafficMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            traffic: take(ebpf, "TRAFFIC")?,
        })
    }

    pub(crate) fn read(&self) -> Result<Vec<(u32, Traffic)>> {
        let mut all = Vec::new();
        for element in self.traffic.iter() {
            let (service, values) =
                element.map_err(|error| Error::map("read", "TRAFFIC", error))?;
            let mut sum = Traffic::default();
            for Raw(value) in values.iter() {
                sum.connections += value.connections;
                sum.request_bytes += value.request_bytes;
                sum.reply_bytes += value.reply_bytes;
            }
            all.push((service, sum));
        }
        Ok(all)
    }

    /// What is known of services that are no more.
    pub(crate) fn forget(&mut self, services: &[u32]) -> Result<()> {
        for service in services {
            match self.traffic.remove(service) {
                Err(error) if !is_missing(&error) => {
                    return Err(Error::map("remove from", "TRAFFIC", error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
