//! What an interface leaves to its device. XDP sees frames as they are: where the sender leaves its
//! checksums to a device that is none, they are not there.
#![allow(unsafe_code, reason = "nix has no such ioctl")]

use std::os::fd::AsRawFd as _;

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::unnamed_netns::NetNs;

/// ETHTOOL_STXCSUM and ETHTOOL_SGRO.
const CHECKSUMS: u32 = 0x17;
const MERGE: u32 = 0x2c;

/// As a wire has it on both ends: checksums are complete. The other end of the pair can take what XDP sends
/// while this one merges what it receives.
pub fn like_hardware(namespace: &NetNs, interface: &str) {
    namespace.run(|| {
        set(interface, CHECKSUMS, 0);
        set(interface, MERGE, 1);
    });
}

/// Whether the other end of a pair can send to this one by XDP.
pub fn set_merging(namespace: &NetNs, interface: &str, merges: bool) {
    namespace.run(|| set(interface, MERGE, merges.into()));
}

fn set(interface: &str, command: u32, value: u32) {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    // struct ethtool_value.
    let mut wanted = [command, value];
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = wanted.as_mut_ptr().cast();
    // SAFETY: a live request whose data is the two words that these commands take.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, &raw mut request) };
    assert_eq!(done, 0, "ethtool {command:#x} on {interface}");
}
