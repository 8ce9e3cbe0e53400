//! New connections all the time, and what became of each: how a test sees whether an event was noticed by
//! those who use a Service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::http;

/// Far above what a change takes to arrive, so that it cannot slip between two connections.
const INTERVAL: Duration = Duration::from_millis(5);

pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Connection>>,
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
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                connections.push(Connection {
                    began,
                    answer: http::get_text(address, "/"),
                });
                crate::eventually::pause(INTERVAL);
            }
            connections
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Result<Vec<Connection>> {
        self.stop.store(true, Ordering::Relaxed);
        let connections = self.thread.join();
        let connections = connections.map_err(|_| anyhow::anyhow!("the client panicked"))?;
        if connections.is_empty() {
            bail!("the client made no connection at all");
        }
        Ok(connections)
    }
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
