//! The client's role: one connection after another, as fast as the path allows.
//!
//! One client in a closed loop: it is limited by what the path costs, not by how many clients fit beside the
//! server on the machine's cores.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::http;
use crate::pause;
use crate::quantiles::{Latencies, Quantiles};
use crate::worker;
use windlass_tests::processor;

const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks for a change: short beside what is looked for, long enough to leave a core to the change.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Who is not let in for so long is kept out.
const REFUSED: Duration = Duration::from_millis(300);

/// So many answers without a backend mean that it has left, with a Service of two.
const ABSENT: usize = 48;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    netns: Option<PathBuf>,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Order {
    /// Connect, one request, one answer, close; over and over.
    Connections { target: SocketAddr, millis: u64 },
    /// One request after another on one connection.
    Requests { target: SocketAddr, millis: u64 },
    /// As many bytes from the server as there are.
    Bulk { target: SocketAddr, millis: u64 },
    /// Connects until a backend answers; `at` says when that was.
    UntilServedBy {
        target: SocketAddr,
        backend: String,
        millis: u64,
    },
    /// Tries to connect until it is let in, or until it is not; `at` says when that was.
    UntilAdmitted {
        target: SocketAddr,
        admitted: bool,
        millis: u64,
    },
    /// Connects until a backend answers no more.
    UntilNotServedBy {
        target: SocketAddr,
        backend: String,
        millis: u64,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub count: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub connect: Quantiles,
    pub request: Quantiles,
    pub cpu_us: u64,
    /// On the clock that all processes share, in nanoseconds.
    pub at: u64,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(netns) = &options.netns {
        worker::enter_netns(netns)?;
        processor::share()?;
    }
    worker::serve(|order| perform(&order))
}

pub fn perform(order: &Order) -> Result<Answer> {
    let used = processor::time();
    let started = Instant::now();
    let mut answer = match order {
        Order::Connections { target, millis } => {
            connections(*target, Duration::from_millis(*millis))
        }
        Order::Requests { target, millis } => requests(*target, Duration::from_millis(*millis)),
        Order::Bulk { target, millis } => bulk(*target, Duration::from_millis(*millis)),
        Order::UntilServedBy {
            target,
            backend,
            millis,
        } => until(*target, backend, true, Duration::from_millis(*millis)),
        Order::UntilNotServedBy {
            target,
            backend,
            millis,
        } => until(*target, backend, false, Duration::from_millis(*millis)),
        Order::UntilAdmitted {
            target,
            admitted,
            millis,
        } => until_admitted(*target, *admitted, Duration::from_millis(*millis)),
    }?;
    answer.seconds = started.elapsed().as_secs_f64();
    answer.cpu_us = (processor::time() - used).as_micros() as u64;
    Ok(answer)
}

fn connections(target: SocketAddr, time: Duration) -> Result<Answer> {
    let (mut connect, mut request) = (Latencies::default(), Latencies::default());
    let mut buffer = vec![0; 4096];
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        let mut stream = open(target)?;
        connect.add(begun.elapsed());
        stream.write_all(http::ONCE).context("asking")?;
        // Until the server has closed it: a client that ran ahead would fill the listener's queue, and then
        // wait a second for each lost SYN.
        while stream.read(&mut buffer).context("reading an answer")? > 0 {}
        request.add(begun.elapsed());
        abort(&stream)?;
    }
    Ok(Answer {
        count: connect.len() as u64,
        connect: connect.quantiles(),
        request: request.quantiles(),
        ..Answer::default()
    })
}

fn requests(target: SocketAddr, time: Duration) -> Result<Answer> {
    let mut latencies = Latencies::default();
    let mut buffer = Vec::new();
    let mut stream = open(target)?;
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        http::converse(&mut stream, &mut buffer).context("asking on a kept connection")?;
        latencies.add(begun.elapsed());
    }
    Ok(Answer {
        count: latencies.len() as u64,
        request: latencies.quantiles(),
        ..Answer::default()
    })
}

fn bulk(target: SocketAddr, time: Duration) -> Result<Answer> {
    let mut stream = open(target)?;
    stream.write_all(http::BULK)?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    let started = Instant::now();
    while started.elapsed() < time {
        match stream.read(&mut buffer).context("reading in bulk")? {
            0 => bail!("the server ended a transfer"),
            read => bytes += read as u64,
        }
    }
    Ok(Answer {
        bytes,
        ..Answer::default()
    })
}

fn until(target: SocketAddr, backend: &str, served: bool, limit: Duration) -> Result<Answer> {
    let started = Instant::now();
    let mut buffer = Vec::new();
    let mut absent = 0;
    while started.elapsed() < limit {
        let from = served_by(target, &mut buffer);
        let at = worker::shared_nanoseconds();
        match from {
            Some(from) if from == backend => {
                if served {
                    return Ok(Answer {
                        at,
                        ..Answer::default()
                    });
                }
                absent = 0;
            }
            Some(_) => absent += 1,
            // Refused or cut off while the rules change: neither the one nor the other.
            None => {}
        }
        if !served && absent >= ABSENT {
            return Ok(Answer {
                at,
                ..Answer::default()
            });
        }
        pause::between_looks(LOOK_EVERY);
    }
    let seconds = limit.as_secs();
    bail!(
        "after {seconds} s {backend} still {} at {target}",
        if served { "does not serve" } else { "serves" }
    )
}

fn until_admitted(target: SocketAddr, admitted: bool, limit: Duration) -> Result<Answer> {
    // Long beside a connection's time, short beside the second after which a stack repeats its first packet.
    let patience = if admitted { LOOK_EVERY * 5 } else { REFUSED };
    let started = Instant::now();
    while started.elapsed() < limit {
        let at = worker::shared_nanoseconds();
        let stream = TcpStream::connect_timeout(&target, patience);
        if let Ok(stream) = &stream {
            abort(stream)?;
        }
        if stream.is_ok() == admitted {
            return Ok(Answer {
                at,
                ..Answer::default()
            });
        }
    }
    bail!(
        "after {limit:?} a connection to {target} is let in: {}",
        !admitted
    )
}

fn served_by(target: SocketAddr, buffer: &mut Vec<u8>) -> Option<String> {
    let mut stream = open(target).ok()?;
    stream.write_all(http::ONCE).ok()?;
    let (head, _) = http::read_head(&mut stream, buffer).ok()?;
    let backend = http::header(&buffer[..head], "x-served-by")?.to_owned();
    abort(&stream).ok()?;
    Some(backend)
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Ends with a reset: no TIME_WAIT uses up the client's ports.
fn abort(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &linger).context("setting SO_LINGER")
}
