//! SCTP on a kernel that need not have it: an INIT is sent as a raw packet, and whether it arrived is seen
//! by a raw socket of the pod that it is for.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// IPPROTO_SCTP
const SCTP: i32 = 132;
const INIT: u8 = 1;
const IP_HEADER: usize = 20;
/// Ports, tag and checksum; then type, flags and length of the chunk.
const MARK_AT: usize = 16;

/// Hears every SCTP packet that comes to a pod.
pub(super) struct Ear(Socket);

impl Ear {
    pub(super) fn open(namespace: &File) -> Result<Self> {
        let socket = within(namespace, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP)))
        })?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The marks of the packets for this port that have come.
    pub(super) fn heard(&mut self) -> Vec<(u16, u32)> {
        let mut heard = Vec::new();
        let mut packet = [0; 256];
        while let Ok(length) = self.0.read(&mut packet) {
            let Some(sctp) = packet[..length].get(IP_HEADER..) else {
                continue;
            };
            if let (Some(port), Some(mark)) = (sctp.get(2..4), sctp.get(MARK_AT..MARK_AT + 4)) {
                let port = u16::from_be_bytes([port[0], port[1]]);
                heard.push((
                    port,
                    u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]),
                ));
            }
        }
        heard
    }
}

/// Sends one INIT to each target; the mark tells them apart.
pub(super) fn send(namespace: &File, targets: &[(SocketAddr, u32)]) -> Result<()> {
    let socket = within(namespace, || {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP)))
    })?;
    for (target, mark) in targets {
        let IpAddr::V4(_) = target.ip() else { continue };
        let mut packet = Vec::with_capacity(32);
        // Another source port for each, so that none is part of a former association.
        packet.extend((1_024 + (mark % 60_000) as u16).to_be_bytes());
        packet.extend(target.port().to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([INIT, 0, 0, 20]);
        packet.extend(mark.to_be_bytes());
        packet.extend([0; 12]);
        let to = SockAddr::from(SocketAddr::new(target.ip(), 0));
        // Refused where a route is missing; then it is not heard either.
        socket.send_to(&packet, &to).ok();
    }
    Ok(())
}

fn within<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
            work().context("a raw socket")
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// Waits until `enough` of what was sent has been heard, at most for `limit`.
pub(super) fn listen(ears: &mut [Ear], enough: usize, limit: Duration) -> Vec<Vec<(u16, u32)>> {
    let deadline = Instant::now() + limit;
    let mut heard: Vec<Vec<(u16, u32)>> = vec![Vec::new(); ears.len()];
    loop {
        for (ear, heard) in ears.iter_mut().zip(&mut heard) {
            heard.extend(ear.heard());
        }
        if heard.iter().map(Vec::len).sum::<usize>() > enough || Instant::now() >= deadline {
            return heard;
        }
        windlass_tests::eventually::pause(Duration::from_millis(10));
    }
}
