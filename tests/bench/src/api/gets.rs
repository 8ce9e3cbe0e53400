//! GETs at a fixed rate: a late answer delays no other request, and counts from when it should have been sent.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::connection::{Connection, Endpoint};
use super::replay::Replay;
use super::report::{Gets, Rate};
use super::server::ApiServer;
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
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(server).await?);
    }
    let started = tokio::time::Instant::now() + Duration::from_millis(50);
    let begun = Instant::now();
    let interval = Duration::from_secs(1) / per_second * CONNECTIONS as u32;
    let tasks = connections
        .into_iter()
        .enumerate()
        .map(|(index, mut connection)| {
            tokio::spawn(async move {
                let mut latencies = Latencies::default();
                let mut due = started + interval / CONNECTIONS as u32 * index as u32;
                while due < started + time {
                    tokio::time::sleep_until(due).await;
                    // The timer's own grain is not the server's.
                    let sent = tokio::time::Instant::now()
                        .min(due + Duration::from_millis(1))
                        .max(due);
                    connection.get(&path(index)).await?;
                    latencies.add(sent.elapsed());
                    due += interval;
                }
                anyhow::Ok(latencies)
            })
        });
    let mut all = Latencies::default();
    for task in tasks.collect::<Vec<_>>() {
        all.merge(task.await??);
    }
    Ok(Rate::of(all, begun.elapsed()))
}
