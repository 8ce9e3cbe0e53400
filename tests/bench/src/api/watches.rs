//! Fan-out: many watchers, each on a connection of its own, of objects that are written meanwhile.
//!
//! Watchers count the ends of events and decode nothing: client and server share the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connection::{Connection, connect};
use super::report::Watches;
use super::server::ApiServer;
use crate::quantiles::Latencies;
use crate::worker::shared_nanoseconds;

const NAMESPACE: &str = "watched";
const WRITERS: usize = 8;
/// So many watchers look at the time that an event carries.
const TIMED: usize = 20;
/// Writes a second while latency is measured: no queue stands before the server then.
const STEADY: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(20);
const MARK: &[u8] = b"\"sent\":\"";

#[derive(Default)]
struct Seen {
    events: AtomicU64,
    latencies: Mutex<Latencies>,
}

pub async fn run(server: &ApiServer, watchers: usize, time: Duration) -> Result<Watches> {
    let mut admin = Connection::open(&server.endpoint).await?;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    admin
        .post("/api/v1/namespaces", namespace.to_string().into())
        .await?;
    let before = admin.get(&path()).await?;
    let list: serde_json::Value = serde_json::from_slice(&before).context("a list")?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .context("a version")?
        .to_owned();

    let seen = Arc::new(Seen::default());
    let mut tasks = Vec::new();
    for index in 0..watchers {
        let stream = connect(&server.endpoint).await?;
        tasks.push(tokio::spawn(watch(
            stream,
            version.clone(),
            index < TIMED,
            seen.clone(),
        )));
    }
    // Every watcher has begun when it has seen an object.
    create(&mut admin, "first").await?;
    arrived(&seen, watchers as u64).await?;

    *seen.latencies.lock() = Latencies::default();
    let steady = Instant::now();
    let mut written = 1;
    while steady.elapsed() < time {
        create(&mut admin, &format!("steady-{written}")).await?;
        written += 1;
        tokio::time::sleep(Duration::from_secs(1) / STEADY as u32).await;
    }
    arrived(&seen, written * watchers as u64).await?;
    let latency = std::mem::take(&mut *seen.latencies.lock()).quantiles();

    let stop = Arc::new(AtomicBool::new(false));
    let before = seen.events.load(Ordering::Relaxed);
    let flood = Instant::now();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut connection = Connection::open(&server.endpoint).await?;
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                create(&mut connection, &format!("flood-{writer}-{number}")).await?;
                number += 1;
            }
            anyhow::Ok(number)
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut flooded = 0;
    for writer in writers {
        flooded += writer.await??;
    }
    // Until the last has come: what is queued has not been delivered.
    arrived(&seen, (written + flooded) * watchers as u64).await?;
    let seconds = flood.elapsed().as_secs_f64();
    let events = seen.events.load(Ordering::Relaxed) - before;
    for task in &tasks {
        task.abort();
    }
    Ok(Watches {
        watchers,
        events_per_second: events as f64 / seconds,
        writes_per_second: flooded as f64 / seconds,
        steady_writes_per_second: STEADY,
        latency,
    })
}

async fn create(connection: &mut Connection, name: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name },
        "data": { "sent": shared_nanoseconds().to_string() },
    });
    connection
        .post(&path(), Bytes::from(object.to_string()))
        .await
        .map(drop)
}

fn path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

async fn arrived(seen: &Seen, count: u64) -> Result<()> {
    let begun = Instant::now();
    loop {
        let events = seen.events.load(Ordering::Relaxed);
        if events >= count {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "of {count} events only {events} were delivered"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn watch(
    mut stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    version: String,
    timed: bool,
    seen: Arc<Seen>,
) -> Result<()> {
    let query = "watch=1&timeoutSeconds=600&labelSelector=!none&resourceVersion=";
    // The controllers' own object of every namespace is none that was written here.
    let selector = "&fieldSelector=metadata.name!=kube-root-ca.crt";
    let request = format!(
        "GET {}?{query}{version}{selector} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        path()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 16 << 10];
    // The end of what was read before: an event's end, and its mark, may lie across two reads.
    let mut kept = 0;
    loop {
        let read = stream.read(&mut buffer[kept..]).await?;
        ensure!(read > 0, "a watch has ended");
        let filled = kept + read;
        let text = &buffer[..filled];
        let mut ends = 0;
        for at in kept.max(1)..filled {
            ends += u64::from(text[at] == b'\n' && text[at - 1] == b'}');
        }
        if timed {
            let now = shared_nanoseconds();
            // Marks that end inside of what is new; their digits are in the same record.
            let from = kept.saturating_sub(MARK.len() - 1);
            for at in from..filled.saturating_sub(MARK.len()) {
                if text[at..].starts_with(MARK) {
                    let digits = text[at + MARK.len()..]
                        .iter()
                        .take_while(|byte| byte.is_ascii_digit());
                    let sent = digits.fold(0u64, |number, digit| {
                        number
                            .wrapping_mul(10)
                            .wrapping_add(u64::from(digit - b'0'))
                    });
                    // A number that was cut off is from before this century.
                    if sent > 1_000_000_000_000_000_000 {
                        let latency = Duration::from_nanos(now.saturating_sub(sent));
                        seen.latencies.lock().add(latency);
                    }
                }
            }
        }
        seen.events.fetch_add(ends, Ordering::Relaxed);
        kept = filled.min(MARK.len());
        buffer.copy_within(filled - kept..filled, 0);
    }
}
