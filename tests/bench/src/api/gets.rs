//! GETs at a fixed rate: a late answer delays no other request, and counts from when it should have been sent.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::connection::{Connection, Endpoint};
use super::replay::Replay;
use super::report::{Gets, Rate};
use super::server::ApiServer;
use crate::pause;
use crate::quantiles::Latencies;

const CONNECTIONS: usize = 16;

/// The server beside one that only says the same bytes, in alternating rounds.
pub async fn run(server: &ApiServer, per_second: u32, plan: &Plan) -> Result<Gets> {
    let mut connection = Connection::open(&server.endpoint).await?;
    let replay = Replay::start(connection.get(&path(0)).await?).await?;
    let mut gets = Gets::default();
    for _ in 0..plan.rounds {
        let baseline = round(&replay.endpoint, per_second, plan.round).await?;
        gets.baseline.push(baseline);
        let server = round(&server.endpoint, per_second, plan.round).await?;
        gets.server.push(server);
    }
    Ok(gets)
}

fn path(index: usize) -> String {
    format!("/api/v1/namespaces/default/pods/pod-{}", index * 7)
}

async fn round(server: &Endpoint, per_second: u32, time: Duration) -> Result<Rate> {
    let interval = Duration::from_secs(1) / per_second * CONNECTIONS as u32;
    let opened = Arc::new(Barrier::new(CONNECTIONS));
    let begun = Instant::now();
    let clients = (0..CONNECTIONS).map(|index| {
        let (server, opened) = (server.clone(), opened.clone());
        let delay = interval / CONNECTIONS as u32 * index as u32;
        tokio::task::spawn_blocking(move || client(&server, index, delay, interval, time, &opened))
    });
    let mut all = Latencies::default();
    for client in clients.collect::<Vec<_>>() {
        all.merge(client.await??);
    }
    Ok(Rate::of(all, begun.elapsed()))
}

/// A thread of its own: a shared runtime's timer has a grain of a millisecond, which wakes clients together and counts as
/// the server's.
fn client(
    server: &Endpoint,
    index: usize,
    delay: Duration,
    interval: Duration,
    time: Duration,
    opened: &Barrier,
) -> Result<Latencies> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let connection = runtime.block_on(Connection::open(server));
    // Also when it failed: the others wait for this one.
    opened.wait();
    let mut connection = connection?;
    let started = Instant::now();
    let mut latencies = Latencies::default();
    let mut due = delay;
    while due < time {
        pause::between_looks(due.saturating_sub(started.elapsed()));
        runtime.block_on(connection.get(&path(index)))?;
        latencies.add(started.elapsed() - due);
        due += interval;
    }
    Ok(latencies)
}
