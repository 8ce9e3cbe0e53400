//! Real connections and datagrams out of a network namespace, all at once.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::model::Protocol;

/// A datagram may be lost for other reasons than policies.
const AGAIN: Duration = Duration::from_millis(120);

#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) target: SocketAddr,
    pub(super) protocol: Protocol,
}

/// Whether each was answered within the limit. Runs on a thread of its own in the namespace.
pub(super) fn answered(namespace: &File, probes: &[Probe], limit: Duration) -> Result<Vec<bool>> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let tasks: Vec<_> = probes
            .iter()
            .map(|probe| tokio::spawn(tokio::time::timeout(limit, ask(*probe))))
            .collect();
        let mut answers = Vec::with_capacity(tasks.len());
        for task in tasks {
            answers.push(matches!(task.await?, Ok(Ok(()))));
        }
        Ok(answers)
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
