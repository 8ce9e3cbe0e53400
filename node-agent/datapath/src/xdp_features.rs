//! What a device can do by XDP, as its driver says (generic netlink family `netdev`, kernel 6.3), and
//! whether there is a driver of any hardware at all.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::{
    NLM_F_REQUEST, NLMSG_ERROR, Netlink, acknowledged, attribute, find_attribute,
};

/// The family that knows the others' numbers.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// It takes frames that XDP sends out of it (NETDEV_XDP_ACT_NDO_XMIT).
pub(crate) const SENDS: u64 = 1 << 2;

/// Bits of `enum netdev_xdp_act`. `None`: the kernel is older than the question.
pub(crate) fn of(ifindex: u32) -> io::Result<Option<u64>> {
    let netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let name = attribute(FAMILY_NAME, b"netdev\0");
    let family = match ask(&netlink, CONTROLLER, GET_FAMILY, &name, FAMILY_ID) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        family => family?,
    };
    let Some(&[a, b]) = family.as_deref() else {
        return Ok(None);
    };
    let device = attribute(DEVICE_IFINDEX, &ifindex.to_ne_bytes());
    let family = u16::from_ne_bytes([a, b]);
    let features = ask(&netlink, family, GET_DEVICE, &device, DEVICE_XDP_FEATURES)?;
    let octets = features.and_then(|features| features.try_into().ok());
    Ok(octets.map(u64::from_ne_bytes))
}

/// Whether a device is only the kernel's: a veth, a bond, a bridge. Those of hardware, and of virtual
/// machines, are of no kind.
pub(crate) fn is_virtual(ifindex: u32) -> io::Result<bool> {
    const RTM_GETLINK: u16 = 18;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    /// `struct ifinfomsg`, in which the index stands at 4.
    const HEADER: usize = 16;
    let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut question = [0; HEADER];
    question[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    netlink.ask(RTM_GETLINK, NLM_F_REQUEST, &question)?;
    let mut has_kind = false;
    netlink.read(|kind, body| {
        if kind == NLMSG_ERROR {
            return acknowledged(body);
        }
        let info = find_attribute(body.get(HEADER..).unwrap_or_default(), IFLA_LINKINFO);
        has_kind = info.is_some_and(|info| find_attribute(info, IFLA_INFO_KIND).is_some());
        Ok(())
    })?;
    Ok(has_kind)
}

/// One attribute of the answer to a question of a family.
fn ask(
    netlink: &Netlink,
    family: u16,
    command: u8,
    about: &[u8],
    wanted: u16,
) -> io::Result<Option<Vec<u8>>> {
    /// `struct genlmsghdr`: command, version, two reserved octets.
    const HEADER: usize = 4;
    let body = [&[command, 1, 0, 0], about].concat();
    netlink.ask(family, NLM_F_REQUEST, &body)?;
    let mut found = None;
    netlink.read(|kind, body| {
        if kind == NLMSG_ERROR {
            return acknowledged(body);
        }
        let attributes = body.get(HEADER..).unwrap_or_default();
        found = find_attribute(attributes, wanted).map(<[u8]>::to_vec);
        Ok(())
    })?;
    Ok(found)
}
