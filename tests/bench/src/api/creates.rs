//! Creations: closed loops of clients, each on a connection of its own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};

use super::connection::Connection;
use super::report::Rate;
use super::server::ApiServer;
use crate::quantiles::Latencies;

const PATH: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
const CLIENTS: usize = 32;

/// What one object weighs, about.
pub const BYTES: usize = 1_500;

/// ConfigMaps of 1.5 KB for a time.
pub async fn run(server: &ApiServer, clients: usize, time: Duration, round: usize) -> Result<Rate> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(&server.endpoint).await?);
    }
    let started = Instant::now();
    let tasks = connections
        .into_iter()
        .enumerate()
        .map(|(client, mut connection)| {
            tokio::spawn(async move {
                let mut latencies = Latencies::default();
                let mut number = 0;
                while started.elapsed() < time {
                    let object = config_map(&format!("bench-{round}-{client}-{number}"));
                    let begun = Instant::now();
                    connection.post(PATH, object).await?;
                    latencies.add(begun.elapsed());
                    number += 1;
                }
                anyhow::Ok(latencies)
            })
        });
    let mut all = Latencies::default();
    for task in tasks.collect::<Vec<_>>() {
        all.merge(task.await??);
    }
    Ok(Rate::of(all, started.elapsed()))
}

/// Pods of about 2 KB, all of a range; how many a second.
pub async fn pods(server: &ApiServer, range: Range<usize>) -> Result<f64> {
    all(server, PODS, range, pod).await
}

/// An object for each number of a range, by 32 clients; how many a second.
pub async fn all<F>(
    server: &ApiServer,
    path: &'static str,
    range: Range<usize>,
    object: F,
) -> Result<f64>
where
    F: Fn(usize) -> Value + Copy + Send + 'static,
{
    let count = range.len();
    let next = Arc::new(AtomicUsize::new(range.start));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..CLIENTS {
        let mut connection = Connection::open(&server.endpoint).await?;
        let (next, end) = (next.clone(), range.end);
        tasks.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(());
                }
                let object = Bytes::from(object(number).to_string());
                connection.post(path, object).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn config_map(name: &str) -> Bytes {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name },
        "data": { "text": "x".repeat(BYTES - 350) },
    })
    .to_string()
    .into()
}

/// For a scheduler that does not exist: nobody but its creator touches it.
fn pod(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"),
            "labels": { "app": format!("app-{}", number % 100), "pod-template-hash": "5d9c7b8f6d" },
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "main",
                "image": "example.test/library/server:1.2.3",
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "env": [{ "name": "MODE", "value": "production" }],
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
            }],
        },
    })
}
