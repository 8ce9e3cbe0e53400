//! What the programs tell of single flows, through a ring buffer, while somebody listens.

use crate::{Addr, Tuple};

/// Element 0 of the array `FLOW_CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowConfig {
    /// 0: nobody listens, and nothing is told.
    pub enabled: u32,
    /// Of so many connections one is told; drops always are. 0 and 1: of all.
    pub sample: u32,
    /// Events a second, for each CPU.
    pub per_second: u32,
}

/// What a CPU has told in the present second.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowBudget {
    pub second: u32,
    pub used: u32,
    /// Events that found no room since the last one that did.
    pub lost: u32,
}

/// What has happened: [`FlowEvent::kind`].
pub mod flow_kind {
    /// A connection begins, in the tc hooks.
    pub const OPEN: u8 = 1;
    /// Both sides have ended it, or one has reset it.
    pub const CLOSE: u8 = 2;
    /// A packet goes no further, or is answered with a refusal.
    pub const DROP: u8 = 3;
    /// A local socket that dials a Service was given a backend.
    pub const CONNECT: u8 = 4;
    /// A packet passes that a policy under audit would have dropped.
    pub const AUDIT: u8 = 5;
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// The flow as its packet shows it; from a socket hook without a source port.
    pub tuple: Tuple,
    /// The flow as it goes on; the same, unless it is translated.
    pub to: Tuple,
    /// Id of the Service, or 0.
    pub service: u32,
    /// Which policy decided a drop for policy's sake (`PolicyDecision::rule`), or 0.
    pub rule: u32,
    /// Length of the packet.
    pub bytes: u32,
    /// Events before this one, on this CPU, for which there was no room.
    pub lost: u32,
    /// Bits of `connection`, of an entry that was closed.
    pub flags: u32,
    /// One of [`flow_kind`].
    pub kind: u8,
    /// A `Reason`, of a drop.
    pub reason: u8,
    /// A `Direction`; 255 where that is not known.
    pub direction: u8,
    pub pad: u8,
}

impl FlowEvent {
    pub const SIZE: usize = size_of::<Self>();

    /// Reads what a program has written.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut words = Words(bytes.get(..Self::SIZE)?);
        Some(Self {
            time: u64::from_ne_bytes(words.take()?),
            tuple: words.tuple()?,
            to: words.tuple()?,
            service: words.u32()?,
            rule: words.u32()?,
            bytes: words.u32()?,
            lost: words.u32()?,
            flags: words.u32()?,
            kind: words.u8()?,
            reason: words.u8()?,
            direction: words.u8()?,
            pad: words.u8()?,
        })
    }
}

/// The rest of an event's bytes.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_ne_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn addr(&mut self) -> Option<Addr> {
        let words = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        Some(Addr { words })
    }

    fn tuple(&mut self) -> Option<Tuple> {
        Some(Tuple {
            src: self.addr()?,
            dst: self.addr()?,
            sport: self.u16()?,
            dport: self.u16()?,
            protocol: self.u8()?,
            pad: self.take()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<FlowConfig>(), 12);
        assert_eq!(size_of::<FlowBudget>(), 12);
        assert_eq!(FlowEvent::SIZE, 112);
    }

    #[test]
    fn an_event_is_read_field_by_field() {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        for (last, port) in [(1_u8, 40_000_u16), (2, 80)] {
            bytes.extend([0; 10]);
            bytes.extend([255, 255, 10, 0, 0, last]);
            bytes.extend([0; 10]);
            bytes.extend([255, 255, 10, 0, 0, 9]);
            bytes.extend(port.to_be().to_ne_bytes());
            bytes.extend(53_u16.to_be().to_ne_bytes());
            bytes.extend([17, 0, 0, 0]);
        }
        for word in 1..=5_u32 {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([flow_kind::DROP, 4, 1, 0]);
        let event = FlowEvent::from_bytes(&bytes).unwrap();
        assert_eq!((event.time, event.service, event.flags), (7, 1, 5));
        assert_eq!(event.to.src, Addr::v4([10, 0, 0, 2]));
        assert_eq!(
            (event.tuple.sport, event.to.sport),
            (40_000_u16.to_be(), 80_u16.to_be())
        );
        assert_eq!(
            (event.kind, event.reason, event.direction),
            (flow_kind::DROP, 4, 1)
        );
        assert_eq!(FlowEvent::from_bytes(&bytes[1..]), None);
    }
}
