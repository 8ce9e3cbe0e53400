//! Real connections and datagrams out of a network namespace, all at once.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::model::Protocol;

/// A datagram may be lost for other reasons than policies.
const AGAIN: Duration = Duration::from_millis(120);
const GLANCE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) target: SocketAddr,
    pub(super) protocol: Protocol,
}

/// When the last answer came, of all that are awaited at the same time. What is allowed is answered one after the
/// other, as fast as the machine can; what is still missing after a pause will not come.
pub(super) struct Pulse {
    began: Instant,
    last: AtomicU64,
    pause: Duration,
}

impl Pulse {
    pub(super) fn new(pause: Duration) -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            pause,
        }
    }

    pub(super) fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last) > self.pause
    }
}

/// Whether each was answered before the pulse was over. Runs on a thread of its own in the namespace.
pub(super) fn answered(namespace: &File, probes: &[Probe], pulse: &Pulse) -> Result<Vec<bool>> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        for (index, probe) in probes.iter().copied().enumerate() {
            asking.spawn(async move { ask(probe).await.map(|()| index) });
        }
        let mut answers = vec![false; probes.len()];
        pulse.beat();
        loop {
            let next = tokio::time::timeout(GLANCE, asking.join_next());
            match next.await {
                Ok(None) => return Ok(answers),
                Ok(Some(outcome)) => {
                    // A refusal is no answer.
                    if let Ok(index) = outcome? {
                        answers[index] = true;
                        pulse.beat();
                    }
                }
                Err(_) if pulse.is_over() => return Ok(answers),
                Err(_) => {}
            }
        }
    })
}

async fn ask(probe: Probe) -> io::Result<()> {
    match probe.protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect(probe.target).await?;
            stream.write_all(b"?").await?;
            stream.read_exact(&mut [0]).await?;
            Ok(())
        }
        Protocol::Udp => {
            let any: SocketAddr = match probe.target {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(probe.target).await?;
            let mut buffer = [0; 8];
            loop {
                socket.send(b"?").await?;
                let answer = tokio::time::timeout(AGAIN, socket.recv(&mut buffer));
                if let Ok(answer) = answer.await {
                    return answer.map(drop);
                }
            }
        }
        Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
    }
}
