//! One address type for both families.
//!
//! An IPv4 address is held IPv4-mapped (`::ffff:a.b.c.d`). That costs 12 bytes a key
//! and buys one code path, one set of maps, and a free answer to the sockets that
//! speak IPv4 over AF_INET6: `connect6` sees exactly this form.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address, four words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Eq, Hash, PartialOrd, Ord, Debug)]
#[allow(
    clippy::derived_hash_with_manual_eq,
    reason = "the manual comparison is the derived one"
)]
pub struct Addr {
    pub words: [u32; 4],
}

/// Written out, because the derived one compares two 128-bit integers: LLVM then aligns
/// the address to 16 bytes on the stack, and its BPF backend (22) has no memcpy for an
/// alignment above 8 and crashes.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3])
            == 0
    }
}

impl Addr {
    /// `::`, which also stands for "any node address" in a [`crate::ServiceKey`].
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    const MAPPED: u32 = 0xffff_u32.to_be();

    /// From an IPv4 address as it stands in a packet or in `bpf_sock_addr`.
    #[inline(always)]
    pub const fn from_v4_be(v4: u32) -> Self {
        Self {
            words: [0, 0, Self::MAPPED, v4],
        }
    }

    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::from_v4_be(u32::from_ne_bytes(octets))
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED
    }

    /// The IPv4 address in network byte order; meaningful when [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.words[3]
    }

    /// 127.0.0.0/8 or `::1`.
    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [high, next, family, last] = self.words;
        high | next | last == 0 && (family == 0 || family == Self::MAPPED)
    }

    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.words[3] & 0xff_u32.to_le() == 127_u32.to_le()
        } else {
            self.words[0] == 0
                && self.words[1] == 0
                && self.words[2] == 0
                && self.words[3] == 1_u32.to_be()
        }
    }

    /// The canonical form: an IPv4-mapped address is an IPv4 address.
    pub fn to_ip(&self) -> IpAddr {
        let mut octets = [0u8; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }

    /// The sixteen octets as a packet carries them.
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0u8; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let octets = ip.octets();
        let mut words = [0u32; 4];
        for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Self { words }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.96.0.1", "127.0.0.1", "0.0.0.0", "fd00::1", "::1", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(ip).to_ip(), ip, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let plain: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(Addr::from(mapped), Addr::from(plain));
        assert!(Addr::from(plain).is_v4());
    }

    #[test]
    fn loopback_is_recognised_in_both_families() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("127.8.9.1", true),
            ("::1", true),
            ("128.0.0.127", false),
            ("::2", false),
            ("10.0.0.127", false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(ip).is_loopback(), expected, "{text}");
        }
    }
}
