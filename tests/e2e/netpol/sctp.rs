//! SCTP on a kernel that need not have it: an INIT is sent as a raw packet, and whether it arrived is seen
//! by a raw socket of the pod that it is for.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use windlass_tests::eventually::pause;

use super::probe::Pulse;

/// IPPROTO_SCTP
const SCTP: i32 = 132;
const INIT: u8 = 1;
const GLANCE: Duration = Duration::from_millis(10);
/// What a raw socket shows before the packet, by family.
const IPV4_HEADER: usize = 20;
const NO_HEADER: usize = 0;
/// Ports, tag and checksum; then type, flags and length of the chunk.
const MARK_AT: usize = 16;

/// Hears every SCTP packet that comes to a pod, of both families.
pub(super) struct Ear([(Socket, usize); 2]);

impl Ear {
    pub(super) fn open(namespace: &File) -> Result<Self> {
        let [v4, v6] = sockets(namespace)?;
        for socket in [&v4, &v6] {
            socket.set_nonblocking(true)?;
        }
        Ok(Self([(v4, IPV4_HEADER), (v6, NO_HEADER)]))
    }

    /// The marks of the packets that have come, each with the port that it is for.
    pub(super) fn heard(&mut self) -> Vec<(u16, u32)> {
        let mut heard = Vec::new();
        let mut packet = [0; 256];
        for (socket, header) in &mut self.0 {
            while let Ok(length) = socket.read(&mut packet) {
                let Some(sctp) = packet[..length].get(*header..) else {
                    continue;
                };
                if let (Some(port), Some(mark)) = (sctp.get(2..4), sctp.get(MARK_AT..MARK_AT + 4)) {
                    let port = u16::from_be_bytes([port[0], port[1]]);
                    let mark = u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]);
                    heard.push((port, mark));
                }
            }
        }
        heard
    }
}

fn sockets(namespace: &File) -> Result<[Socket; 2]> {
    within(namespace, || {
        let open = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)));
        Ok([open(Domain::IPV4)?, open(Domain::IPV6)?])
    })
}

/// Sends one INIT to each target; the mark tells them apart.
pub(super) fn send(namespace: &File, targets: &[(SocketAddr, u32)]) -> Result<()> {
    let [v4, v6] = sockets(namespace)?;
    for (target, mark) in targets {
        let socket = if target.is_ipv4() { &v4 } else { &v6 };
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

/// Waits until all of what should come has been heard, and a moment for what should not; at most until the pulse is over.
pub(super) fn listen(ears: &mut [Ear], enough: usize, pulse: &Pulse) -> Vec<Vec<(u16, u32)>> {
    let mut heard: Vec<Vec<(u16, u32)>> = vec![Vec::new(); ears.len()];
    let mut count = 0;
    loop {
        for (ear, heard) in ears.iter_mut().zip(&mut heard) {
            heard.extend(ear.heard());
        }
        let now = heard.iter().map(Vec::len).sum();
        if now > count {
            pulse.beat();
        }
        count = now;
        if count > enough || pulse.is_over() {
            return heard;
        }
        pause(GLANCE);
    }
}
