//! A pod's bandwidth: a token bucket (tbf) on each end of its interface.
//!
//! What the pod sends is shaped on its own end, what it receives on the host's. The datapath lets packets for
//! such a pod go through the host's end instead of past it.

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use serde::{Deserialize, Serialize};

use super::{LinkError, Namespace};

/// linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// A burst below one packet of segmentation offload would let none pass whole.
const SMALLEST_BURST: u64 = 64 << 10;
/// Runtimes give the largest number that they can write as the burst, which would be no limit for the first
/// half gigabyte.
const LARGEST_BURST_SECONDS: f64 = 0.05;
/// How long a packet may wait in the queue, at most.
const LATENCY_SECONDS: f64 = 0.05;

/// Bits per second and bits, as CNI's `bandwidth` capability says it; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

/// One direction's limit in the kernel's terms: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    rate: u64,
    burst: u32,
    queue: u32,
}

impl Bandwidth {
    /// Of what the pod receives.
    pub fn ingress(&self) -> Option<Limit> {
        Limit::new(self.ingress_rate, self.ingress_burst)
    }

    /// Of what it sends.
    pub fn egress(&self) -> Option<Limit> {
        Limit::new(self.egress_rate, self.egress_burst)
    }
}

impl Limit {
    fn new(bits_per_second: u64, burst_bits: u64) -> Option<Self> {
        let rate = bits_per_second / 8;
        if rate == 0 {
            return None;
        }
        let within = |seconds: f64| (rate as f64 * seconds) as u64;
        let largest = within(LARGEST_BURST_SECONDS).max(SMALLEST_BURST);
        let burst = (burst_bits / 8).clamp(SMALLEST_BURST, largest);
        let queue = burst + within(LATENCY_SECONDS).max(SMALLEST_BURST);
        let whole = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Some(Self {
            rate,
            burst: whole(burst),
            queue: whole(queue),
        })
    }

    /// `struct tc_tbf_qopt`: two rates of twelve bytes, then limit, buffer and mtu. The kernel takes the buffer
    /// from the attribute of its own.
    fn parameters(self) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes[1] = TC_LINKLAYER_ETHERNET;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.queue.to_ne_bytes());
        bytes
    }
}

impl Namespace {
    /// Shapes what leaves by an interface; again for the same one, it replaces the limit.
    pub async fn limit(&self, index: u32, limit: Limit) -> Result<(), LinkError> {
        let doing = || format!("limiting the rate of interface {index}");
        let option = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
        let mut options = vec![
            option(TCA_TBF_PARMS, limit.parameters()),
            option(TCA_TBF_BURST, limit.burst.to_ne_bytes().to_vec()),
        ];
        if limit.rate > u64::from(u32::MAX) {
            options.push(option(TCA_TBF_RATE64, limit.rate.to_ne_bytes().to_vec()));
        }
        let mut message = TcMessage::default();
        message.header.index =
            i32::try_from(index).map_err(|error| LinkError::route(doing(), &error))?;
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes = vec![
            TcAttribute::Kind("tbf".to_owned()),
            TcAttribute::Options(options),
        ];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut handle = self.handle().clone();
        let mut answers = handle
            .request(request)
            .map_err(|error| LinkError::netlink(doing(), error))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(LinkError::route(doing(), &error.to_io()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_bursts_no_longer_than_it_waits() {
        assert_eq!(Limit::new(0, 1 << 32), None);
        // 10 Mbit/s with a runtime's burst: 64 KiB, not half a gigabyte.
        let slow = Limit::new(10_000_000, u64::from(u32::MAX)).expect("a limit");
        assert_eq!((slow.rate, slow.burst), (1_250_000, 65_536));
        assert!(slow.queue >= slow.burst);
        let fast = Limit::new(10_000_000_000, u64::from(u32::MAX)).expect("a limit");
        assert_eq!(fast.burst, 62_500_000);
        assert_eq!(&fast.parameters()[8..12], &1_250_000_000_u32.to_ne_bytes());
        assert_eq!(fast.parameters().len(), 36);
    }
}
