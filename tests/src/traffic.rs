//! New connections all the time, and what became of each, and one that stays open: how a test sees whether an event
//! was noticed by those who use a Service.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::eventually::until;
use crate::http;

/// Far above what a change takes to arrive, so that it cannot slip between two connections.
const INTERVAL: Duration = Duration::from_millis(5);

/// Between two words on a connection that stays open.
const BREATH: Duration = Duration::from_millis(20);
/// An answer that takes longer is as good as none: far above any pause of a loaded machine.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a member of a Service may go without a connection while there are new ones all the time.
const TURN: Duration = Duration::from_secs(60);

/// Ends the client's thread with the test, also with one that failed: nobody dials while the next one runs.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub struct Traffic {
    stop: Stop,
    connections: Arc<Mutex<Vec<Connection>>>,
    thread: JoinHandle<()>,
}

/// One connection: when it began, and who answered or why nobody did.
pub struct Connection {
    pub began: Instant,
    pub answer: Result<String>,
}

impl Traffic {
    /// Starts to connect to `address` from this network namespace.
    pub fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let connections = Arc::new(Mutex::new(Vec::new()));
        let made = Arc::clone(&connections);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let connection = Connection {
                    began: Instant::now(),
                    answer: http::get_text(address, "/"),
                };
                made.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(connection);
                crate::eventually::pause(INTERVAL);
            }
        });
        Self {
            stop: Stop(stop),
            connections,
            thread,
        }
    }

    /// Waits until `who` has answered one of the connections.
    pub fn reaches(&self, who: &str) -> Result<()> {
        until(TURN, &format!("an answer of {who}"), || {
            let connections = self.connections.lock();
            let connections = connections.unwrap_or_else(PoisonError::into_inner);
            Ok(connections
                .iter()
                .any(|one| one.answer.as_ref().is_ok_and(|name| name == who)))
        })
    }

    pub fn stop(self) -> Result<Vec<Connection>> {
        drop(self.stop);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the client panicked"))?;
        let mut made = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let connections = std::mem::take(&mut *made);
        if connections.is_empty() {
            bail!("the client made no connection at all");
        }
        Ok(connections)
    }
}

/// A connection to somebody who sends back what he gets.
pub struct Held {
    stop: Stop,
    thread: JoinHandle<Result<u64>>,
}

impl Held {
    /// Connects to `address` from this network namespace.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, ANSWER)
            .with_context(|| format!("connecting to {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || talk(stream, &stopped));
        Ok(Self {
            stop: Stop(stop),
            thread,
        })
    }

    /// How many words came back; fails when one did not.
    pub fn stop(self) -> Result<u64> {
        drop(self.stop);
        let words = self.thread.join();
        words.map_err(|_| anyhow::anyhow!("the client panicked"))?
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    let mut count: u64 = 0;
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let said = count.to_be_bytes();
        let mut heard = [0; 8];
        stream
            .write_all(&said)
            .and_then(|()| stream.read_exact(&mut heard))
            .with_context(|| format!("after {count} words and {:?}", began.elapsed()))?;
        ensure!(said == heard, "{said:?} came back as {heard:?}");
        count += 1;
        crate::eventually::pause(BREATH);
    }
    Ok(count)
}

/// The longest time in which the client did not begin a connection: how late anybody may have been on this machine,
/// whatever they had to do.
pub fn longest_pause<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Duration {
    let began: Vec<Instant> = connections.into_iter().map(|one| one.began).collect();
    let pauses = began.windows(2).map(|pair| pair[1].duration_since(pair[0]));
    pauses.max().unwrap_or_default()
}

/// Fails with the first connection that was not answered.
pub fn all_answered(connections: &[Connection]) -> Result<()> {
    let failed: Vec<_> = connections
        .iter()
        .filter(|one| one.answer.is_err())
        .collect();
    if let Some(first) = failed.first() {
        let since = first.began.duration_since(connections[0].began);
        let error = first.answer.as_ref().err();
        bail!(
            "{} of {} connections failed, the first {since:?} after the start: {error:?}",
            failed.len(),
            connections.len()
        );
    }
    Ok(())
}
