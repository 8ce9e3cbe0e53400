//! Questions to the kernel by netlink, where no crate asks them for us.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A netlink socket; one question is open at a time.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let kind = SockType::Datagram;
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Self(socket(AddressFamily::Netlink, kind, flags, protocol)?))
    }

    pub(crate) fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = (HEADER + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence number and sender.
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Calls back with the kind and body of each message of one datagram.
    pub(crate) fn read(
        &self,
        mut take: impl FnMut(u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some(header) = rest.get(..HEADER) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(body) = rest.get(HEADER..length) else {
                return Err(io::Error::other("a netlink message is cut short"));
            };
            take(kind, body)?;
            // Messages begin at multiples of four.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// `struct nlmsgerr`: a negative error number, 0 for success.
pub(crate) fn acknowledged(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).map_or(0, |octets| {
        i32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]])
    });
    match number {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(-number)),
    }
}

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut octets = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    octets.extend(length.to_ne_bytes());
    octets.extend(kind.to_ne_bytes());
    octets.extend(value);
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

/// The value of the first attribute of a kind.
pub(crate) fn find_attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
    const FLAGS: u16 = 0xc000;
    while let Some(&[a, b, c, d]) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let both = [
            attribute(2, b"netdev\0"),
            attribute(1, &7_u16.to_ne_bytes()),
        ]
        .concat();
        assert_eq!(both.len() % 4, 0);
        assert_eq!(find_attribute(&both, 1), Some(&7_u16.to_ne_bytes()[..]));
        assert_eq!(find_attribute(&both, 2), Some(&b"netdev\0"[..]));
        assert_eq!(find_attribute(&both, 3), None);
        assert_eq!(find_attribute(&both[..9], 2), None, "cut short");
    }
}
