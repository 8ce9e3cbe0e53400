//! Frames sent and received on one interface, past the host's stack (packet(7)): what the programs cannot
//! originate.
#![allow(
    unsafe_code,
    reason = "nothing makes the address of a packet socket safely"
)]

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    interface,
};

/// A socket for the frames of one Ethernet type on one interface. It sends any frame there.
pub struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
    mac: [u8; 6],
}

impl PacketSocket {
    /// On an interface of the calling thread's network namespace.
    pub fn open(interface: &str, ethertype: u16) -> Result<Self> {
        let device = interface::find(interface)?;
        let failed = |source| Error::Link {
            doing: "open a packet socket",
            target: interface.to_owned(),
            source,
        };
        // Nothing is received before it is bound to the interface: the protocol is given there.
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: just opened, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = device.ifindex as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address of the given length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Self {
            socket,
            ifindex: device.ifindex,
            mac: device.mac,
        })
    }

    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The interface's Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The interface takes frames to this group too.
    pub fn join(&self, group: [u8; 6]) -> io::Result<()> {
        // SAFETY: all-zero is a valid request.
        let mut request: libc::packet_mreq = unsafe { zeroed() };
        request.mr_ifindex = self.ifindex as i32;
        request.mr_type = libc::PACKET_MR_MULTICAST as u16;
        request.mr_alen = 6;
        request.mr_address[..6].copy_from_slice(&group);
        self.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: a live value of the given length.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: a live buffer of the given length.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits at most so long for a frame, and returns as much of it as `buffer` takes. `None`: none came.
    pub fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        wait: Duration,
    ) -> io::Result<Option<&'a [u8]>> {
        let mut poll = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, or the last part of a millisecond would be spent asking again and again.
        let wait = wait.as_micros().div_ceil(1_000).try_into();
        // SAFETY: one live element.
        let ready = unsafe { libc::poll(&raw mut poll, 1, wait.unwrap_or(libc::c_int::MAX)) };
        if ready == 0 {
            return Ok(None);
        }
        let got = if ready < 0 {
            -1
        } else {
            // SAFETY: a live buffer of the given length.
            unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            }
        };
        match usize::try_from(got) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }
}
