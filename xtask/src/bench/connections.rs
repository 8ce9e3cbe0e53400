//! New TCP connections per second: connect, one request, one answer, close.
//!
//! The two ways are measured in alternating rounds, so that whatever else the machine does meets both alike;
//! the median of the rounds counts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

pub(super) struct Rates {
    pub(super) direct: f64,
    pub(super) service: f64,
}

/// `direct`: the addresses of all pods behind the Service. Taking them in turn costs what a Service's choice
/// costs beside the way itself: on few cores, a server that is asked again at once is still awake.
pub(super) fn measure(direct: &[SocketAddr], service: SocketAddr) -> Result<Rates> {
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (way, targets) in [direct, &[service]].into_iter().enumerate() {
            rounds[way].push(round(targets)?);
        }
    }
    let [direct, service] = rounds.map(median);
    Ok(Rates { direct, service })
}

/// One client: it is limited by the path's cost per connection, not by how many clients fit on the machine.
fn round(targets: &[SocketAddr]) -> Result<f64> {
    let start = Instant::now();
    let mut connections = 0u32;
    for target in targets.iter().cycle() {
        if start.elapsed() >= ROUND {
            break;
        }
        converse(target).with_context(|| format!("connecting to {target}"))?;
        connections += 1;
    }
    Ok(f64::from(connections) / start.elapsed().as_secs_f64())
}

fn converse(target: &SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(REQUEST)?;
    let mut answer = [0; 1024];
    while stream.read(&mut answer)? > 0 {}
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
