//! What the API server is compared with: the disk under it, and etcd by itself.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use windlass_loopback::{EtcdServer, is_etcd_installed};
use windlass_store::{EtcdOptions, Expect, Store};

use super::creates::BYTES;
use super::report::Rate;
use crate::quantiles::Latencies;

/// The length of the file that stands for a log.
const WRITTEN: usize = 32 << 20;

/// As many objects written at once, one after another, as there are clients, then one fdatasync; objects a second.
pub fn fdatasync(folder: &Path, clients: usize, time: Duration) -> Result<Rate> {
    let mut file = tempfile::tempfile_in(folder).context("making a file")?;
    // A file that grows would make the file system write about that as well: logs are made long beforehand.
    file.write_all(&vec![0; WRITTEN])?;
    file.sync_all()?;
    let objects = vec![b'x'; BYTES * clients];
    let mut latencies = Latencies::default();
    let mut at = 0;
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        file.write_all_at(&objects, at as u64)?;
        file.sync_data()?;
        at = (at + objects.len()) % (WRITTEN - objects.len());
        latencies.add(begun.elapsed());
    }
    let mut rate = Rate::of(latencies, started.elapsed());
    rate.per_second *= clients as f64;
    Ok(rate)
}

pub struct Etcd {
    server: EtcdServer,
    store: Arc<windlass_store::Etcd>,
}

impl Etcd {
    /// `None` where it is not installed.
    pub async fn start(data: &Path) -> Result<Option<Self>> {
        if !is_etcd_installed() {
            return Ok(None);
        }
        let server = EtcdServer::start(data).await?;
        let options = EtcdOptions {
            endpoints: vec![server.url().to_owned()],
            ..EtcdOptions::default()
        };
        let store = windlass_store::Etcd::connect(options).await?;
        let store = Arc::new(store);
        Ok(Some(Self { server, store }))
    }

    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// Puts without TLS and without an API server before it.
    pub async fn puts(&self, clients: usize, time: Duration) -> Result<Rate> {
        let value = Bytes::from(vec![b'x'; BYTES]);
        let started = Instant::now();
        let tasks = (0..clients).map(|client| {
            let (store, value) = (self.store.clone(), value.clone());
            tokio::spawn(async move {
                let mut latencies = Latencies::default();
                let mut number = 0;
                while started.elapsed() < time {
                    let key = format!("/bench/{client}/{number}");
                    let begun = Instant::now();
                    store.put(&key, value.clone(), Expect::Any, None).await?;
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
}
